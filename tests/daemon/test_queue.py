"""Queued DELs are executed before later ADDs and do not delay other networks."""

from __future__ import annotations

import fcntl
import socket
import threading
from contextlib import closing
from threading import Event
from typing import TYPE_CHECKING

import pytest

from core import example_lab
from lab import plugin as lab_plugin
from lab.daemon_lab import exchanged, frame, queued, started
from lab.node import poll
from userspace_cni.config.settings import DaemonSettings, Settings
from userspace_cni.daemon.observer import Observer
from userspace_cni.daemon.reconcile import Reconciler
from userspace_cni.runtime import Runtime

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from core.example_lab import ExampleLab

ALLOCATED = 'echo \'{"cniVersion": "1.1.0", "ips": [{"address": "10.66.0.9/24"}]}\''


def _settings_before_tables(lab: ExampleLab, text: str) -> None:
    path = lab.directory / "config.toml"
    path.write_text(f"{text}\n{path.read_text()}")


@pytest.fixture
def alone(tmp_path: Path, netns: str) -> Iterator[ExampleLab]:
    """The example engine, served by one process per request."""
    with lab_plugin.installed(tmp_path, "process") as plugin:
        yield example_lab.make(plugin, tmp_path, netns)


def test_an_add_waits_for_a_del_from_before_that_is_put_off(lab: ExampleLab) -> None:
    stuck = lab.directory / "stuck"
    conf = lab.conf(
        ipam=lab.script(
            f"[ $CNI_COMMAND != DEL ] || [ ! -e {stuck} ] || {{ rm {stuck}; exec sleep 60; }}\n"
            + ALLOCATED
        )
    )
    _settings_before_tables(lab, "timeout = 1")
    started(lab)
    lab.add(conf)
    path = queued(lab, frame(lab, "DEL", conf), 0)
    stuck.touch()
    refused = lab.call("ADD", conf)
    assert refused.code == 11
    assert path.name in refused.text
    assert path.exists()
    lab.add(conf)
    assert not path.exists()
    assert lab.states() == {"c1": "attached"}


def test_a_del_that_hangs_keeps_no_other_add_waiting(lab: ExampleLab) -> None:
    begun, go = lab.directory / "begun", lab.directory / "go"
    hanging = lab.conf(
        ipam=lab.script(
            f"touch {begun}; while [ $CNI_COMMAND = DEL -a ! -e {go} ]; do sleep 0.02; done\n"
            + ALLOCATED
        )
    )
    started(lab, "watch_interval = 0.05")
    lab.add(hanging)
    begun.unlink()
    path = queued(lab, frame(lab, "DEL", hanging), 0)
    poll(begun.exists, "the queued DEL")
    try:
        lab.call("ADD", lab.conf(), container="c2", timeout=20).result  # noqa: B018
        waiting = threading.Thread(target=lab.add, args=(hanging,))
        waiting.start()
        assert path.exists()
    finally:
        go.touch()
    waiting.join()
    assert not path.exists()
    assert lab.states() == {"c1": "attached", "c2": "attached"}


def test_a_daemon_serves_at_once_whatever_is_queued(lab: ExampleLab) -> None:
    conf = lab.conf(name="hanging", ipam=lab.script("exec sleep 60"))
    _settings_before_tables(lab, 'timeout = 2\nlog_level = "info"')
    paths = [queued(lab, frame(lab, "DEL", conf, f"c{number}"), number) for number in range(3)]
    other = queued(lab, frame(lab, "DEL", lab.conf()), 3)
    daemon = started(lab)
    lab.add(lab.conf(), container="other")
    assert "is put off" not in daemon.said()
    poll(lambda: not other.exists(), "the DEL of another network")
    # The daemon waits for the hanging plugin only once per round.
    assert daemon.said().count("is put off") == 1
    assert all(path.exists() for path in paths)


def test_five_hundred_queued_dels_keep_nobody_waiting(lab: ExampleLab) -> None:
    paths = [queued(lab, frame(lab, "DEL", lab.conf(), f"c{n}"), n) for n in range(500)]
    daemon = started(lab)
    exchanged(daemon.socket, frame(lab, "STATUS", lab.conf())).succeeded()
    assert paths[-1].exists()


def test_one_process_waits_for_a_del_that_another_does_no_longer_than_it_may(
    alone: ExampleLab,
) -> None:
    _settings_before_tables(alone, "timeout = 0.5")
    path = queued(alone, frame(alone, "DEL", alone.conf()), 0)
    with path.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert alone.call("ADD", alone.conf(), timeout=20).code == 11
    alone.add(alone.conf())
    assert not path.exists()


def test_one_process_too_does_an_older_del_before_its_add(alone: ExampleLab) -> None:
    conf = alone.conf()
    alone.add(conf)
    other = queued(alone, frame(alone, "DEL", conf, "c2"), 0)
    path = queued(alone, frame(alone, "DEL", conf), 1)
    alone.add(conf)
    assert not path.exists()
    assert other.exists()
    assert alone.states() == {"c1": "attached"}


def test_a_del_whose_caller_has_gone_is_not_begun(lab: ExampleLab) -> None:
    """The shim has queued it, and an ADD of the same container may have followed."""
    begun, go = lab.directory / "begun", lab.directory / "go"
    slow = lab.conf(
        ipam=lab.script(
            f"touch {begun}; while [ $CNI_COMMAND = CHECK -a ! -e {go} ]; do sleep 0.02; done\n"
            + ALLOCATED
        )
    )
    daemon = started(lab, "watch_interval = 3600\nworkers = 1")
    result = lab.add(slow, container="other")
    lab.add(lab.conf())
    begun.unlink()
    busy = threading.Thread(
        target=lambda: lab.call("CHECK", slow | {"prevResult": result}, container="other")
    )
    busy.start()
    poll(begun.exists, "the only worker is busy")
    with closing(socket.socket(socket.AF_UNIX)) as caller:
        caller.connect(str(daemon.socket))
        caller.sendall(frame(lab, "DEL", lab.conf()))
    go.touch()
    busy.join()
    lab.call("STATUS", lab.conf()).succeeded()  # its turn is after the DEL's
    assert lab.states() == {"other": "attached", "c1": "attached"}


def test_a_switch_that_no_thread_can_watch_now_is_watched_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop = Event()
    runtime = Runtime(Settings(state_dir=tmp_path, run_dir=tmp_path), alone=False)
    node = DaemonSettings(watch_interval=0.01, networks=tmp_path)
    reconciler = Reconciler(runtime, node, Observer(), stop, lambda: None)

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError(f"can't start new thread: {thread.name}")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        reconciler.notice({"engine": "example"})  # the ADD that made the port has succeeded
    assert not reconciler.dataplanes
    reconciler.notice({"engine": "example"})
    poll(lambda: "example" in reconciler.dataplanes, "it is watched")
    poll(lambda: reconciler.dataplanes["example"] != "unknown", "it was asked")
    stop.set()
    reconciler.end()


def test_what_fails_between_two_looks_ends_no_reconciliation(tmp_path: Path) -> None:
    stop = Event()
    rounds: list[int] = []

    def between() -> None:
        rounds.append(len(rounds))
        raise ZeroDivisionError

    runtime = Runtime(Settings(state_dir=tmp_path, run_dir=tmp_path), alone=False)
    node = DaemonSettings(watch_interval=0.01, networks=tmp_path)
    reconciler = Reconciler(runtime, node, Observer(), stop, between)
    reconciler.start()
    poll(lambda: len(rounds) > 1, "another round")
    stop.set()
    reconciler.end()
