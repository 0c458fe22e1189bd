"""The executable is installed atomically and bound to its interpreter."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from core.example_lab import make_venv
from userspace_cni.cni.errors import CniError
from userspace_cni.config.settings import DaemonSettings, Settings
from userspace_cni.install import compare, executables, find_shim, install, shim, unit

if TYPE_CHECKING:
    from core.example_lab import ExampleLab
    from lab.plugin import Plugin

pytestmark = [
    pytest.mark.one_process("it is about the launcher of the one-process program"),
    pytest.mark.own_process("it is about the launcher"),
]

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


def _files(program: bytes | None, directory: Path, settings: Settings) -> dict[str, bytes | None]:
    return executables(directory, program=program, settings=settings)


@pytest.fixture
def program() -> bytes:
    program = find_shim()
    assert program is not None
    return program


@pytest.fixture
def bin_dir(tmp_path: Path) -> Path:
    directory = tmp_path / "cni"
    directory.mkdir()
    return directory


def _command(plugin: Plugin, *options: str | Path) -> subprocess.CompletedProcess[str]:
    """Run ``userspace-cni install`` with the settings of *plugin*."""
    return subprocess.run(
        [Path(sys.executable).with_name("userspace-cni"), "install", *options],
        env={**os.environ, **plugin.env},
        capture_output=True,
        check=False,
        text=True,
    )


def _names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ([], ["userspace", "userspace-standalone"]),
        (["--launcher=shim"], ["userspace", "userspace-standalone"]),
        (["--no-fallback"], ["userspace"]),
        (["--launcher=python"], ["userspace"]),
    ],
)
def test_the_command_installs_says_where_and_checks(
    plugin: Plugin, bin_dir: Path, options: list[str], names: list[str]
) -> None:
    options = [*options, f"--cni-bin-dir={bin_dir}"]
    executable = bin_dir / "userspace"
    for _ in range(2):
        done = _command(plugin, *options)
        assert (done.returncode, done.stdout) == (0, f"{executable}\n"), done.stderr
    assert _names(bin_dir) == names
    assert {path.stat().st_mode & 0o7777 for path in bin_dir.iterdir()} == {0o755}
    assert "1.1.0" in _version(executable, {})
    assert executable.read_bytes().startswith(b"#!" if "python" in options[0] else b"\x7fELF")
    queue = plugin.state_dir / "queue"
    if "python" in options[0]:
        assert not queue.exists()
    else:
        assert queue.stat().st_mode & 0o7777 == 0o700
    same = _command(plugin, "--check", *options)
    assert (same.returncode, same.stdout) == (0, "")


def test_a_check_tells_what_differs_and_changes_nothing(plugin: Plugin, bin_dir: Path) -> None:
    where = f"--cni-bin-dir={bin_dir}"
    absent = _command(plugin, "--check", where)
    assert absent.returncode == 1
    assert f"{bin_dir}/userspace: expected sha256 " in absent.stdout
    assert absent.stdout.count("found -") == 2
    assert _names(bin_dir) == []

    _command(plugin, where)
    executable = bin_dir / "userspace"
    whole = executable.read_bytes()
    executable.write_bytes(whole[:1000])
    torn = _command(plugin, "--check", where)
    assert torn.returncode == 1
    expected, found = (hashlib.sha256(content).hexdigest() for content in (whole, whole[:1000]))
    assert f"{executable}: expected sha256 {expected}, found {found}\n" in torn.stdout
    assert "install again" in torn.stdout
    assert executable.read_bytes() == whole[:1000]

    executable.write_bytes(whole)
    plugin.settings("[daemon]\ndeadline = 7\n")
    other_settings = _command(plugin, "--check", where)
    assert other_settings.returncode == 1
    left_over = _command(plugin, "--check", where, "--launcher=python")
    assert f"{bin_dir}/userspace-standalone: expected sha256 -, found " in left_over.stdout


@pytest.mark.parametrize("option", ["--no-fallback", "--launcher=python"])
def test_a_fallback_of_an_earlier_installation_is_removed(
    plugin: Plugin, bin_dir: Path, option: str
) -> None:
    _command(plugin, f"--cni-bin-dir={bin_dir}")
    assert _command(plugin, f"--cni-bin-dir={bin_dir}", option).returncode == 0
    assert _names(bin_dir) == ["userspace"]


def test_a_directory_that_is_missing_is_made(plugin: Plugin, tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        done = _command(plugin, "--cni-bin-dir", tmp_path / "opt/cni/bin")
    finally:
        os.umask(before)
    assert (done.returncode, done.stdout) == (0, f"{tmp_path}/opt/cni/bin/userspace\n"), done.stderr
    for level in ("opt", "opt/cni", "opt/cni/bin"):
        assert (tmp_path / level).stat().st_mode & 0o7777 == 0o755


def test_what_is_no_directory_is_named(plugin: Plugin, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    failed = _command(plugin, "--cni-bin-dir", tmp_path / "file/bin")
    assert failed.returncode == 1
    assert str(tmp_path / "file") in failed.stderr
    assert "Traceback" not in failed.stderr


def test_the_unit_names_this_virtual_environment(plugin: Plugin, tmp_path: Path) -> None:
    options = ("--cni-bin-dir", tmp_path / "bin", "--unit-dir", tmp_path / "units")
    assert _command(plugin, "--check", *options).returncode == 1
    done = _command(plugin, *options)
    path = tmp_path / "units/userspace-cni.service"
    assert done.stdout.splitlines()[-1] == str(path), done.stderr
    assert path.stat().st_mode & 0o7777 == 0o644
    (command,) = re.findall("^ExecStart=(.*)$", path.read_text(), re.MULTILINE)
    program, *arguments = shlex.split(command)
    helped = subprocess.run(
        [program, *arguments, "--help"], env={}, check=True, capture_output=True, text=True
    )
    assert helped.stdout.startswith("usage: userspace-cni daemon")
    assert _command(plugin, "--check", *options).returncode == 0
    path.write_text(path.read_text() + "# changed\n")
    assert f"{path}: expected sha256" in _command(plugin, "--check", *options).stdout


def test_a_program_of_any_path_is_one_word_to_systemd() -> None:
    text = unit(Path('/a "b"/50%/$HOME/\\n/userspace-cni')).decode()
    assert '\nExecStart="/a \\"b\\"/50%%/$$HOME/\\\\n/userspace-cni" daemon\n' in text


def test_the_shim_has_the_nodes_settings(program: bytes, bin_dir: Path, tmp_path: Path) -> None:
    settings = Settings(
        state_dir=tmp_path / "state",
        run_dir=tmp_path,
        daemon=DaemonSettings(socket=tmp_path / "the.sock", deadline=1.5),
    )
    content = _files(program, bin_dir, settings)["userspace"]
    assert content is not None
    assert len(content) == len(program)
    for path in (tmp_path / "the.sock", tmp_path / "state/queue", bin_dir / "userspace-standalone"):
        assert os.fsencode(path) + b"\0" in content
    assert (1500).to_bytes(4, sys.byteorder) in content
    assert (120000).to_bytes(4, sys.byteorder) in program
    assert executables(bin_dir, program=content, settings=settings)["userspace"] == content


def test_a_path_that_is_too_long_for_the_shim_is_refused(program: bytes, bin_dir: Path) -> None:
    def settings(socket: int = 20, state: int = 20) -> Settings:
        return Settings(
            state_dir=Path("/" + "s" * (state - 1)),
            daemon=DaemonSettings(socket=Path("/" + "s" * (socket - 1))),
        )

    _files(program, bin_dir, settings(socket=107, state=255 - len("/queue")))
    with pytest.raises(CniError, match=r"socket: /s+:.* has 108 bytes, the shim accepts 107"):
        _files(program, bin_dir, settings(socket=108))
    with pytest.raises(CniError, match=r"queue: /s+/queue:.* has 256 bytes, the shim accepts 255"):
        _files(program, bin_dir, settings(state=256 - len("/queue")))
    with pytest.raises(CniError, match="launcher: /sss"):
        _files(program, Path("/" + "s" * 255), Settings())


def test_a_shim_that_nobody_installed_has_the_default_settings(program: bytes) -> None:
    assert shim(program, Settings(), None) == program


@pytest.mark.parametrize("copies", [0, 2])
def test_a_shim_of_another_version_is_refused(program: bytes, bin_dir: Path, copies: int) -> None:
    with pytest.raises(CniError, match="not of this version"):
        _files(program * copies, bin_dir, Settings())


def test_the_directory_may_be_relative(
    program: bytes, bin_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(bin_dir)
    assert _files(program, Path(), Settings()) == _files(program, bin_dir, Settings())


def test_drafts_of_installations_that_were_killed_are_removed(bin_dir: Path) -> None:
    """An installation that is killed leaves at most a draft, which the next one removes."""
    script = f"""
