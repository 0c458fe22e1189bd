"""The daemon's socket with clients that violate the protocol."""

from __future__ import annotations

import os
import socket
import stat
import struct
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab.daemon_lab import answered, connected, exchanged, frame, started
from lab.node import poll
from lab.plugin import clean_environ
from userspace_cni import frames
from userspace_cni.cni.errors import CniError
from userspace_cni.frames import BadFrame, Reply

if TYPE_CHECKING:
    from core.example_lab import ExampleLab

ALONE = "import sys; from userspace_cni.plugin import main; sys.exit(main())"
NAMES = st.text(st.characters(exclude_characters="=\0", exclude_categories=["Cs"]), min_size=1)
VALUES = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))


def _head(environment: int, stdin: int, magic: bytes = b"ucni", version: int = 1) -> bytes:
    return struct.pack(">4sIII", magic, version, environment, stdin)


BAD = {
    "nothing": (b"", 6, "ends early"),
    "half a head": (b"ucni\0\0", 6, "ends early"),
    "garbage": (b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", 6, "GET"),
    "another version": (_head(0, 0, version=2), 1, "protocol version 2"),
    "a huge environment": (_head((2 << 20) + 1, 0), 6, "environment"),
    "a huge configuration": (_head(0, (16 << 20) + 1), 6, "standard input"),
    "the largest numbers": (_head(2**32 - 1, 2**32 - 1), 6, "environment"),
    "half an environment": (_head(100, 0) + b"CNI_COMMAND=ADD\0", 6, "ends early"),
    "a variable without end": (_head(15, 0) + b"CNI_COMMAND=ADD", 6, "not terminated"),
    "half a configuration": (_head(16, 100) + b"CNI_COMMAND=ADD\0{", 6, "ends early"),
    "no command": (_head(0, 2) + b"{}", 4, "CNI_COMMAND"),
}


def test_every_bad_frame_is_answered_with_an_error_and_the_daemon_goes_on(lab: ExampleLab) -> None:
    daemon = started(lab)
    for name, (request, code, words) in BAD.items():
        outcome = exchanged(daemon.socket, request)
        assert outcome.code == code, name
        assert words in outcome.text, name
    assert exchanged(daemon.socket, frame(lab, "ADD", lab.conf())).result["interfaces"]
    assert "Traceback" not in daemon.said()


def test_a_client_that_says_nothing_more_does_not_hold_a_worker(lab: ExampleLab) -> None:
    daemon = started(lab, "workers = 2")
    with ExitStack() as stack:
        slow = [stack.enter_context(connected(daemon.socket)) for _ in range(2)]
        for end in slow:
            end.sendall(frame(lab, "STATUS", lab.conf())[:-1])
        begun = time.monotonic()
        exchanged(daemon.socket, frame(lab, "STATUS", lab.conf())).succeeded()
        assert time.monotonic() - begun < 30
        for end in slow:
            outcome = answered(end)
            assert outcome.code == 6
            assert "still incomplete after" in outcome.text


def test_a_client_that_leaves_at_once_harms_nobody(lab: ExampleLab) -> None:
    daemon = started(lab)
    for _ in range(20):
        with connected(daemon.socket) as end:
            end.sendall(frame(lab, "STATUS", lab.conf()))
    exchanged(daemon.socket, frame(lab, "STATUS", lab.conf())).succeeded()
    assert "internal error" not in daemon.said()


def test_nobody_but_root_is_served_whatever_the_files_mode(lab: ExampleLab) -> None:
    daemon = started(lab)
    assert stat.S_IMODE(daemon.socket.stat().st_mode) == 0o600
    daemon.socket.chmod(0o666)
    daemon.socket.parent.chmod(0o755)
    program = (
        "import socket, sys; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); "
        "sys.stdout.write(s.makefile('rb').read()[20:].decode())"
    )
    done = subprocess.run(
        ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "/usr/bin/python3", "-ISc",
         program, daemon.socket],
        capture_output=True, text=True, check=True, cwd="/",
    )  # fmt: skip
    assert "user 65534 may not call the daemon" in done.stdout
    poll(lambda: "user 65534" in daemon.said(), "the refusal is logged")


def test_two_hundred_connections_at_once_are_all_answered(lab: ExampleLab) -> None:
    daemon = started(lab, "workers = 4")

    def ask(number: int) -> None:
        config, container = lab.conf(), f"c{number}"
        assert exchanged(daemon.socket, frame(lab, "ADD", config, container)).result
        exchanged(daemon.socket, frame(lab, "DEL", config, container)).succeeded()

    with ThreadPoolExecutor(200) as pool:
        list(pool.map(ask, range(200)))
    lab.assert_clean()


def test_the_answer_is_that_of_the_one_process_plugin_byte_for_byte(lab: ExampleLab) -> None:
    """Requests that change nothing, so that both ways can be compared."""
    daemon = started(lab)
    configs = [lab.conf(), lab.conf(version="9.9"), lab.conf(host={"engine": "nope"}), [], "x"]
    for command in ("VERSION", "STATUS", "CHECK", "GC", "NOPE", "DEL"):
        for config in configs:
            request = frame(lab, command, config)
            environ, stdin = frames.load_request(request)
            alone = subprocess.run(
                [sys.executable, "-Ic", ALONE],
                input=stdin, env={**clean_environ(), **lab.plugin.env, **environ},
                capture_output=True, check=False,
            )  # fmt: skip
            served = exchanged(daemon.socket, request)
            assert (served.status, served.out) == (alone.returncode, alone.stdout.decode())


@given(st.dictionaries(NAMES, VALUES), st.binary())
def test_a_request_survives_its_frame(environ: dict[str, str], stdin: bytes) -> None:
    assert frames.load_request(frames.dump_request(environ, stdin)) == (environ, stdin)


@given(st.integers(0, 255), st.binary(), st.binary())
def test_an_answer_survives_its_frame(status: int, out: bytes, err: bytes) -> None:
    reply = Reply(status, out, err)
    assert frames.load_reply(frames.dump_reply(reply)) == reply


@given(st.binary())
def test_any_other_bytes_are_no_frame(noise: bytes) -> None:
    with pytest.raises(CniError):
        frames.load_request(noise)
    with pytest.raises(ValueError, match="answer"):
        frames.load_reply(noise)


def test_of_a_variable_that_comes_twice_the_first_counts_as_in_python() -> None:
    environment = b"A=1\0NOTHING\0A=2\0\xff=\xfe\0"
    request = _head(len(environment), 0) + environment
    environ, _ = frames.load_request(request)
    assert environ == {"A": "1", os.fsdecode(b"\xff"): os.fsdecode(b"\xfe")}
    with pytest.raises(BadFrame, match="1 extra bytes follow"):
        frames.load_request(request + b"x")


def test_a_reader_that_is_slow_to_take_the_answer_is_let_go(lab: ExampleLab) -> None:
    daemon = started(lab)
    big = lab.conf(note="x" * (1 << 20))  # the error repeats the value
    with connected(daemon.socket) as end:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        end.sendall(frame(lab, "STATUS", big))
        exchanged(daemon.socket, frame(lab, "STATUS", lab.conf())).succeeded()
