"""The shim with a daemon: frames pass unchanged, and a failing daemon is handled."""

from __future__ import annotations

import json
import os
import resource
import socket
import subprocess
import threading
import time
from typing import TYPE_CHECKING

import pytest

from lab import shim as lab_shim
from lab.shim import Daemon, Request, answer, answering, receive

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from lab.shim import Build, Shim

MIB = 1024 * 1024
MARK = 'touch "$(dirname "$0")/executed"'


@pytest.fixture
def impatient(build: Build, tmp_path: Path) -> Shim:
    """A shim that waits one second and has a fallback that it must not execute."""
    return lab_shim.make(build, tmp_path, deadline=1, fallback=MARK)


def _assert_survived(shim: Shim, words: bytes) -> None:
    """Check that ADD and STATUS return errors, DEL is queued and the fallback is not executed."""
    for command, code in (("ADD", 11), ("STATUS", 50)):
        failed = shim.call(command)
        error = json.loads(failed.stdout)
        assert (failed.returncode, error["code"], error["cniVersion"]) == (1, code, "1.0.0")
        assert str(shim.settings.socket) in error["msg"]
        assert words.decode() in error["msg"]
    deleted = shim.call("DEL", b"{}", {"CNI_CONTAINERID": "c1"})
    assert (deleted.returncode, deleted.stdout) == (0, b"")
    assert words in deleted.stderr
    (file,) = shim.queued()
    request = lab_shim.parse(file.read_bytes())
    assert b"CNI_CONTAINERID=c1" in request.environ
    assert request.stdin == b"{}"
    assert not (shim.bin_dir / "executed").exists()


@pytest.mark.parametrize("stdin", [b"", b"{}", b"\0\xff" * (5 * MIB // 2)], ids=len)
@pytest.mark.parametrize(
    ("status", "out", "err"),
    [
        (0, b"", b""),
        (0, b'{"a": "\0\xff"}', b""),
        (1, b"", b"\0\n\0"),
        (255, b"o" * 2 * MIB, b"e" * MIB),
    ],
    ids=["nothing", "stdout", "stderr", "much"],
)
def test_request_and_answer_pass_unchanged(
    shim: Shim, stdin: bytes, status: int, out: bytes, err: bytes
) -> None:
    requests: list[Request] = []
    with Daemon(shim.settings.socket, answering(requests, answer(status, out, err))):
        done = shim.call("ADD", stdin, {"CNI_ARGS": "A=1;B=\n", "EMPTY": "", "RAW": "\udcff"})
    assert (done.returncode, done.stdout, done.stderr) == (status, out, err)
    (request,) = requests
    assert {b"CNI_COMMAND=ADD", b"CNI_ARGS=A=1;B=\n", b"EMPTY=", b"RAW=\xff"} <= {*request.environ}
    assert request.stdin == stdin
    assert shim.queued() == []


@pytest.mark.parametrize("command", ["ADD", "DEL", "CHECK", "GC", "STATUS", "add", "VERSION "])
def test_the_daemon_gets_every_command_but_version(shim: Shim, command: str) -> None:
    requests: list[Request] = []
    with Daemon(shim.settings.socket, answering(requests, answer(3))):
        assert shim.call(command).returncode == 3
        assert json.loads(shim.call("VERSION").stdout)["cniVersion"] == "1.0.0"
    assert len(requests) == 1


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        answer(0)[:-1],
        answer(0, b"{}")[:-1],
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        answer(0, magic=b"icnu"),
        b"ucni" + (2).to_bytes(4, "big") + bytes(12),
        answer(256),
        b"ucni" + bytes((0, 0, 0, 1, 0, 0, 0, 0)) + b"\xff" * 8,
        b"ucni" + bytes((0, 0, 0, 1, 0, 0, 0, 0)) + bytes((0x80, 0, 0, 0)) * 2,
        b"ucni" + bytes((0, 0, 0, 1, 0, 0, 0, 0)) + bytes((1, 0, 0, 1)) + bytes(4),
    ],
    ids=[
        *("nothing", "half a header", "half a body", "HTTP", "another magic", "another version"),
        *("no exit status", "4 GiB", "lengths that add up to 0", "more than 16 MiB"),
    ],
)
def test_a_broken_answer_is_survived(impatient: Shim, frame: bytes) -> None:
    with Daemon(impatient.settings.socket, answering([], frame)):
        _assert_survived(impatient, b"broke off, or gave no valid answer")


def test_a_daemon_that_closes_at_once_is_survived(impatient: Shim) -> None:
    with Daemon(impatient.settings.socket, lambda _: None):
        _assert_survived(impatient, b"broke off")


def _hang(connection: socket.socket) -> None:
    while connection.recv(MIB):
        pass


def _dribble(connection: socket.socket) -> None:
    receive(connection)
    for byte in answer(0, bytes(1000)):
        connection.sendall(bytes([byte]))
        time.sleep(0.05)  # what is tested is time


@pytest.mark.parametrize("serve", [_hang, _dribble], ids=["hangs", "dribbles"])
def test_a_daemon_that_is_too_slow_is_survived(
    impatient: Shim, serve: Callable[[socket.socket], None]
) -> None:
    with Daemon(impatient.settings.socket, serve):
        start = time.monotonic()
        _assert_survived(impatient, b"did not answer in time")
        assert 3 <= time.monotonic() - start < 15


def test_a_daemon_that_does_not_accept_is_survived(impatient: Shim) -> None:
    """The daemon is alive and may accept later, so the fallback must not serve its requests."""
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as first:
        listener.bind(str(impatient.settings.socket))
        listener.listen(0)
        first.connect(str(impatient.settings.socket))  # the backlog is full
        _assert_survived(impatient, b"does not accept")


def test_an_answer_that_comes_before_the_request_was_read_counts(shim: Shim) -> None:
    with Daemon(
        shim.settings.socket, lambda connection: connection.sendall(answer(4, b"too large"))
    ):
        done = shim.call("ADD", bytes(5 * MIB))
    assert (done.returncode, done.stdout) == (4, b"too large")


def test_five_hundred_at_once_are_all_served(released: Build, tmp_path: Path) -> None:
    shim = lab_shim.make(released, tmp_path)
    begin = threading.Event()

    def serve(connection: socket.socket) -> None:
        begin.wait()
        connection.sendall(answer(0, receive(connection).stdin))

    with Daemon(shim.settings.socket, serve, backlog=4):
        processes = []
        for number in range(500):
            process = subprocess.Popen(
                shim.command(),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env={"CNI_COMMAND": "ADD"},
            )
            assert process.stdin is not None
            process.stdin.write(str(number).encode())
            process.stdin.close()
            processes.append(process)
        begin.set()
        for number, process in enumerate(processes):
            assert process.stdout is not None
            with process.stdout:
                assert process.stdout.read() == str(number).encode()
            assert process.wait() == 0


def test_standard_input_may_have_16_mib_and_no_more(shim: Shim) -> None:
    requests: list[Request] = []
    stdin = b'{"cniVersion": "0.4.0"}'.ljust(16 * MIB)
    with Daemon(shim.settings.socket, answering(requests, answer(0))):
        assert shim.call("ADD", stdin).returncode == 0
        refused = shim.call("ADD", stdin + b" ")
    (request,) = requests
    assert request.stdin == stdin
    assert refused.returncode == 1
    assert json.loads(refused.stdout)["code"] == 6
    assert "16 MiB" in json.loads(refused.stdout)["msg"]


def test_an_environment_of_more_than_2_mib_is_refused(released: Build, tmp_path: Path) -> None:
    shim = lab_shim.make(released, tmp_path)
    environ = {f"V{number}": "x" * 100_000 for number in range(22)}
    done = subprocess.run(
        shim.command(),
        env={"CNI_COMMAND": "DEL", **environ},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
        # The kernel takes a quarter of the stack's limit: execve(2).
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_STACK, (64 * MIB, 64 * MIB)),
    )
    assert done.returncode == 1
    assert json.loads(done.stdout)["code"] == 4
    assert shim.queued() == []


