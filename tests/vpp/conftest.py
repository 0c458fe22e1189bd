"""Fixtures: a host with a VPP, simulated and, if one is installed, real.

A test's parameters select the VPP; nothing is skipped.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from lab import vpp_lab
from lab.vpp_lab import KINDS, TRAFFIC_KINDS, VppLab

if TYPE_CHECKING:
    from collections.abc import Iterator


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Parametrize ``lab`` with each VPP and ``traffic_lab`` with real ones."""
    for fixture, kinds in (("lab", KINDS), ("traffic_lab", TRAFFIC_KINDS)):
        if fixture in metafunc.fixturenames:
            metafunc.parametrize(fixture, kinds, indirect=True)


@pytest.fixture
def lab(request: pytest.FixtureRequest) -> Iterator[VppLab]:
    """A host with a private VPP."""
    yield from vpp_lab.make(request.param)


@pytest.fixture
def traffic_lab(request: pytest.FixtureRequest) -> Iterator[VppLab]:
    """A host with a VPP that forwards packets."""
    yield from vpp_lab.make(request.param)


@pytest.fixture
def sim() -> Iterator[VppLab]:
    """A host with the simulator, for failures that a real VPP cannot produce on request."""
    yield from vpp_lab.make("simulator")
