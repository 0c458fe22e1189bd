"""What the daemon does with one request: serve it, log it, count it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from io import StringIO
from time import perf_counter
from typing import TYPE_CHECKING, Any

from attrs import evolve

from userspace_cni import config, deadline, dispatch
from userspace_cni.cni import request
from userspace_cni.daemon.observer import Served
from userspace_cni.daemon.protocol import Reply
from userspace_cni.daemon.queue import Queue
from userspace_cni.log import logger

if TYPE_CHECKING:
    from userspace_cni.cni.request import Request
    from userspace_cni.config.settings import Settings
    from userspace_cni.daemon.observer import Observer
    from userspace_cni.dispatch import Answer
    from userspace_cni.runtime import Runtime

_COMMANDS = frozenset((*request.REQUIRED, "VERSION"))
#: What a request logs reaches its caller up to here; the shim takes 16 MiB in all.
_ERR_MAX = 1 << 20  # bytes
_PLAIN = re.compile(r"[^\s\"=\\]+")


class Service:
    """Serves requests from any number of threads."""

    def __init__(
        self,
        runtime: Runtime,
        settings: Settings,
        observer: Observer,
        on_attached: Callable[[Mapping[str, Any]], None],
    ) -> None:
        """Let *runtime* do the work and tell *observer* of it.

        *on_attached* is given the ``host`` part of the network that an ADD has attached to.
        """
        self._runtime = runtime
        self._on_attached = on_attached
        self._settings = settings
        self._observer = observer
        self.queue = Queue(settings.queue, self.answer, observer)

    def reply(
        self, environ: Mapping[str, str], stdin: bytes, wanted: Callable[[], bool], since: float
    ) -> Reply:
        """Answer the request as the one-process plugin does, its standard error included.

        Its time began at *since*, of the monotonic clock.
        """
        stderr = StringIO()
        with deadline.within(self._settings.budget, since):
            answer = self.answer(environ, stdin, stderr, wanted)
        return Reply(
            answer.status,
            answer.out.encode(),
            stderr.getvalue().encode(errors="backslashreplace")[:_ERR_MAX],
        )

    def answer(
        self,
        environ: Mapping[str, str],
        stdin: bytes,
        stderr: StringIO,
        wanted: Callable[[], bool] = lambda: True,
    ) -> Answer:
        """Answer the request; what it logs goes to *stderr* too.

        An ADD that is no longer *wanted* when its turn comes is not begun.
        """
        command = environ.get("CNI_COMMAND", "")
        with self._observer.serving(environ) as handed_on:
            answer, parsed, seconds = self._served(handed_on, stdin, stderr, wanted)
            served = Served(
                command=command if command in _COMMANDS else "other",
                network=parsed.network if parsed else "",
                container_id=environ.get("CNI_CONTAINERID", ""),
                ifname=environ.get("CNI_IFNAME", ""),
                engine=self._engine_of(parsed),
                code=answer.code,
                seconds=seconds,
            )
            self._observer.request(served)
        told = {
            "command": command,
            "network": served.network,
            "container": served.container_id,
            "ifname": served.ifname,
            "pod": _pod(parsed),
            "engine": served.engine,
            "ms": f"{seconds * 1000:.1f}",
            "code": str(answer.code),
        }
        logger.info(
            "request %s",
            " ".join(f"{key}={_quoted(value)}" for key, value in told.items() if value),
        )
        return answer

    def _served(
        self,
        environ: Mapping[str, str],
        stdin: bytes,
        stderr: StringIO,
        wanted: Callable[[], bool],
    ) -> tuple[Answer, Request | None, float]:
        """Serve the request; return the answer, the request if it is one, and its duration."""
        start = perf_counter()
        parsed: Request | None = None

        def serve(environ: Mapping[str, str], network: dict[str, Any]) -> dict[str, Any] | None:
            nonlocal parsed
            parsed = evolve(request.parse(environ, network), wanted=wanted)
            if parsed.command == "ADD":
                self.queue.replay_before(environ)
            answered = dispatch.serve(self._runtime, self._settings, parsed, stderr)
            if parsed.command == "ADD":
                self._on_attached(parsed.config["host"])
            return answered

        answer = dispatch.answer(environ, stdin, serve)
        return answer, parsed, perf_counter() - start

    def _engine_of(self, parsed: Request | None) -> str:
        """Return the host engine's name, if there is one of that name."""
        host = parsed.config.get("host") if parsed else None
        name = host.get("engine") if isinstance(host, dict) else None
        return name if isinstance(name, str) and name in self._runtime.engines else ""


def _pod(parsed: Request | None) -> str:
    pod = config.pod_of(parsed.args) if parsed else None
    return f"{pod.namespace}/{pod.name}" if pod else ""


def _quoted(value: str) -> str:
    return value if _PLAIN.fullmatch(value) else json.dumps(value)
