"""The daemon process: start-up and shutdown of its parts in the right order."""

from __future__ import annotations

import gc
import os
import signal
import sys
from contextlib import ExitStack
from threading import Event, Thread
from typing import TYPE_CHECKING, Any

from userspace_cni import dispatch, log, registry
from userspace_cni.cni.errors import CniError, Code
from userspace_cni.daemon import systemd
from userspace_cni.daemon.observer import together
from userspace_cni.daemon.reconcile import Reconciler
from userspace_cni.daemon.server import Server, sole
from userspace_cni.daemon.service import Service
from userspace_cni.extras import pip_extra
from userspace_cni.log import logger
from userspace_cni.runtime import Runtime

if TYPE_CHECKING:
    from userspace_cni.config.settings import Settings
    from userspace_cni.daemon.metrics import Metrics
    from userspace_cni.daemon.traces import Traces

#: OpenTelemetry's environment variables that configure a trace collector.
_COLLECTOR = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")

_CLOSE = 5.0  # seconds that engines may take to close


def run(settings: Settings) -> None:
    """Run the daemon until SIGTERM or SIGINT.

    Raises:
        CniError: if it cannot be started, for example because another daemon is running.

    """
    # A shorter switch interval than the default of 5 ms lets threads continue soon after waiting
    # for a plugin or the kernel. Imported modules need not be scanned by the garbage collector.
    sys.setswitchinterval(0.0005)
    gc.freeze()
    dispatch.outlive_engines()
    with ExitStack() as stack:
        stack.enter_context(log.process(settings.log_level, settings.log_file))
        stack.enter_context(sole(settings.socket))
        _Daemon(settings, stack).run()


class _Daemon:
    def __init__(self, settings: Settings, stack: ExitStack) -> None:
        self._settings = settings
        self._stop = Event()
        self._replayed = False
        figures = _metrics() if settings.daemon.http else None
        traces = _traces() if any(map(os.environ.get, _COLLECTOR)) else None
        if traces is not None:
            stack.callback(traces.close)
        observer = together(*filter(None, (figures, traces)))
        runtime = Runtime(settings, alone=False, phase=observer.phase)
        stack.callback(_close, runtime)
        self._reconciler = Reconciler(runtime, settings.daemon, observer, self._stop, self._replay)
        self._service = Service(runtime, observer, self._reconciler.notice)
        if figures is not None:
            from userspace_cni.daemon import health

            figures.count_attachments(runtime.store)
            figures.tell_dataplanes(lambda: self._reconciler.dataplanes)
            stack.enter_context(health.serving(settings.daemon.http, self._readiness, figures))
        self._server = Server(
            settings.socket, settings.daemon.workers, settings.budget, self._service.reply
        )
        stack.callback(self._server.close)

    def run(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self._end())
        # Do not use SIG_IGN, because IPAM plugins would inherit it.
        signal.signal(signal.SIGHUP, lambda *_: None)
        for problem in registry.settings_problems(self._settings):
            logger.warning("%s", problem)
        self._service.queue.make()
        self._server.open()
        # Serving need not wait for the queue: an ADD first executes its attachment's queued DELs.
        self._reconciler.start()
        systemd.notify("READY=1")
        logger.info("serving at %s", self._settings.socket)
        try:
            self._server.run()
        finally:
            self._end()
            self._reconciler.end()
        logger.info("ended")

    def _end(self) -> None:
        if not self._stop.is_set():
            self._stop.set()
            self._server.stop()
            self._reconciler.wake()
            systemd.notify("STOPPING=1")

    def _replay(self) -> None:
        # This runs regularly, because a shim also queues a DEL if the daemon is too slow.
        self._service.queue.replay(self._stop)
        self._replayed = True

    def _readiness(self) -> tuple[bool, dict[str, Any]]:
        dataplanes = self._reconciler.dataplanes
        ready = (
            self._replayed
            and self._reconciler.has_looked
            and not self._stop.is_set()
            and all(state == "up" for state in dataplanes.values())
        )
        return ready, {"ready": ready, "stopping": self._stop.is_set(), "dataplanes": dataplanes}


def _close(runtime: Runtime) -> None:
    """Close *runtime*, unless one of its engines hangs."""
    closing = Thread(target=runtime.close, name="closing", daemon=True)
    closing.start()
    closing.join(_CLOSE)
    if closing.is_alive():
        logger.error("an engine does not close its connections within %g s", _CLOSE)


def _metrics() -> Metrics:
    try:
        from userspace_cni.daemon.metrics import Metrics
    except ImportError as error:
        raise CniError(
            Code.INVALID_NETWORK_CONFIG,
            f"daemon.http is set, and {error.name} is not installed",
            f"install it with: {pip_extra('daemon')}",
        ) from error
    return Metrics()


def _traces() -> Traces | None:
    """Return the tracer, or None if it cannot be set up, which must not stop the daemon."""
    try:
        from userspace_cni.daemon.traces import Traces

        return Traces()
    except ImportError as error:
        logger.error(
            "no traces: a collector is configured, but %s is not installed; install it with: %s",
            error.name,
            pip_extra("otel"),
        )
    except Exception:  # noqa: BLE001  OpenTelemetry may raise anything for its many variables
        logger.exception("no traces: OpenTelemetry cannot be set up")
    return None
