"""Engines found by entry point: missing ones, broken ones, and the others beside them."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest
from attrs import evolve

from core import example_lab
from lab.plugin import clean_environ
from userspace_cni.engine import CONTAINER_ENGINES, HOST_ENGINES
from userspace_cni.install import executables, install

if TYPE_CHECKING:
    from pathlib import Path

    from core.example_lab import ExampleLab

_MODULES = {
    "lab_good": "from example_engine import ExampleHostEngine as Host\n",
    "lab_syntax": "def broken(:\n",
    "lab_import": "import a_library_that_nobody_has\n",
    "lab_raises": "raise RuntimeError('the library is too old')\n",
    "lab_kind": "Class = dict\ninstance = 7\n",
}
_ENGINES = """
good = lab_good:Host
syntax = lab_syntax:Host
import = lab_import:Host
raises = lab_raises:Host
attribute = lab_good:Missing
module = lab_nowhere:Host
kind = lab_kind:Class
instance = lab_kind:instance
"""


@pytest.fixture(scope="session")
def crowded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An interpreter with many engines, most of them broken."""
    return example_lab.make_venv(
        tmp_path_factory.mktemp("crowded") / "venv",
        _MODULES,
        {HOST_ENGINES: _ENGINES, CONTAINER_ENGINES: "good = example_engine:ExampleContainerEngine"},
    )


@pytest.fixture
def crowded_lab(lab: ExampleLab, crowded: Path) -> ExampleLab:
    install(lab.plugin.bin_dir, executables(lab.plugin.bin_dir, str(crowded)))
    return lab


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("syntax", "SyntaxError"),
        ("import", "No module named 'a_library_that_nobody_has'"),
        ("raises", "RuntimeError: the library is too old"),
        ("attribute", "Missing"),
        ("module", "lab_nowhere"),
        ("kind", "is not a subclass of HostEngine"),
        ("instance", "7 is not a subclass of HostEngine"),
    ],
)
def test_a_broken_engine_says_why(crowded_lab: ExampleLab, name: str, says: str) -> None:
    conf = evolve(crowded_lab, engine=name).conf()
    outcome = crowded_lab.call("ADD", conf)
    assert outcome.code == 101
    assert f"host engine {name!r}" in outcome.text
    assert says in outcome.text
    status = crowded_lab.call("STATUS", conf)
    assert status.code == 50
    assert says in status.text
    crowded_lab.assert_clean()


def test_the_others_stay_usable(crowded_lab: ExampleLab) -> None:
    crowded_lab.call("STATUS", crowded_lab.conf()).succeeded()
    assert crowded_lab.add(crowded_lab.conf())["interfaces"]
    good = {"engine": "good", "iftype": "note"}
    assert crowded_lab.call("STATUS", crowded_lab.conf(host=good)).status == 0


def test_an_engine_that_is_not_installed_is_told_with_those_that_are(
    crowded_lab: ExampleLab,
) -> None:
    outcome = crowded_lab.call("ADD", crowded_lab.conf(host={"engine": "nope"}))
    assert outcome.code == 100
    assert "host engine 'nope' is not installed" in outcome.text
    assert "example" in outcome.text
    assert "good" in outcome.text


def test_the_command_lists_all_and_marks_the_broken(crowded: Path) -> None:
    done = subprocess.run(
        [crowded, "-c", "from userspace_cni.cli import main; main(['engines'])"],
        env=clean_environ(),
        capture_output=True,
        check=True,
        text=True,
    )
    lines = {tuple(line.split()[:2]): line for line in done.stdout.splitlines()}
    assert "lab-extra 1.0  ports are files" in lines["host", "good"]
    assert "BROKEN" not in lines["host", "example"]
    for name in ("syntax", "import", "raises", "attribute", "module", "kind", "instance"):
        assert "BROKEN: " in lines["host", name]
    assert ("container", "example") in lines
