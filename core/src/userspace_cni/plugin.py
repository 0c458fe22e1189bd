"""The CNI executable: one request, one process.

What is imported here is paid for by every call; all that VERSION does not need is imported later.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import Any

from userspace_cni import exchange
from userspace_cni.cni.errors import CniError, Code
from userspace_cni.cni.versions import SUPPORTED


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
        answer = exchange.answer(os.environ, _read(), _serve)
    except CniError as error:
        answer = exchange.failure(error)
    sys.stdout.write(answer.out)
    sys.stdout.flush()
    return answer.status


def _read() -> bytes:
    try:
        return sys.stdin.buffer.read()
    except (OSError, AttributeError) as error:  # AttributeError: standard input is closed
        raise CniError(Code.IO_FAILURE, "standard input cannot be read", str(error)) from error


def _serve(environ: Mapping[str, str], config: dict[str, Any]) -> dict[str, Any] | None:
    from userspace_cni import settings
    from userspace_cni.cni import request
    from userspace_cni.runtime import Runtime

    parsed = request.parse(environ, config)
    node = settings.load(environ)
    runtime = Runtime(node)
    try:
        return exchange.serve(runtime, node, parsed, sys.stderr)
    finally:
        runtime.close()
