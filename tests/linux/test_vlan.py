"""VLAN tests, which run in a kernel with VLAN filtering; see vlan_cases.py."""

from __future__ import annotations

import sys
from pathlib import Path

from lab import uml

MODULES = ("ipv6", "bridge", "8021q", "veth")


def test_vlan_cases(tmp_path: Path) -> None:
    here = Path(__file__).parent
    status, output = uml.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            f"--basetemp={tmp_path / 'pytest'}",
            str(here / "vlan_cases.py"),
        ],
        MODULES,
        here.parents[1],
        tmp_path,
        timeout=100,
    )
    assert status == 0, output
    assert " passed" in output
    assert "skipped" not in output
