"""The CNI executable: one request, one process.

What is imported here is paid for by every call; all that VERSION does not need is imported later.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from userspace_cni import dispatch
from userspace_cni.cni.errors import CniError, Code
from userspace_cni.cni.versions import SUPPORTED

if TYPE_CHECKING:
    from pathlib import Path
    from typing import TextIO

    from userspace_cni.config.settings import Settings
    from userspace_cni.runtime import Runtime


def main() -> int:
    """Serve the request that the environment and standard input make; return the exit status.

    Standard output gets one JSON object, or nothing where the specification has none; all else goes
    to standard error.
    """
    if not os.environ.get("CNI_COMMAND"):
        sys.stderr.write(
            "userspace: a CNI plugin that attaches containers to user-space dataplanes\n"
            f"CNI protocol versions supported: {', '.join(SUPPORTED)}\n"
            "It is executed by a container runtime; people use userspace-cni.\n"
        )
        return 0
    try:
        dispatch.outlive_engines()
        with _reserved_output() as output:
            answer = _answer()
            output.write(answer.out)
    except OSError as error:
        sys.stderr.write(f"userspace: standard output cannot be written: {error}\n")
        return 1
    return answer.status


def respond(environ: Mapping[str, str], stdin: bytes, stderr: TextIO) -> dispatch.Answer:
    """Serve the request that *environ* and *stdin* make; what is logged goes to *stderr*."""
    return dispatch.answer(environ, stdin, partial(_serve, stderr=stderr))


def _answer() -> dispatch.Answer:
    try:
        stdin = _read()
    except CniError as error:
        return dispatch.failure(error)
    return respond(os.environ, stdin, sys.stderr)


def _reserved_output() -> TextIO:
    """Return standard output, and leave standard error in its place.

    What an engine, its libraries or their children print cannot get into the answer then.
    """
    output = os.fdopen(os.dup(1), "w", encoding="utf-8")  # children do not inherit it
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    return output


def _read() -> bytes:
    try:
        return sys.stdin.buffer.read()
    except (OSError, AttributeError) as error:  # AttributeError: standard input is closed
        raise CniError(Code.IO_FAILURE, "standard input cannot be read", str(error)) from error


def _serve(
    environ: Mapping[str, str], config: dict[str, Any], *, stderr: TextIO
) -> dict[str, Any] | None:
    from userspace_cni import deadline
    from userspace_cni.cni import request
    from userspace_cni.config.settings import load
    from userspace_cni.runtime import Runtime

    parsed = request.parse(environ, config)
    settings = load(environ)
    runtime = Runtime(settings)
    try:
        with deadline.within(settings.budget):
            if parsed.command == "ADD" and _is_any(settings.queue):
                _replay_before(environ, runtime, settings)
            return dispatch.serve(runtime, settings, parsed, stderr)
    finally:
        runtime.close()


def _is_any(directory: Path) -> bool:
    try:
        return bool(os.listdir(directory))
    except OSError:
        return False


def _replay_before(environ: Mapping[str, str], runtime: Runtime, settings: Settings) -> None:
    """Carry out the DELs of the same attachment that the shim has queued while a daemon died."""
    from userspace_cni.cni import request
    from userspace_cni.daemon.observer import Observer
    from userspace_cni.daemon.queue import Queue

    def answer(environ: Mapping[str, str], stdin: bytes, stderr: TextIO) -> dispatch.Answer:
        def serve(environ: Mapping[str, str], config: dict[str, Any]) -> dict[str, Any] | None:
            return dispatch.serve(runtime, settings, request.parse(environ, config), stderr)

        return dispatch.answer(environ, stdin, serve)

    Queue(settings.queue, answer, Observer()).replay_before(environ)
