"""Installed packages match the pins, which the oldest supported Python can use."""

from __future__ import annotations

import re
from importlib.metadata import Distribution, distributions, metadata
from pathlib import Path

from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

CONSTRAINTS = Path(__file__).parents[2] / "constraints.txt"
#: Packages in a new virtualenv.
VIRTUALENV = {"pip", "setuptools"}


def oldest_python() -> str:
    """Return the Python that ``requires-python`` starts with."""
    required = metadata("userspace-cni")["Requires-Python"]
    match = re.fullmatch(r">=(\d+\.\d+\.\d+)", required)
    assert match, required
    return match[1]


def others() -> dict[str, Distribution]:
    """Return the distributions in this virtualenv that are not ours."""
    found = {canonicalize_name(each.name): each for each in distributions()}
    return {
        name: each
        for name, each in found.items()
        if name not in VIRTUALENV and not (each.read_text("direct_url.json") or "")
    }


def pins() -> dict[str, str]:
    lines = [line for line in CONSTRAINTS.read_text().splitlines() if not line.startswith("#")]
    pinned = (line.split("==") for line in lines)
    return {canonicalize_name(name): version for name, version in pinned}


def test_what_is_installed_is_what_is_pinned() -> None:
    assert {name: each.version for name, each in others().items()} == pins()


def test_the_oldest_python_can_have_all_of_it() -> None:
    oldest = oldest_python()
    required = {
        f"{name} {each.version}": each.metadata["Requires-Python"] or ""
        for name, each in others().items()
    }
    assert {
        name: python for name, python in required.items() if oldest not in SpecifierSet(python)
    } == {}
