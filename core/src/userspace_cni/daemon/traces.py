"""Tracing of requests with OpenTelemetry, exported through OTLP over HTTP.

This module is imported only if a collector is configured. OpenTelemetry's standard environment
variables configure it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from threading import Thread

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, OTELResourceDetector, Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanKind, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from userspace_cni.daemon.observer import Observer, Served
from userspace_cni.log import logger

_FLUSH = 1.0  # seconds; short, because the next daemon waits for this one to end
#: W3C Trace Context and the environment variables that pass it between processes.
_PROPAGATOR = TraceContextTextMapPropagator()
_CARRIED = {"TRACEPARENT": "traceparent", "TRACESTATE": "tracestate"}


class Traces(Observer):
    """Creates a span for each request and each of its steps.

    A request's span is a child of the caller's span if the environment names one.
    """

    def __init__(self, processor: SpanProcessor | None = None) -> None:
        """Pass spans to *processor*; by default they are exported in the background."""
        ours = Resource.create({SERVICE_NAME: "userspace-cni"})
        self._provider = TracerProvider(
            resource=ours.merge(OTELResourceDetector().detect()), shutdown_on_exit=False
        )
        self._provider.add_span_processor(processor or BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer("userspace_cni")

    def close(self) -> None:
        """Export the remaining spans, but wait only briefly for the collector."""
        closer = Thread(target=self._provider.shutdown, name="traces", daemon=True)
        closer.start()
        closer.join(_FLUSH)
        if closer.is_alive():
            logger.warning("the last spans could not be sent within %g s", _FLUSH)

    @contextmanager
    def serving(self, environ: Mapping[str, str]) -> Iterator[Mapping[str, str]]:
        """See :meth:`.Observer.serving`. The environment passes the span to IPAM plugins."""
        carrier = {key: environ[name] for name, key in _CARRIED.items() if name in environ}
        with self._tracer.start_as_current_span(
            "CNI", _PROPAGATOR.extract(carrier), SpanKind.SERVER
        ):
            told: dict[str, str] = {}
            _PROPAGATOR.inject(told)
            rest = {name: value for name, value in environ.items() if name not in _CARRIED}
            yield rest | {name: told[key] for name, key in _CARRIED.items() if key in told}

    def phase(self, name: str) -> AbstractContextManager[object]:
        """See :meth:`.Observer.phase`. The daemon's own work has no spans."""
        if not trace.get_current_span().is_recording():
            return nullcontext()
        return self._step(name)

    @contextmanager
    def _step(self, name: str) -> Iterator[None]:
        # The text of an exception may not be valid Unicode, which would make the whole batch fail.
        with self._tracer.start_as_current_span(
            name, record_exception=False, set_status_on_exception=False
        ) as span:
            try:
                yield
            except BaseException:
                span.set_status(StatusCode.ERROR)
                raise

    def request(self, served: Served) -> None:
        """See :meth:`.Observer.request`."""
        span = trace.get_current_span()
        span.update_name(f"CNI {served.command}")
        told = {
            "cni.network": served.network,
            "cni.container_id": served.container_id,
            "cni.ifname": served.ifname,
            "cni.engine": served.engine,
        }
        span.set_attributes({key: _text(value) for key, value in told.items() if value})
        span.set_attribute("cni.error_code", served.code)
        if served.code:
            span.set_status(StatusCode.ERROR, f"CNI error {served.code}")


def _text(value: str) -> str:
    """Return *value* as valid Unicode, because environment variables may contain any bytes."""
    return value.encode(errors="backslashreplace").decode()