import os, signal
from pathlib import Path
from userspace_cni.install import install
os.rename = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
install(Path({str(bin_dir)!r}))
"""
    killed = subprocess.run([sys.executable, "-c", script], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert len(_names(bin_dir)) == 1
    (bin_dir / ".userspace-of-others").touch()
    install(bin_dir)
    assert _names(bin_dir) == [".userspace-of-others", "userspace"]


def test_the_shim_is_not_demanded_where_it_is_not_installed(tmp_path: Path) -> None:
    absent = {"userspace_cni_shim": "raise ModuleNotFoundError"}
    interpreter = make_venv(tmp_path / "venv", absent, {})
    script = "from userspace_cni.cli import main; raise SystemExit(main())"
    command: list[str | Path] = [interpreter, "-c", script, "install", "--cni-bin-dir", tmp_path]
    forced = subprocess.run(
        [*command, "--launcher=shim"], capture_output=True, check=False, text=True
    )
    assert forced.returncode == 1
    assert "pip install 'userspace-cni[shim]'" in forced.stderr
    subprocess.run(command, check=True, capture_output=True)
    assert (tmp_path / "userspace").read_text().startswith("#!")


def test_an_installation_that_fails_leaves_the_old_one_and_no_draft(tmp_path: Path) -> None:
    (tmp_path / "userspace").mkdir()
    with pytest.raises(OSError, match="directory"):
        install(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["userspace"]


@pytest.mark.parametrize("kind", ["launcher", "shim"])
def test_installing_does_not_disturb_those_who_execute(
    program: bytes, tmp_path: Path, kind: str
) -> None:
    files = _files(program if kind == "shim" else None, tmp_path, Settings())
    executable = install(tmp_path, files)
    end = threading.Event()

    def replace() -> None:
        while not end.is_set():
            install(tmp_path, files)

    thread = threading.Thread(target=replace)
    thread.start()
    try:
        for _ in range(50):
            assert "1.1.0" in _version(executable, {})
    finally:
        end.set()
        thread.join()
    assert compare(tmp_path, files) == []
    assert len(_names(tmp_path)) == len([name for name in files if files[name]])


def test_a_shim_that_runs_may_be_replaced(program: bytes, tmp_path: Path) -> None:
    """The kernel refuses to write to a running program (ETXTBSY)."""
    files = _files(program, tmp_path, Settings())
    executable = install(tmp_path, files)
    with subprocess.Popen(
        [executable],
        env={"CNI_COMMAND": "VERSION"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as running:
        with pytest.raises(OSError, match="busy"):
            executable.write_bytes(b"")
        install(tmp_path, files)
        out, _ = running.communicate(b"")
    assert json.loads(out)["cniVersion"] == "1.1.0"


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
    """Kernels split the first line of a script at white space; old ones cut it at 127 bytes."""
    place = tmp_path / directory
    place.parent.mkdir(exist_ok=True)
    interpreter = make_venv(place, {}, {})
    executable = install(lab.plugin.bin_dir, executables(lab.plugin.bin_dir, str(interpreter)))
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
