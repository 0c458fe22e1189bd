"""Health, readiness and metrics over HTTP."""

from __future__ import annotations

import json
import os
import signal
import socket
from contextlib import ExitStack, closing
from threading import Thread
from typing import TYPE_CHECKING

import pytest

from lab.daemon_lab import daemon_of, frame, queued, started
from lab.health import answers, figures_of, free_port, get
from lab.node import poll

if TYPE_CHECKING:
    from core.example_lab import ExampleLab


def test_it_is_not_ready_before_the_queue_is_done_nor_while_it_ends(lab: ExampleLab) -> None:
    begun, go = lab.directory / "begun", lab.directory / "go"
    conf = lab.conf(
        ipam=lab.script(f"touch {begun}; while [ ! -e {go} ]; do sleep 0.02; done; echo '{{}}'")
    )
    port = free_port()
    queued(lab, frame(lab, "DEL", conf), 0)
    starter = Thread(target=started, args=(lab, f'http = "127.0.0.1:{port}"'))
    starter.start()
    poll(lambda: answers(port), "it is alive")
    status, body = get(port, "/readyz")
    assert (status, json.loads(body)["ready"]) == (503, False)
    poll(begun.exists, "the queued DEL")
    go.touch()
    starter.join()
    poll(lambda: get(port, "/readyz")[0] == 200, "it is ready")
    for file in (begun, go):
        file.unlink()
    caller = Thread(target=lab.call, args=("DEL", conf))
    caller.start()
    poll(begun.exists, "a DEL that takes its time")
    daemon_of(lab).signal(signal.SIGTERM)
    poll(lambda: get(port, "/readyz")[0] == 503, "it is not ready")
    assert json.loads(get(port, "/readyz")[1])["stopping"]
    go.touch()
    caller.join()
    assert daemon_of(lab).wait() == 0


def test_metrics_tell_of_requests_attachments_and_switches(lab: ExampleLab) -> None:
    port = free_port()
    started(lab, f'http = "127.0.0.1:{port}"\nwatch_interval = 0.05\nreconcile_interval = 0.05')
    conf = lab.conf(ipam=lab.spy_ipam())
    lab.add(conf)
    lab.call("ADD", conf)
    lab.call("STATUS", conf, container="")
    lab.call("ADD", lab.conf(host={"engine": "x" * 99, "iftype": "note"}), container="c2")
    (file,) = lab.switch.iterdir()
    file.unlink()
    poll(file.exists, "the port is back")
    poll(
        lambda: ("userspace_cni_dataplane_up", frozenset({"example"})) in figures_of(port),
        "the switch",
    )
    figures = figures_of(port)
    for (name, *labels), value in {
        ("userspace_cni_requests_total", "ADD", "example", "0"): 1,
        ("userspace_cni_requests_total", "ADD", "example", "103"): 1,
        ("userspace_cni_requests_total", "ADD", "", "100"): 1,
        ("userspace_cni_requests_total", "STATUS", "example", "0"): 1,
        ("userspace_cni_request_seconds_count", "ADD"): 3,
        ("userspace_cni_phase_seconds_count", "ipam"): 4,  # two start, one is told and waited for
        ("userspace_cni_phase_seconds_count", "store"): 2,
        ("userspace_cni_attachments", "net", "example", "attached"): 1,
        ("userspace_cni_reconciled_total", "restore", "success"): 1,
        ("userspace_cni_dataplane_up", "example"): 1,
    }.items():
        assert figures[name, frozenset(labels)] == value, (name, labels)
    assert figures["process_resident_memory_bytes", frozenset()] > 1 << 20
    assert get(port, "/secrets")[0] == 404
    _, body = get(port, "/readyz")
    assert json.loads(body)["dataplanes"] == {"example": "up"}


def test_an_endpoint_that_is_taken_is_told(lab: ExampleLab) -> None:
    with closing(socket.socket()) as end:
        end.bind(("127.0.0.1", 0))
        end.listen()
        with pytest.raises(AssertionError, match=r"daemon\.http: cannot serve at"):
            started(lab, f'http = "127.0.0.1:{end.getsockname()[1]}"')


def test_connections_that_say_nothing_keep_nobody_out(lab: ExampleLab) -> None:
    port = free_port()
    daemon = started(lab, f'http = "127.0.0.1:{port}"')
    with ExitStack() as stack:
        for number in range(200):
            end = stack.enter_context(closing(socket.create_connection(("127.0.0.1", port))))
            if number % 2:
                end.sendall(b"GET /healthz HTTP/1.1\r\nX-Slow: ")
        assert get(port, "/healthz") == (200, "ok\n")
        poll(lambda: len(os.listdir(f"/proc/{daemon.pid}/task")) < 30, "threads end")
        lab.add(lab.conf())
        daemon.signal(signal.SIGTERM)
        assert daemon.wait(5) == 0
    assert "Traceback" not in daemon.said()
