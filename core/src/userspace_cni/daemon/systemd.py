"""Notification of systemd about the service's state: sd_notify(3)."""

from __future__ import annotations

import os
import socket

from userspace_cni.log import logger


def notify(state: str) -> None:
    """Send *state*, such as ``READY=1``, to the socket NOTIFY_SOCKET; do nothing without it."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as end:
            end.connect(address)
            end.sendall(state.encode())
    except OSError as error:
        logger.warning("cannot notify systemd of %s: %s", state, error)
