"""Fixtures for every test."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from lab import plugin as lab_plugin

if TYPE_CHECKING:
    from pathlib import Path

    from lab.plugin import Plugin


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Drop what was parametrised with nothing, which pytest would call skipped."""
    empty = [item for item in items if "NOTSET" in item.name]
    if empty:
        config.hook.pytest_deselected(items=empty)
        items[:] = [item for item in items if item not in empty]


@pytest.fixture
def plugin(tmp_path: Path) -> Plugin:
    """Return the executable under test, installed in a place of its own."""
    return lab_plugin.make(tmp_path)
