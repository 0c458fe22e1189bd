"""Fixtures: a host with a VPP, simulated and, where there is one, real.

Which VPP a test gets is a matter of its parameters: nothing is skipped.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from lab import vpp_lab
from lab.vpp_lab import KINDS, TRAFFIC_KINDS, VppLab

if TYPE_CHECKING:
    from collections.abc import Iterator


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give ``lab`` to each VPP, ``traffic_lab`` to real ones; deselect what has none."""
    for fixture, kinds in (("lab", KINDS), ("traffic_lab", TRAFFIC_KINDS)):
        if fixture in metafunc.fixturenames:
            metafunc.parametrize(fixture, kinds, indirect=True)


@pytest.fixture
def lab(request: pytest.FixtureRequest) -> Iterator[VppLab]:
    """A host with a VPP of its own."""
    yield from vpp_lab.make(request.param)


@pytest.fixture
def traffic_lab(request: pytest.FixtureRequest) -> Iterator[VppLab]:
    """A host with a VPP that moves packets."""
    yield from vpp_lab.make(request.param)


@pytest.fixture
def sim() -> Iterator[VppLab]:
    """A host with the simulator, for what no real VPP does on request."""
    yield from vpp_lab.make("simulator")
