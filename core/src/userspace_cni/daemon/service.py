"""Handling of one request in the daemon: serve it, log it, report it to the observer."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from io import StringIO
from time import perf_counter
from typing import TYPE_CHECKING, Any

from userspace_cni import config, deadline
from userspace_cni.cni import request
from userspace_cni.config import RecordedConf
from userspace_cni.daemon.observer import Served
from userspace_cni.dispatch import Dispatcher
from userspace_cni.frames import Reply
from userspace_cni.log import logger

if TYPE_CHECKING:
    from typing import TextIO

    from userspace_cni.cni.answer import Answer
    from userspace_cni.cni.request import Request
    from userspace_cni.daemon.observer import Observer
    from userspace_cni.runtime import Runtime

_COMMANDS = frozenset((*request.REQUIRED, "VERSION"))
#: How much of a request's log its caller receives; the shim accepts 16 MiB in total.
_ERR_MAX = 1 << 20  # bytes
_PLAIN = re.compile(r"[^\s\"=\\]+")


class Service(Dispatcher):
    """Serves requests from any number of threads, and logs and reports them."""

    def __init__(
        self,
        runtime: Runtime,
        observer: Observer,
        on_attached: Callable[[Mapping[str, Any]], None],
    ) -> None:
        """Serve requests.

        Args:
            runtime: does the work.
            observer: notified of each request.
            on_attached: called with the ``host`` part of the network after each successful ADD.

        """
        super().__init__(runtime)
        self._served_by = runtime
        self._on_attached = on_attached
        self._observer = observer
        self.queue = self.queue_in(runtime.settings.queue)

    def reply(
        self, environ: Mapping[str, str], stdin: bytes, wanted: Callable[[], bool], since: float
    ) -> Reply:
        """Answer a request as the one-process plugin does, including its standard error.

        Args:
            environ: the caller's environment.
            stdin: the caller's standard input.
            wanted: returns whether the caller is still waiting.
            since: when the request arrived, on the monotonic clock.

        """
        stderr = StringIO()
        with deadline.within(self._served_by.settings.budget, since):
            answer = self.call(environ, stdin, stderr, wanted)
        return Reply(
            answer.status,
            answer.out.encode(),
            stderr.getvalue().encode(errors="backslashreplace")[:_ERR_MAX],
        )

    def call(
        self,
        environ: Mapping[str, str],
        stdin: bytes,
        stderr: TextIO,
        wanted: Callable[[], bool] = lambda: True,
    ) -> Answer:
        """See :meth:`.Dispatcher.call`."""
        with self._observer.serving(environ) as handed_on:
            start = perf_counter()
            answer = super().call(handed_on, stdin, stderr, wanted)
            served = self._as_served(environ, answer, perf_counter() - start)
            self._observer.request(served)
        self._tell(served, environ, answer.request)
        if answer.request and answer.request.command == "ADD" and not answer.status:
            self._on_attached(RecordedConf(answer.request.target.config).host)
        return answer

    def replayed(self, outcome: str) -> None:
        """See :meth:`.Observer.replayed`."""
        self._observer.replayed(outcome)

    def _as_served(self, environ: Mapping[str, str], answer: Answer, seconds: float) -> Served:
        command, request = environ.get("CNI_COMMAND", ""), answer.request
        engine = RecordedConf(request.target.config).host_engine if request else ""
        return Served(
            command=command if command in _COMMANDS else "other",
            network=request.target.network if request else "",
            container_id=environ.get("CNI_CONTAINERID", ""),
            ifname=environ.get("CNI_IFNAME", ""),
            # Only a loaded engine's name, so that a request cannot create arbitrary metric labels.
            engine=engine if engine in self._served_by.engines else "",
            code=answer.code,
            seconds=seconds,
        )

    def _tell(self, served: Served, environ: Mapping[str, str], request: Request | None) -> None:
        told = {
            "command": environ.get("CNI_COMMAND", ""),
            "network": served.network,
            "container": served.container_id,
            "ifname": served.ifname,
            "pod": _pod(request),
            "engine": served.engine,
            "ms": f"{served.seconds * 1000:.1f}",
            "code": str(served.code),
        }
        logger.info(
            "request %s",
            " ".join(f"{key}={_quoted(value)}" for key, value in told.items() if value),
        )


def _pod(request: Request | None) -> str:
    pod = config.pod_of(request.target.args) if request else None
    return f"{pod.namespace}/{pod.name}" if pod else ""


def _quoted(value: str) -> str:
    return value if _PLAIN.fullmatch(value) else json.dumps(value)
