"""Spans of requests, sent by OTLP over HTTP. Imported only where a collector is named.

OpenTelemetry's own variables in the daemon's environment configure it.
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

_FLUSH = 1.0  # seconds, for what is not sent yet: the next daemon waits for our end
#: W3C Trace Context, and the variables that carry it from one process to another.
_PROPAGATOR = TraceContextTextMapPropagator()
_CARRIED = {"TRACEPARENT": "traceparent", "TRACESTATE": "tracestate"}


class Traces(Observer):
    """One span a request, a child of the caller's where it names one, and one a step."""

    def __init__(self, processor: SpanProcessor | None = None) -> None:
        """Give spans to *processor*: by default to one that sends them in the background."""
        ours = Resource.create({SERVICE_NAME: "userspace-cni"})
        self._provider = TracerProvider(
            resource=ours.merge(OTELResourceDetector().detect()), shutdown_on_exit=False
        )
        self._provider.add_span_processor(processor or BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer("userspace_cni")

    def close(self) -> None:
        """Send what is left, as far as the collector takes it at once."""
        closer = Thread(target=self._provider.shutdown, name="traces", daemon=True)
        closer.start()
        closer.join(_FLUSH)
        if closer.is_alive():
            logger.warning("the last spans could not be sent within %g s", _FLUSH)

    @contextmanager
    def serving(self, environ: Mapping[str, str]) -> Iterator[Mapping[str, str]]:
        """See :meth:`.Observer.serving`; IPAM plugins get the span in the environment."""
        carrier = {key: environ[name] for name, key in _CARRIED.items() if name in environ}
        with self._tracer.start_as_current_span(
            "CNI", _PROPAGATOR.extract(carrier), SpanKind.SERVER
        ):
            told: dict[str, str] = {}
            _PROPAGATOR.inject(told)
            rest = {name: value for name, value in environ.items() if name not in _CARRIED}
            yield rest | {name: told[key] for name, key in _CARRIED.items() if key in told}

    def phase(self, name: str) -> AbstractContextManager[object]:
        """See :meth:`.Observer.phase`; what nobody asked for has no span."""
        if not trace.get_current_span().is_recording():
            return nullcontext()
        return self._step(name)

    @contextmanager
    def _step(self, name: str) -> Iterator[None]:
        # What an exception says may be no Unicode text, and would cost us all spans of its batch.
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
    """Return *value* as Unicode text, which a variable of the environment need not be."""
    return value.encode(errors="backslashreplace").decode()
