"""The executable: placed atomically, bound to its interpreter, whoever calls it from wherever."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from core.example_lab import make_venv
from userspace_cni.install import install

if TYPE_CHECKING:
    from core.example_lab import ExampleLab

pytestmark = pytest.mark.one_process("it is about the launcher of the one-process program")

BAD_MODULE = "raise SystemExit('the caller reached into the plugin')\n"


def _version(executable: Path, environ: dict[str, str], cwd: Path | None = None) -> list[str]:
    done = subprocess.run(
        [executable],
        input=b'{"cniVersion": "1.0.0"}',
        env={"CNI_COMMAND": "VERSION", **environ},
        cwd=cwd,
        capture_output=True,
        check=True,
    )
    answer = json.loads(done.stdout)
    assert answer["cniVersion"] == "1.0.0"
    versions = answer["supportedVersions"]
    assert isinstance(versions, list)
    return versions


def test_the_command_installs_and_says_where(tmp_path: Path) -> None:
    command: list[str | Path] = [
        Path(sys.executable).with_name("userspace-cni"),
        "install",
        "--cni-bin-dir",
    ]
    done = subprocess.run([*command, tmp_path], capture_output=True, check=True, text=True)
    executable = tmp_path / "userspace"
    assert done.stdout == f"{executable}\n"
    assert executable.stat().st_mode & 0o7777 == 0o755
    assert [path.name for path in tmp_path.iterdir()] == ["userspace"]
    assert "1.1.0" in _version(executable, {})
    missing = tmp_path / "missing"
    failed = subprocess.run([*command, missing], capture_output=True, check=False, text=True)
    assert failed.returncode == 1
    assert str(missing) in failed.stderr
    assert "Traceback" not in failed.stderr


def test_an_installation_that_fails_leaves_the_old_one_and_no_draft(tmp_path: Path) -> None:
    (tmp_path / "userspace").mkdir()
    with pytest.raises(OSError, match="directory"):
        install(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["userspace"]


def test_installing_does_not_disturb_those_who_execute(tmp_path: Path) -> None:
    executable = install(tmp_path)
    end = threading.Event()

    def replace() -> None:
        while not end.is_set():
            install(tmp_path)

    thread = threading.Thread(target=replace)
    thread.start()
    try:
        for _ in range(20):
            assert "1.1.0" in _version(executable, {})
    finally:
        end.set()
        thread.join()
    assert [path.name for path in tmp_path.iterdir()] == ["userspace"]


@pytest.mark.parametrize(
    "name",
    ["PYTHONPATH", "PYTHONHOME", "PYTHONSTARTUP", "PYTHONUSERBASE", "PYTHONINSPECT", "PATH"],
)
def test_the_callers_environment_does_not_reach_the_interpreter(
    lab: ExampleLab, tmp_path: Path, name: str
) -> None:
    garbage = tmp_path / "garbage"
    garbage.mkdir()
    for module in ("json", "attrs", "sitecustomize", "usercustomize", "userspace_cni", "os"):
        (garbage / f"{module}.py").write_text(BAD_MODULE)
    value = "" if name == "PATH" else str(garbage)
    result = lab.call("ADD", lab.conf(), environ={name: value}).result
    assert result["interfaces"][0]["name"] == "eth0"


def test_the_callers_directory_does_not_reach_the_interpreter(
    lab: ExampleLab, tmp_path: Path
) -> None:
    for module in ("json", "attrs", "userspace_cni"):
        (tmp_path / f"{module}.py").write_text(BAD_MODULE)
        (lab.plugin.bin_dir / f"{module}.py").write_text(BAD_MODULE)
    assert "1.1.0" in _version(lab.plugin.executable, {}, cwd=tmp_path)


def test_an_empty_environment_is_enough(lab: ExampleLab) -> None:
    done = subprocess.run([lab.plugin.executable], env={}, capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (0, b"")
    assert b"CNI" in done.stderr


@pytest.mark.parametrize(
    "directory",
    [
        "venv",
        "a venv with spaces",
        "a 'quoted' \"venv\" $HOME `id` \\",
        "v" * 120,
        "ü/" + "v" * 120,
    ],
    ids=["plain", "spaces", "quotes", "long", "long and not ASCII"],
)
def test_the_interpreter_may_have_any_path(lab: ExampleLab, tmp_path: Path, directory: str) -> None:
    """A first line of a script is cut at 127 bytes by old kernels and split at white space."""
    place = tmp_path / directory
    place.parent.mkdir(exist_ok=True)
    interpreter = make_venv(place, {}, {})
    executable = install(lab.plugin.bin_dir, str(interpreter))
    first = executable.read_bytes().partition(b"\n")[0]
    assert len(first) <= 127
    for name in ("eth0", "eth1"):
        lab.add(lab.conf(), ifname=name, environ={"PATH": "", "PYTHONPATH": "/nowhere"})
    outcome = lab.call("ADD", lab.conf(), ifname="eth1")
    assert outcome.code == 103
    done = subprocess.run(
        [executable],
        env={"CNI_COMMAND": "VERSION"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=True,
    )
    assert done.stderr == b""


def test_the_executable_may_be_called_by_a_link(tmp_path: Path) -> None:
    executable = install(tmp_path)
    os.symlink(executable, tmp_path / "another-name")
    assert "1.1.0" in _version(tmp_path / "another-name", {})
