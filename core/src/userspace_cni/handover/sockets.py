"""Finds and removes sockets that a killed program left in a directory that others can write to."""

from __future__ import annotations

import errno
import os
import socket
import stat


def discard_stale(directory: int, name: str) -> bool:
    """Remove the socket *name* of the open *directory* if it is stale; return whether it was.

    A socket is stale if nobody listens on it.

    Raises:
        OSError: when it cannot be removed.

    """
    if not is_socket(directory, name) or is_served(directory, name):
        return False
    os.unlink(name, dir_fd=directory)
    return True


def is_socket(directory: int, name: str) -> bool:
    """Return whether *name* in the open *directory* is a socket, and not a link to one."""
    try:
        return stat.S_ISSOCK(os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode)
    except OSError:
        return False


def is_served(directory: int, name: str) -> bool:
    """Return whether *name* in the open *directory* is a socket on which somebody listens."""
    if not is_socket(directory, name):
        return False
    # A datagram socket cannot connect to a bound stream or packet socket, and its attempt is not
    # noticed by the listener. A real connection would be noticed: after a connection without data,
    # the memif driver of DPDK 22.11 never ends, and neither does ovs-vswitchd.
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
        # The path of a descriptor is always short.
        return probe.connect_ex(f"/proc/self/fd/{directory}/{name}") != errno.ECONNREFUSED
