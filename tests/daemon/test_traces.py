"""Spans of requests."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import StringIO
from threading import Thread
from typing import TYPE_CHECKING, Any

import pytest
from attrs import define, field
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from core.example_lab import ExampleLab
from lab.daemon_lab import daemon_of, environ
from lab.node import poll
from userspace_cni.config import settings
from userspace_cni.daemon.service import Service
from userspace_cni.daemon.traces import Traces
from userspace_cni.runtime import Runtime

if TYPE_CHECKING:
    from collections.abc import Iterator

    from opentelemetry.sdk.trace import ReadableSpan

    from userspace_cni.cni.answer import Answer

CALLER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
TRACE, PARENT = 0x0AF7651916CD43DD8448EB211C80319C, 0xB7AD6B7169203331


@define
class Traced:
    """A service in this process that keeps its spans."""

    lab: ExampleLab
    runtime: Runtime
    traces: Traces
    service: Service
    _memory: InMemorySpanExporter

    def call(self, command: str, conf: object, **variables: str) -> Answer:
        stdin = json.dumps(conf).encode()
        return self.service.call(environ(self.lab, command, **variables), stdin, StringIO())

    @property
    def spans(self) -> list[ReadableSpan]:
        return list(self._memory.get_finished_spans())

    def parents(self) -> dict[str, str]:
        """Return the parent's name of each span by its own name."""
        names = {span.context.span_id: span.name for span in self.spans if span.context}
        return {
            span.name: names.get(span.parent.span_id, "elsewhere") if span.parent else ""
            for span in self.spans
        }


@pytest.fixture
def traced(lab: ExampleLab) -> Iterator[Traced]:
    node = settings.load(lab.plugin.env)
    memory = InMemorySpanExporter()
    traces = Traces(SimpleSpanProcessor(memory))
    with closing(traces), closing(Runtime(node, phase=traces.phase)) as runtime:
        yield Traced(lab, runtime, traces, Service(runtime, traces, lambda _: None), memory)


def _root(traced: Traced) -> ReadableSpan:
    (root,) = (span for span in traced.spans if span.name.startswith("CNI"))
    return root


def test_a_request_is_a_span_of_the_callers_trace_and_its_steps_are_children(
    traced: Traced,
) -> None:
    conf = traced.lab.conf(ipam=traced.lab.spy_ipam())
    answer = traced.call("ADD", conf, TRACEPARENT=CALLER, TRACESTATE="a=b")
    assert answer.status == 0, answer
    assert traced.parents() == {
        "CNI ADD": "elsewhere", "store": "CNI ADD", "ipam": "CNI ADD", "host": "CNI ADD",
        "handover": "CNI ADD", "container": "CNI ADD",
    }  # fmt: skip
    root = _root(traced)
    assert root.context
    assert root.parent
    assert (root.context.trace_id, root.parent.span_id) == (TRACE, PARENT)
    assert root.context.trace_state["a"] == "b"
    assert root.kind == SpanKind.SERVER
    assert dict(root.attributes or {}) == {
        "cni.network": "net", "cni.container_id": "c1", "cni.ifname": "eth0",
        "cni.engine": "example", "cni.error_code": 0,
    }  # fmt: skip
    assert root.resource.attributes["service.name"] == "userspace-cni"
    assert root.status.status_code == StatusCode.UNSET


def test_steps_within_steps_are_nested(traced: Traced) -> None:
    traces = traced.traces
    with traces.serving({}), traces.phase("host"), traces.phase("ipam"):
        pass
    assert traced.parents() == {"CNI": "", "host": "CNI", "ipam": "host"}


def test_the_ipam_plugin_continues_the_trace(traced: Traced) -> None:
    told = traced.lab.directory / "told"
    body = f'env > {told}; echo \'{{"ips": [{{"address": "10.66.0.9/24"}}]}}\''
    conf = traced.lab.conf(ipam=traced.lab.script(body))
    assert traced.call("ADD", conf, TRACEPARENT=CALLER).status == 0
    (parent,) = re.findall("^TRACEPARENT=(.*)$", told.read_text(), re.MULTILINE)
    root = _root(traced)
    assert root.context
    assert parent == f"00-{root.context.trace_id:032x}-{root.context.span_id:016x}-01"
    assert root.context.trace_id == TRACE


def test_a_failure_is_told_with_its_code_and_step(traced: Traced) -> None:
    traced.lab.switch.rmdir()
    container = os.fsdecode(b"c\xff")  # no Unicode text
    assert traced.call("ADD", traced.lab.conf()).code == 11
    assert traced.call("STATUS", traced.lab.conf(), CNI_CONTAINERID=container).code == 4
    added, asked = (span for span in traced.spans if span.name.startswith("CNI"))
    assert (added.status.status_code, added.status.description) == (
        StatusCode.ERROR, "CNI error 11",
    )  # fmt: skip
    assert added.attributes
    assert asked.attributes
    assert added.attributes["cni.error_code"] == 11
    assert asked.attributes["cni.container_id"] == r"c\udcff"
    failed = {span.name for span in traced.spans if not span.status.is_ok} - {"CNI STATUS"}
    assert failed == {"CNI ADD", "host"}


