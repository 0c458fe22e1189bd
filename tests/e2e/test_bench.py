"""The benchmark runs, measures every section and can be drawn. Speed is not tested."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree as ET

import pytest

from lab.wheels import ROOT

if TYPE_CHECKING:
    from pathlib import Path

CONTENDERS = {"bridge (Go)", "userspace, daemon"}


@pytest.fixture(scope="module")
def figures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The figures of a short run of the benchmark."""
    file = tmp_path_factory.mktemp("bench") / "figures.json"
    short = ("--rounds", "2", "--attachments", "5", "--idle", "0.1")
    subprocess.run(
        [sys.executable, ROOT / "bench" / "linux.py", *short, "--json", file],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    return file


def test_every_section_is_measured_without_a_failure(figures: Path) -> None:
    found: dict[str, Any] = json.loads(figures.read_text())
    assert not any(found["failures"].values()), found["failures"]
    assert set(found["sections"]) == {"calls", "start", "phases", "at_once", "attachments"}
    for section, rows in found["sections"].items():
        assert rows, section
        assert all(row["n"] and row["max"] >= row["median"] >= row["min"] >= 0 for row in rows)
    for section in ("calls", "at_once"):
        measured = {
            (row["what"], row["contender"])
            for row in found["sections"][section]
            if row["contender"] in CONTENDERS
        }
        assert measured == {(what, name) for what in ("ADD", "DEL") for name in CONTENDERS}


def test_the_figures_are_drawn(figures: Path, tmp_path: Path) -> None:
    image = tmp_path / "chart.svg"
    subprocess.run([sys.executable, ROOT / "bench" / "chart.py", figures, image], check=True)
    drawn = image.read_text()
    assert ET.fromstring(drawn).tag == "{http://www.w3.org/2000/svg}svg"
    assert "src=" not in drawn
    assert "href=" not in drawn
    for name in CONTENDERS:
        assert name in drawn
