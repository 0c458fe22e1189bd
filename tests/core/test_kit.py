"""The kit for authors of engines detects each rule that an engine breaks."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from userspace_cni.testing import EngineContract

_EXAMPLE = Path(__file__).parents[2] / "docs/example-engine"
_BROKEN = Path(__file__).with_name("broken_engines.py")
_CLASS = re.compile(r'^class (Test\w+)\(Contract\):.*?notices = "(\w+)"', re.MULTILINE | re.DOTALL)
#: The test of the kit that must fail, by class.
_EXPECTED = dict(_CLASS.findall(_BROKEN.read_text()))


@pytest.fixture(scope="module")
def failed(tmp_path_factory: pytest.TempPathFactory) -> set[tuple[str, str]]:
    """Run the expected test of each class; return those that failed."""
    directory = tmp_path_factory.mktemp("broken")
    shutil.copy(_EXAMPLE / "tests/test_contract.py", directory)
    shutil.copy(_BROKEN, directory / "test_broken.py")
    tests = [f"test_broken.py::{name}::{test}" for name, test in _EXPECTED.items()]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-rf", "-p", "no:cacheprovider", *tests],
        cwd=directory,
        env={**os.environ, "PYTHONPATH": str(directory)},  # for processes that it starts
        capture_output=True,
        text=True,
        check=False,
        timeout=160,
    )
    found = set(re.findall(r"^FAILED \S+::(\w+)::(\w+)", done.stdout, re.MULTILINE))
    assert found, done.stdout + done.stderr
    return found


@pytest.mark.parametrize(("name", "test"), sorted(_EXPECTED.items()))
def test_a_broken_rule_is_noticed(failed: set[tuple[str, str]], name: str, test: str) -> None:
    assert (name, test) in failed


def test_each_test_of_the_kit_notices_something() -> None:
    tests = {name for name in vars(EngineContract) if name.startswith("test_")}
    assert set(_EXPECTED.values()) == tests