@pytest.mark.parametrize("parent", ["", "garbage", "00-0-0-00", "ff-" + "1" * 32])
def test_a_parent_that_is_none_begins_a_trace(traced: Traced, parent: str) -> None:
    assert traced.call("STATUS", traced.lab.conf(), TRACEPARENT=parent).status == 0
    assert _root(traced).parent is None


def test_a_caller_that_does_not_sample_gets_no_spans(traced: Traced) -> None:
    conf = traced.lab.conf(ipam=traced.lab.spy_ipam())
    assert traced.call("ADD", conf, TRACEPARENT=CALLER[:-1] + "0").status == 0
    assert traced.spans == []


def test_what_nobody_asked_for_has_no_span(traced: Traced) -> None:
    assert traced.call("ADD", traced.lab.conf()).status == 0
    before = len(traced.spans)
    (record,) = traced.lab.records()
    assert traced.runtime.remove(record.id, lambda _: True)
    assert len(traced.spans) == before


# -- the daemon


@define
class Collector:
    """A collector of spans (OTLP over HTTP) on the loopback, which may be slow."""

    hangs: bool = False
    bodies: list[bytes] = field(factory=list)
    paths: list[str] = field(factory=list)

    @contextmanager
    def serving(self) -> Iterator[str]:
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                collector.paths.append(self.path)
                body = self.rfile.read(int(self.headers["Content-Length"]))
                while collector.hangs:
                    time.sleep(0.02)
                collector.bodies.append(body)
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            def handle_error(self, *_: Any) -> None:
                """Ignore clients that disconnect."""

        with Server(("127.0.0.1", 0), Handler) as server:
            thread = Thread(target=server.serve_forever)
            thread.start()
            try:
                yield f"http://127.0.0.1:{server.server_port}"
            finally:
                self.hangs = False
                server.shutdown()
                thread.join()

    def names(self) -> list[str]:
        spans = []
        for body in self.bodies:
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                for scope in resource.scope_spans:
                    spans += [span.name for span in scope.spans]
        return sorted(spans)


def _sending_to(lab: ExampleLab, endpoint: str, **variables: str) -> None:
    daemon = daemon_of(lab)
    daemon.env = {**daemon.env, "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, **variables}
    daemon.stop()
    lab.plugin.serve(None)


def test_a_collector_gets_the_spans_at_the_end_at_the_latest(lab: ExampleLab) -> None:
    collector = Collector()
    with collector.serving() as endpoint:
        _sending_to(lab, endpoint, OTEL_BSP_SCHEDULE_DELAY="3600000")
        lab.add(lab.conf())
        lab.call("STATUS", lab.conf()).succeeded()
        daemon_of(lab).stop()
    assert set(collector.paths) == {"/v1/traces"}
    assert set(collector.names()) >= {"CNI ADD", "CNI STATUS", "host", "store"}


def test_a_collector_that_is_away_or_hangs_disturbs_nobody(lab: ExampleLab) -> None:
    with closing(socket.socket()) as end:
        end.bind(("127.0.0.1", 0))
        _sending_to(lab, f"http://127.0.0.1:{end.getsockname()[1]}", OTEL_BSP_SCHEDULE_DELAY="1")
        lab.add(lab.conf())
        lab.call("DEL", lab.conf()).succeeded()
        daemon_of(lab).stop()
    collector = Collector(hangs=True)
    with collector.serving() as endpoint:
        _sending_to(lab, endpoint, OTEL_BSP_SCHEDULE_DELAY="1")
        for _ in range(3):
            lab.add(lab.conf())
            lab.call("DEL", lab.conf()).succeeded()
        poll(lambda: collector.paths, "the collector is called")
        daemon_of(lab).signal(signal.SIGTERM)
        assert daemon_of(lab).wait(20) == 0
    assert "could not be sent" in daemon_of(lab).said()
    assert "Traceback" not in daemon_of(lab).said()


def test_variables_that_make_no_sense_are_told_and_cost_only_the_traces(lab: ExampleLab) -> None:
    _sending_to(lab, "http://127.0.0.1:1", OTEL_BSP_MAX_QUEUE_SIZE="-1")
    lab.add(lab.conf())
    assert "no traces" in daemon_of(lab).said()


_TELLING = (
    "import sys; from userspace_cni.cli import main; main(['daemon']); print(' '.join(sys.modules))"
)


def test_nothing_of_it_is_imported_without_a_collector(lab: ExampleLab) -> None:
    daemon = daemon_of(lab)
    lab.plugin.settings(f'[daemon]\nsocket = "{daemon.socket}"\n')
    clean = {key: value for key, value in os.environ.items() if not key.startswith("OTEL_")}
    with subprocess.Popen(
        [sys.executable, "-I", "-c", _TELLING],
        env={**clean, **daemon.env},
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            poll(daemon.socket.exists, "it serves")
            process.send_signal(signal.SIGTERM)
            out, _ = process.communicate(timeout=30)
        finally:
            process.kill()
    modules = set(out.split())
    assert "userspace_cni.daemon.process" in modules
    assert not {name for name in modules if name.startswith(("opentelemetry", "requests"))}
