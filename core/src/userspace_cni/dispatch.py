"""One CNI call: from an environment and standard input to an exit status and standard output.

The one-process plugin and the daemon both answer by this, so their answers are the same. What
is imported here is paid for by every call; all that VERSION does not need is imported later.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from userspace_cni.cni.errors import CniError, Code, internal_error
from userspace_cni.cni.versions import SUPPORTED

if TYPE_CHECKING:
    from typing import TextIO

    from userspace_cni.cni.request import Request
    from userspace_cni.config.settings import Settings
    from userspace_cni.runtime import Runtime

_NEWEST = SUPPORTED[-1]


class Answer(NamedTuple):
    """What the caller gets."""

    #: The exit status.
    status: int
    #: Standard output: one JSON object, or nothing where the specification has none.
    out: str
    #: That of the error, 0 for a success.
    code: int


def answer(
    environ: Mapping[str, str],
    stdin: bytes,
    serve: Callable[[Mapping[str, str], dict[str, Any]], dict[str, Any] | None],
) -> Answer:
    """Answer the call that *environ* and *stdin* make. Never raises.

    *serve* is given the environment and the decoded configuration of every command but VERSION.
    """
    version = _NEWEST
    try:
        if environ.get("CNI_COMMAND") == "VERSION":
            return _success(_versions(stdin))
        from userspace_cni.cni import request

        config = request.decode(stdin)
        stated = config.get("cniVersion")
        version = stated if stated in SUPPORTED else _NEWEST
        return _success(serve(environ, config))
    except CniError as error:
        return failure(error, version)
    except BaseException as error:  # noqa: BLE001  whatever happens the caller must get JSON
        return failure(_internal(error), version)


def failure(error: CniError, version: str = _NEWEST) -> Answer:
    """Return how a caller of CNI *version* is told of *error*."""
    return Answer(1, json.dumps(error.to_json(version)) + "\n", error.code or Code.INTERNAL)


def serve(
    runtime: Runtime, settings: Settings, request: Request, stderr: TextIO
) -> dict[str, Any] | None:
    """Let *runtime* serve *request*; what is logged goes to *stderr*, and where *settings* say.

    A network's own ``logFile`` and ``logLevel`` win over the node's.
    """
    from pathlib import Path

    from userspace_cni import deadline, log
    from userspace_cni.config.settings import LOG_LEVELS

    own_file, own_level = (request.config.get(key) for key in ("logFile", "logLevel"))
    level = own_level.lower() if isinstance(own_level, str) else ""
    with (
        deadline.within(settings.budget),
        log.scope(
            level if level in LOG_LEVELS else settings.log_level,
            Path(own_file)
            if isinstance(own_file, str) and own_file.startswith("/")
            else settings.log_file,
            f"{request.command} network={request.network} container={request.container_id} "
            f"ifname={request.ifname}: ",
            stderr,
        ),
    ):
        try:
            return runtime.serve(request)
        except CniError:
            raise
        except BaseException as error:
            raise _internal(error) from error


def outlive_engines() -> None:
    """Let ``os._exit`` in an engine end its request as ``sys.exit`` does, and not this process.

    The caller would get no answer, and in the daemon no caller would. A child ends as it wants to.
    """
    own, leave = os.getpid(), os._exit

    def end(status: int) -> NoReturn:
        if os.getpid() == own:
            raise SystemExit(f"os._exit({status})")
        leave(status)

    setattr(os, "_exit", end)  # noqa: B010  to mypy a function is no variable


def _internal(error: BaseException) -> CniError:
    from userspace_cni.log import logger

    logger.error("internal error", exc_info=error)
    return internal_error(error)


def _success(body: dict[str, Any] | None) -> Answer:
    return Answer(0, "" if body is None else json.dumps(body) + "\n", 0)


def _versions(stdin: bytes) -> dict[str, Any]:
    """Answer VERSION, in the version of the input (SPEC, "VERSION"); some callers send none."""
    try:
        stated = json.loads(stdin).get("cniVersion")
    except (ValueError, AttributeError, RecursionError):
        stated = None
    version = stated if isinstance(stated, str) and stated else _NEWEST
    return {"cniVersion": version, "supportedVersions": list(SUPPORTED)}
