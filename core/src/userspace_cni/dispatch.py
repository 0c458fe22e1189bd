"""Dispatch of one CNI call: from environment and standard input to an answer.

The one-process plugin and the daemon both use this module, so their answers are the same. Imports
cost time in every call, so modules that VERSION does not need are imported later.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NoReturn

from userspace_cni.cni.answer import Answer, failure, success
from userspace_cni.cni.errors import CniError, internal_error
from userspace_cni.cni.versions import SUPPORTED

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Self, TextIO

    from userspace_cni.cni.request import Request
    from userspace_cni.queue import Queue
    from userspace_cni.runtime import Runtime

_NEWEST = SUPPORTED[-1]


class Dispatcher:
    """Answers CNI calls. A context manager, which closes the runtime."""

    def __init__(self, runtime: Runtime | None = None) -> None:
        """Serve requests with *runtime*, from any number of threads.

        Without a runtime, the first request creates one from the settings that its environment
        names; only a single thread may then make calls.
        """
        self._runtime = runtime

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._runtime is not None:
            self._runtime.close()

    def call(
        self,
        environ: Mapping[str, str],
        stdin: bytes,
        stderr: TextIO,
        wanted: Callable[[], bool] = lambda: True,
    ) -> Answer:
        """Answer a CNI call; never raise an exception.

        Args:
            environ: the caller's environment.
            stdin: the caller's standard input.
            stderr: receives the log.
            wanted: returns whether the caller still waits; otherwise an ADD or DEL is not begun.

        """
        version = _NEWEST
        parsed: Request | None = None
        try:
            if environ.get("CNI_COMMAND") == "VERSION":
                return success(_versions(stdin))
            from userspace_cni.cni import request

            config = request.decode(stdin)
            version = request.version_of_errors(config)
            parsed = request.parse(environ, config, wanted)
            return success(self._served(parsed, stderr), parsed)
        except CniError as error:
            return failure(error, version, parsed)
        except BaseException as error:  # noqa: BLE001  whatever happens the caller must get JSON
            return failure(_internal(error), version, parsed)

    def queue_in(self, directory: Path) -> Queue:
        """Return the queue of DELs in *directory*, written by the shim without a daemon."""
        from userspace_cni.queue import Queue

        return Queue(directory, self.call, self.replayed)

    def replayed(self, outcome: str) -> None:
        """Record the *outcome* of a queued DEL; see :meth:`.Observer.replayed`."""

    def _served(self, request: Request, stderr: TextIO) -> dict[str, Any] | None:
        from userspace_cni import deadline

        runtime = self._runtime
        if runtime is None:
            runtime = self._runtime = _runtime_of(request)
        with deadline.within(runtime.settings.budget):
            if request.command == "ADD" and _is_any(runtime.settings.queue):
                self.queue_in(runtime.settings.queue).replay_before(request.caller.environ)
            return _serve(runtime, request, stderr)


def outlive_engines() -> None:
    """Make ``os._exit`` in an engine end only its request, like ``sys.exit``.

    Otherwise the caller would not get an answer, and the whole daemon would end. Child processes
    are not affected.
    """
    own, leave = os.getpid(), os._exit

    def end(status: int) -> NoReturn:
        if os.getpid() == own:
            raise SystemExit(f"os._exit({status})")
        leave(status)

    setattr(os, "_exit", end)  # noqa: B010  mypy refuses to assign to a function


def _runtime_of(request: Request) -> Runtime:
    from userspace_cni.config.settings import load
    from userspace_cni.runtime import Runtime

    return Runtime(load(request.caller.environ))


def _is_any(directory: Path) -> bool:
    try:
        return bool(os.listdir(directory))
    except OSError:
        return False


def _serve(runtime: Runtime, request: Request, stderr: TextIO) -> dict[str, Any] | None:
    """Serve *request* with *runtime*; log to *stderr* and to the configured file.

    A network's ``logFile`` and ``logLevel`` take precedence over the node's settings.
    """
    from userspace_cni import log
    from userspace_cni.config import RecordedConf

    target = request.target
    own = RecordedConf(target.config)
    with log.scope(
        own.log_level or runtime.settings.log_level,
        own.log_file or runtime.settings.log_file,
        f"{request.command} network={target.network} container={target.container_id} "
        f"ifname={target.ifname}: ",
        stderr,
    ):
        try:
            return runtime.serve(request)
        except CniError:
            raise
        except BaseException as error:
            raise _internal(error) from error


def _internal(error: BaseException) -> CniError:
    from userspace_cni.log import logger

    logger.error("internal error", exc_info=error)
    return internal_error(error)


def _versions(stdin: bytes) -> dict[str, Any]:
    """Answer VERSION in the version of the input (SPEC, "VERSION"), if there is one."""
    try:
        stated = json.loads(stdin).get("cniVersion")
    except (ValueError, AttributeError, RecursionError):
        stated = None
    version = stated if isinstance(stated, str) and stated else _NEWEST
    return {"cniVersion": version, "supportedVersions": list(SUPPORTED)}
