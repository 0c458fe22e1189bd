"""Fixtures for tests of the shim: the shipped program and builds with memory checkers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

import userspace_cni_shim
from lab import shim as lab_shim
from lab.shim import Build

if TYPE_CHECKING:
    from pathlib import Path

    from lab.shim import Shim


@pytest.fixture(scope="session")
def released() -> Build:
    return Build(userspace_cni_shim.path())


@pytest.fixture(scope="session", params=["released", "sanitized"])
def build(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Build:
    if request.param == "released":
        return Build(userspace_cni_shim.path())
    return lab_shim.compile_variant(request.param, tmp_path_factory.mktemp("shim"))


@pytest.fixture
def shim(build: Build, tmp_path: Path) -> Shim:
    """The shim without a fallback."""
    return lab_shim.make(build, tmp_path)
