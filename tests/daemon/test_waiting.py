"""A daemon with callers, plugins and threads that hang."""

from __future__ import annotations

import os
import resource
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING

import pytest

from lab.daemon_lab import connected, environ, exchanged, frame, started
from lab.node import poll
from userspace_cni import frames
from userspace_cni.cni.errors import CniError, Code
from userspace_cni.daemon.pool import Job, Pool

if TYPE_CHECKING:
    from core.example_lab import ExampleLab


def _patience(lab: ExampleLab, seconds: float) -> None:
    path = lab.directory / "config.toml"
    path.write_text(f"timeout = {seconds}\n{path.read_text()}")


def test_a_plugin_that_hangs_keeps_no_other_network_waiting(lab: ExampleLab) -> None:
    go, log = lab.directory / "go", lab.directory / "log"
    hanging = lab.conf(
        name="hanging",
        ipam=lab.script(f"echo >> {log}; until [ -e {go} ]; do sleep 0.1; done; exit 1"),
    )
    daemon = started(lab, "workers = 8\nwatch_interval = 3600")
    ends = []
    with ExitStack() as stack:
        for number in range(64):
            end = stack.enter_context(connected(daemon.socket))
            end.sendall(frame(lab, "ADD", hanging, f"h{number}"))
            ends.append(end)
        stack.callback(go.touch)
        poll(lambda: log.exists() and len(log.read_text()) == 8, "the plugins hang")
        begun = time.monotonic()
        exchanged(daemon.socket, frame(lab, "ADD", lab.conf(), "other")).result  # noqa: B018
        assert time.monotonic() - begun < 5
        assert len(log.read_text()) == 8


def test_all_that_a_request_waits_for_has_one_deadline(lab: ExampleLab) -> None:
    """It waits for a turn, then for a plugin that hangs, then for its DEL, which also hangs."""
    conf = lab.conf(name="hanging", ipam=lab.script("exec sleep 60"))
    _patience(lab, 2)
    daemon = started(lab, "workers = 2\nwatch_interval = 3600")
    begun = time.monotonic()

    def ask(number: int) -> tuple[int, float]:
        outcome = exchanged(daemon.socket, frame(lab, "ADD", conf, f"h{number}"))
        return outcome.code, time.monotonic() - begun

    with ThreadPoolExecutor(6) as pool:
        for code, seconds in pool.map(ask, range(6)):
            assert code == 11
            assert seconds < 2 * 1.5 + 5  # not 2 + 2, nor three times that
    waiting = "2 requests of network 'hanging' are being served"
    poll(lambda: waiting in daemon.said(), "it is logged why the others wait")
    lab.assert_clean()


def test_five_hundred_idle_connections_keep_no_status_waiting(lab: ExampleLab) -> None:
    daemon = started(lab)
    with ExitStack() as stack:
        for _ in range(500):
            stack.enter_context(connected(daemon.socket))
        begun = time.monotonic()
        exchanged(daemon.socket, frame(lab, "STATUS", lab.conf())).succeeded()
        assert time.monotonic() - begun < 4  # they are let go after five


def test_more_idle_connections_than_descriptors_end_no_daemon(lab: ExampleLab) -> None:
    daemon = started(lab)
    resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, (64, 64))
    with ExitStack() as stack:
        for _ in range(100):
            stack.enter_context(connected(daemon.socket))
        exchanged(daemon.socket, frame(lab, "STATUS", lab.conf())).succeeded()


def test_a_request_that_gets_no_thread_is_told_to_come_again(lab: ExampleLab) -> None:
    daemon = started(lab)
    # The daemon has started all its threads and answers this without a new one.
    assert exchanged(daemon.socket, b"no frame").code == 6
    taken = int(Path(f"/proc/{daemon.pid}/statm").read_text().split()[0]) * os.sysconf(
        "SC_PAGESIZE"
    )
    # A thread's stack has 8 MiB.
    resource.prlimit(daemon.pid, resource.RLIMIT_AS, (taken + (2 << 20), resource.RLIM_INFINITY))
    refused = exchanged(daemon.socket, frame(lab, "STATUS", lab.conf()))
    assert refused.code == 11
    assert "out of threads: " in refused.text
    resource.prlimit(
        daemon.pid, resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    )
    exchanged(daemon.socket, frame(lab, "STATUS", lab.conf())).succeeded()


def test_what_waits_for_its_network_is_done_in_turn_or_refused_in_time() -> None:
    pool, go = Pool(1), Event()
    done: list[str] = []
    refused: list[CniError] = []

    def work(name: str) -> None:
        assert go.wait(60)
        done.append(name)

    for name, until in (("a", 10.0), ("b", 10.0), ("late", 1.0)):
        pool.submit(Job("net", until, partial(work, name), refused.append))
    assert pool.is_full("net")
    assert not pool.is_full("other")
    assert pool.refuse_late(2.0) == 10.0
    assert [error.code for error in refused] == [Code.TRY_AGAIN_LATER]
    go.set()
    pool.drain()
    assert done == ["a", "b"]


@pytest.mark.parametrize("content", [b"{}", b"[]", b"", b'{"name": 7}', b"\xff"])
def test_a_request_without_a_network_is_answered(lab: ExampleLab, content: bytes) -> None:
    daemon = started(lab)
    request = frames.dump_request(environ(lab, "STATUS"), content)
    assert exchanged(daemon.socket, request).code in (1, 6, 7)