def test_a_closed_descriptor_is_not_taken_for_a_pipe(shim: Shim) -> None:
    requests: list[Request] = []
    with Daemon(shim.settings.socket, answering(requests, answer(0, b"{}", b"message"))):
        no_stdin = shim.call("ADD", redirection="<&-")
        no_stdout = shim.call("ADD", redirection=">&-")
        no_stderr = shim.call("ADD", redirection="2>&-")
        nothing = shim.call("ADD", redirection="<&- >&- 2>&-")
    assert json.loads(no_stdin.stdout)["code"] == 5
    assert (no_stdout.returncode, no_stdout.stderr) == (1, b"message")
    assert (no_stderr.returncode, no_stderr.stdout) == (0, b"{}")
    assert nothing.returncode == 1
    assert [request.stdin for request in requests] == [b'{"cniVersion": "1.0.0"}'] * 2


def test_a_reader_that_is_gone_is_a_failure_and_no_signal(shim: Shim) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with Daemon(shim.settings.socket, answering([], answer(0, b"{}"))):
        done = subprocess.run(
            shim.command(),
            input=b"",
            stdout=writer,
            env={"CNI_COMMAND": "ADD", "PATH": "/usr/bin:/bin"},
            check=False,
        )
    os.close(writer)
    assert done.returncode == 1


def test_a_pipe_that_is_full_and_does_not_block_gets_everything(shim: Shim) -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with Daemon(shim.settings.socket, answering([], answer(0, b"x" * MIB))):
        process = subprocess.Popen(
            shim.command(),
            stdin=subprocess.DEVNULL,
            stdout=writer,
            env={"CNI_COMMAND": "ADD", "PATH": "/usr/bin:/bin"},
        )
        os.close(writer)
        with os.fdopen(reader, "rb") as file:
            assert file.read() == b"x" * MIB
        assert process.wait() == 0
