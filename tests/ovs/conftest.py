"""Fixtures: labs with a private Open vSwitch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from lab.ovs_lab import OvsLab, make
from lab.plugin import Mode


@pytest.fixture(scope="module")
def shared_lab(tmp_path_factory: pytest.TempPathFactory, served_by: Mode) -> Iterator[OvsLab]:
    """A lab with OVS-DPDK and an administrator's bridge br0, for all tests of a module."""
    with ExitStack() as stack:
        lab = make(tmp_path_factory.mktemp("ovs"), stack, served_by)
        lab.ovs.add_bridge("br0")
        yield lab


@pytest.fixture
def lab(shared_lab: OvsLab) -> Iterator[OvsLab]:
    """The module's lab; fail if the test leaves something behind."""
    yield shared_lab
    died = shared_lab.ovs.revive()
    left = shared_lab.leftovers()
    shared_lab.detach_all()
    assert (died, left) == ("", [])
    assert shared_lab.ovs.bridges() == ["br0"]


@pytest.fixture
def own_lab(tmp_path: Path, served_by: Mode) -> Iterator[OvsLab]:
    """A lab for one test, which may break it."""
    with ExitStack() as stack:
        lab = make(tmp_path, stack, served_by)
        lab.ovs.add_bridge("br0")
        yield lab


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    """A stack that ends what a test starts, before its lab is checked."""
    with ExitStack() as stack:
        yield stack
