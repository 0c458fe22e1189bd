"""The CNI executable, which serves one request per process.

Imports cost time in every call, so modules that VERSION does not need are imported later.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING

from userspace_cni import dispatch
from userspace_cni.cni.answer import Answer, failure
from userspace_cni.cni.errors import CniError, Code
from userspace_cni.cni.versions import SUPPORTED

if TYPE_CHECKING:
    from typing import TextIO


def main() -> int:
    """Serve the request in the environment and standard input; return the exit status.

    Standard output gets one JSON object, or nothing if the specification demands that. Everything
    else goes to standard error.
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


def respond(environ: Mapping[str, str], stdin: bytes, stderr: TextIO) -> Answer:
    """Serve the request in *environ* and *stdin*; log to *stderr*."""
    with dispatch.Dispatcher() as dispatcher:
        return dispatcher.call(environ, stdin, stderr)


def _answer() -> Answer:
    try:
        stdin = _read()
    except CniError as error:
        return failure(error)
    return respond(os.environ, stdin, sys.stderr)


def _reserved_output() -> TextIO:
    """Return standard output, and replace it by standard error.

    Output of an engine, its libraries and their children thus cannot get into the answer.
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
