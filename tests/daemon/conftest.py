"""Fixtures: a daemon with the example engine."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from core import example_lab
from core.conftest import netns, trouble, trouble_interpreter
from lab import plugin as lab_plugin

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from core.example_lab import ExampleLab

__all__ = ["lab", "netns", "trouble", "trouble_interpreter"]


@pytest.fixture
def lab(tmp_path: Path, netns: str) -> Iterator[ExampleLab]:
    """The example engine, served by a daemon that the first call starts."""
    with lab_plugin.installed(tmp_path, "daemon") as plugin:
        yield example_lab.make(plugin, tmp_path, netns)
