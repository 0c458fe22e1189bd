"""The CNI executable: one request, one process.

What is imported here is paid for by every call; all that VERSION does not need is imported later.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from typing import Any

from userspace_cni.cni.errors import CniError, Code, internal_error
from userspace_cni.cni.versions import SUPPORTED

_NEWEST = SUPPORTED[-1]


def main() -> int:
    """Serve the request that the environment and standard input make; return the exit status.

    Standard output gets one JSON object, or nothing where the specification has none; all else goes
    to standard error.
    """
    command = os.environ.get("CNI_COMMAND")
    if not command:
        sys.stderr.write(
            "userspace: a CNI plugin that attaches containers to user-space dataplanes\n"
            f"CNI protocol versions supported: {', '.join(SUPPORTED)}\n"
            "It is executed by a container runtime; people use userspace-cni.\n"
        )
        return 0
    version = _NEWEST
    try:
        stdin = _read()
        if command == "VERSION":
            return _answer(_versions(stdin))
        from userspace_cni.cni import request

        config = request.decode(stdin)
        stated = config.get("cniVersion")
        version = stated if stated in SUPPORTED else _NEWEST
        return _answer(_serve(os.environ, config))
    except CniError as error:
        return _fail(error, version)
    except BaseException as error:  # noqa: BLE001  whatever happens the caller must get JSON
        from userspace_cni.log import logger

        logger.exception("internal error")
        return _fail(internal_error(error), version)


def _read() -> bytes:
    try:
        return sys.stdin.buffer.read()
    except (OSError, AttributeError) as error:  # AttributeError: standard input is closed
        raise CniError(Code.IO_FAILURE, "standard input cannot be read", str(error)) from error


def _versions(stdin: bytes) -> dict[str, Any]:
    """Answer VERSION, in the version of the input (SPEC, "VERSION"); some callers send none."""
    try:
        stated = json.loads(stdin).get("cniVersion")
    except (ValueError, AttributeError, RecursionError):
        stated = None
    version = stated if isinstance(stated, str) and stated else _NEWEST
    return {"cniVersion": version, "supportedVersions": list(SUPPORTED)}


def _serve(environ: Mapping[str, str], config: dict[str, Any]) -> dict[str, Any] | None:
    from pathlib import Path

    from userspace_cni import log, settings
    from userspace_cni.cni import request
    from userspace_cni.runtime import Runtime

    parsed = request.parse(environ, config)
    node = settings.load(environ)
    own_file, own_level = (config.get(key) for key in ("logFile", "logLevel"))
    log.configure(
        own_level.lower()
        if isinstance(own_level, str) and own_level.lower() in settings.LOG_LEVELS
        else node.log_level,
        Path(own_file) if isinstance(own_file, str) and own_file.startswith("/") else node.log_file,
        f"{parsed.command} network={parsed.network} container={parsed.container_id} "
        f"ifname={parsed.ifname}: ",
    )
    runtime = Runtime(node, environ)
    try:
        return runtime.serve(parsed)
    finally:
        runtime.close()


def _answer(body: dict[str, Any] | None) -> int:
    if body is not None:
        sys.stdout.write(json.dumps(body) + "\n")
        sys.stdout.flush()
    return 0


def _fail(error: CniError, version: str) -> int:
    sys.stdout.write(json.dumps(error.to_json(version)) + "\n")
    sys.stdout.flush()
    return 1
