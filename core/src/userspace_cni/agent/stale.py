"""Removes the socket that a killed application leaves behind.

Neither DPDK's virtio-user driver nor its memif driver replaces it; the next application would fail
with "Address already in use".
"""

from __future__ import annotations

import os
from collections.abc import Iterable

from userspace_cni.handover import Document, sockets
from userspace_cni.handover.document import ABSTRACT
from userspace_cni.log import logger


def discard(documents: Iterable[Document]) -> None:
    """Remove each socket that the application itself serves, if nobody listens on it."""
    for document in documents:
        port = document.handoff.port
        if port.role == "server" and port.socket and not port.socket.startswith(ABSTRACT):
            _discard(*os.path.split(port.socket))


def _discard(path: str, name: str) -> None:
    try:
        directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            if sockets.discard_stale(directory, name):
                logger.info("removed %s/%s, on which nobody listens any more", path, name)
        finally:
            os.close(directory)
    except FileNotFoundError:
        pass  # the directory does not exist yet
    except OSError as error:
        logger.warning(
            "%s/%s cannot be removed, and nobody listens on it: %s; the application may fail with "
            "'Address already in use'",
            path,
            name,
            error.strerror,
        )
