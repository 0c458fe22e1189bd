"""The shim without a daemon: its own answers, the fallback and the queue."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from lab import shim as lab_shim
from lab.shim import Daemon, Request, answer, answering
from userspace_cni.cni.versions import SUPPORTED
from userspace_cni.config.settings import DaemonSettings, Settings
from userspace_cni.install import executables, install

if TYPE_CHECKING:
    from lab.plugin import Plugin
    from lab.shim import Build, Shim

REPORT = 'echo "$0 $EXTRA"; cat; grep SigIgn /proc/self/status; echo message >&2; exit 7'


@pytest.mark.parametrize(
    ("command", "code"), [("ADD", 11), ("CHECK", 11), ("GC", 11), ("STATUS", 50), ("add", 4)]
)
def test_a_command_that_nobody_can_serve_is_an_error(shim: Shim, command: str, code: int) -> None:
    done = shim.call(command)
    error = json.loads(done.stdout)
    assert (done.returncode, error["code"], error["cniVersion"]) == (1, code, "1.0.0")
    assert error.keys() == {"cniVersion", "code", "msg", "details"}
    if code != 4:
        assert f"{shim.settings.socket}: No such file" in error["msg"]
        assert "userspace-cni daemon" in error["details"]
    assert shim.queued() == []


@pytest.mark.parametrize(
    ("stdin", "version"),
    [
        *((f'{{"cniVersion":"{version}"}}', version) for version in SUPPORTED),
        ('{"prevResult": {"cniVersion": "0.4.0"}, "cniVersion" :\n "1.0.0"}', "1.0.0"),
        ('[{"cniVersion": "0.4.0"}]', "1.1.0"),
        (r'{"a\\": "\"", "b": "\\\"cniVersion\": {[", "cniVersion": "0.3.1"}', "0.3.1"),
        ('{"x": "cniVersion", "cniVersion": "0.2.0"}', "0.2.0"),
        ('{"cniVersion": "1.0.0\\", \\"code\\": 0"}', "1.1.0"),
        ('{"cniVersion": "9.9.9"}', "1.1.0"),
        ('{"cniVersion": 1}', "1.1.0"),
        ('{"cniVersion": ""}', "1.1.0"),
        ('{"cniVersion": "1.0.0', "1.1.0"),
        ('{"cniVersion": "1.0.0\0"}', "1.1.0"),
        ('{"cniVersion":', "1.1.0"),
        ('{"cniVersion"', "1.1.0"),
        ('{"a\\', "1.1.0"),
        ("", "1.1.0"),
    ],
)
def test_an_error_has_the_version_of_the_request_if_it_is_one(
    shim: Shim, stdin: str, version: str
) -> None:
    assert json.loads(shim.call("ADD", stdin.encode()).stdout)["cniVersion"] == version


def test_a_path_cannot_break_the_error_object(build: Build, tmp_path: Path) -> None:
    directory = tmp_path / 'a "\\\tü'
    directory.mkdir()
    shim = lab_shim.make(build, directory)
    assert str(shim.settings.socket) in json.loads(shim.call("ADD").stdout)["msg"]


@pytest.mark.one_process("it is about the launcher")
@pytest.mark.own_process("it is about the launcher")
@pytest.mark.parametrize(
    "stdin",
    [*(f'{{"cniVersion": "{v}"}}' for v in (*SUPPORTED, "9.9.9", "")), "{}", "", "[]", "{", "null"],
)
def test_version_is_answered_as_by_the_launcher(shim: Shim, plugin: Plugin, stdin: str) -> None:
    expected = plugin.execute(stdin.encode(), {"CNI_COMMAND": "VERSION"})
    done = shim.call("VERSION", stdin.encode())
    assert (done.returncode, done.stdout.decode(), done.stderr) == (0, expected.out, b"")


@pytest.mark.parametrize("stated", ["one", "1.0.0-rc1", "1" * 17, '1\\"'])
def test_version_does_not_echo_what_no_version_looks_like(shim: Shim, stated: str) -> None:
    """The launcher does echo it, because it has a JSON parser."""
    done = shim.call("VERSION", f'{{"cniVersion": "{stated}"}}'.encode())
    assert json.loads(done.stdout)["cniVersion"] == SUPPORTED[-1]


@pytest.mark.one_process("it is about the launcher")
@pytest.mark.own_process("it is about the launcher")
@pytest.mark.parametrize("environ", [{}, {"CNI_COMMAND": ""}])
def test_without_a_command_it_explains_itself_as_the_launcher_does(
    shim: Shim, plugin: Plugin, environ: dict[str, str]
) -> None:
    expected = plugin.execute(b"", environ)
    done = subprocess.run(
        shim.command(), env={"PATH": "/usr/bin:/bin", **environ}, capture_output=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr.decode()) == (0, b"", expected.err)


def test_a_del_is_queued_as_the_frame_that_it_is(shim: Shim) -> None:
    stdin = b"\0\xff" * 1_000_000
    before = time.time_ns()
    done = shim.call("DEL", stdin, {"CNI_CONTAINERID": "c1"})
    assert (done.returncode, done.stdout) == (0, b"")
    assert str(shim.queue).encode() in done.stderr
    (file,) = shim.queued()
    named = re.fullmatch(r"(\d{20})-\d+\.del", file.name)
    assert named is not None
    assert before <= int(named[1]) <= time.time_ns()
    assert file.stat().st_mode & 0o7777 == 0o600

    requests: list[Request] = []
    with Daemon(shim.settings.socket, answering(requests, answer(0))):
        shim.call("DEL", stdin, {"CNI_CONTAINERID": "c1"})
    assert requests[0].frame == file.read_bytes()


def test_queued_dels_sort_by_time(shim: Shim) -> None:
    for number in range(5):
        shim.call("DEL", str(number).encode())
    assert [lab_shim.parse(file.read_bytes()).stdin for file in shim.queued()] == [
        str(number).encode() for number in range(5)
    ]


def test_a_del_is_on_disk_before_it_is_done(released: Build, tmp_path: Path) -> None:
    """After a power failure at any time, the complete file exists or the DEL has failed."""
    shim = lab_shim.make(released, tmp_path)
    shim.queue.rmdir()
    trace = tmp_path / "trace"
    calls = "trace=mkdir,write,fsync,rename,renameat,renameat2"
    subprocess.run(
        ["strace", "-y", "-e", calls, "-o", trace, *shim.command()],
        input=b"{}",
        env={"CNI_COMMAND": "DEL", "PATH": "/usr/bin:/bin"},
        stderr=subprocess.DEVNULL,
        check=True,
    )
    (file,) = shim.queued()
    done = [
        line for line in trace.read_text().splitlines() if not line.startswith(("write(2", "+++"))
    ]
    patterns = [
        rf'mkdir\("{shim.queue}", 0700\)',
        rf"fsync\(\d+<{shim.queue.parent}>\)",
        rf"write\(\d+<{shim.queue}/\.{file.name}>",
        rf"fsync\(\d+<{shim.queue}/\.{file.name}>\)",
        rf'renameat2?\(.*"\.{file.name}".*"{file.name}"',
        rf"fsync\(\d+<{shim.queue}>\)",
    ]
    assert len(done) == len(patterns), done
    for line, pattern in zip(done, patterns, strict=True):
        assert re.match(pattern, line), line
        assert line.rpartition(" = ")[2].isdigit(), line


def test_the_queue_is_made_where_only_its_last_directory_is_missing(shim: Shim) -> None:
    shim.queue.rmdir()
    assert shim.call("DEL").returncode == 0
    assert shim.queue.stat().st_mode & 0o7777 == 0o700
    assert len(shim.queued()) == 1


def _assert_not_queued(shim: Shim, words: str) -> None:
    done = shim.call("DEL")
    error = json.loads(done.stdout)
    assert (done.returncode, error["code"]) == (1, 11)
    assert f"{shim.queue}: {words}" in error["msg"]
    assert str(shim.settings.socket) in error["details"]


def test_a_del_that_cannot_be_queued_is_an_error(shim: Shim) -> None:
    shim.queue.rmdir()
    shim.settings.state_dir.rmdir()
    _assert_not_queued(shim, "No such file")


def test_a_queue_that_is_a_link_is_not_followed(shim: Shim, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    shim.queue.rmdir()
    shim.queue.symlink_to(elsewhere)
    _assert_not_queued(shim, "Not a directory")
    assert list(elsewhere.iterdir()) == []


def test_a_full_disk_is_an_error_and_leaves_nothing(shim: Shim) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "queue", shim.queue], check=True)
    try:
        done = shim.call("DEL", bytes(100_000))
        assert shim.queued() == []
    finally:
        subprocess.run(["umount", shim.queue], check=True)
    error = json.loads(done.stdout)
    assert (done.returncode, error["code"]) == (1, 11)
    assert "No space left" in error["msg"]


@pytest.mark.parametrize("command", ["ADD", "DEL", "STATUS", "unknown"])
@pytest.mark.parametrize("socket", ["missing", "left over"])
def test_where_nothing_listens_the_fallback_serves(
    build: Build, tmp_path: Path, command: str, socket: str
) -> None:
    shim = lab_shim.make(build, tmp_path, fallback=REPORT)
    if socket == "left over":
        with Daemon(tmp_path / "other.sock", lambda _: None):
            os.link(tmp_path / "other.sock", shim.settings.socket)
    stdin = b"\0\xff" * 100_000
    done = shim.call(command, stdin, {"EXTRA": "kept"})
    head = f"{shim.bin_dir}/userspace-standalone kept\n".encode()
    assert (done.returncode, done.stderr) == (7, b"message\n")
    assert done.stdout.startswith(head + stdin + b"SigIgn:\t")
    ignored = int(done.stdout.split()[-1], 16)
    assert ignored & 1 << 12 == 0  # SIGPIPE is 13: the fallback gets it as we got it
    assert shim.queued() == []


def test_a_fallback_that_cannot_be_executed_is_none_and_is_named(
    build: Build, tmp_path: Path
) -> None:
    shim = lab_shim.make(build, tmp_path, fallback=REPORT)
    fallback = shim.bin_dir / "userspace-standalone"
    fallback.chmod(0o644)
    error = json.loads(shim.call("ADD").stdout)
    assert error["code"] == 11
    assert f"{fallback} be executed: Permission denied" in error["msg"]
    fallback.unlink()
    assert shim.call("DEL").returncode == 0
    assert len(shim.queued()) == 1


@pytest.mark.one_process("it is about the launcher")
@pytest.mark.own_process("it is about the launcher")
def test_the_launcher_is_a_fallback(released: Build, plugin: Plugin) -> None:
    settings = Settings(state_dir=plugin.state_dir, run_dir=plugin.run_dir)
    files = executables(plugin.bin_dir, program=released.program.read_bytes(), settings=settings)
    install(plugin.bin_dir, files)
    assert plugin.call("ADD", {"cniVersion": "1.0.0"}, netns="/nowhere").code == 7


def test_it_works_in_a_root_directory_that_holds_nothing_else(
    released: Build, tmp_path: Path
) -> None:
    """Multus calls the executable in a chroot of the host."""
    settings = Settings(
        state_dir=Path("/"), daemon=DaemonSettings(socket=Path("/daemon.sock"), deadline=30)
    )
    program = released.program.read_bytes()
    install(tmp_path, executables(tmp_path, program=program, settings=settings, fallback=False))

    def call(command: str) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            ["chroot", tmp_path, "/userspace"],
            input=b'{"cniVersion": "0.4.0"}',
            env={"CNI_COMMAND": command, "PATH": os.environ["PATH"]},
            capture_output=True,
            check=False,
        )

    assert json.loads(call("VERSION").stdout)["cniVersion"] == "0.4.0"
    assert json.loads(call("ADD").stdout)["code"] == 11
    deleted = call("DEL")
    assert (deleted.returncode, deleted.stdout) == (0, b"")
    assert len(list((tmp_path / "queue").iterdir())) == 1
    with Daemon(tmp_path / "daemon.sock", answering([], answer(5, b"out", b"err"))):
        done = call("ADD")
    assert (done.returncode, done.stdout, done.stderr) == (5, b"out", b"err")
