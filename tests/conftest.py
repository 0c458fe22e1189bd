"""Fixtures for every test."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from lab import plugin as lab_plugin

if TYPE_CHECKING:
    from pathlib import Path

    from lab.plugin import Plugin


@pytest.fixture
def plugin(tmp_path: Path) -> Plugin:
    """Return the executable under test, installed in a place of its own."""
    return lab_plugin.make(tmp_path)
