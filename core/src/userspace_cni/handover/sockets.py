"""Sockets in a directory that others may write to: what a program that was killed has left."""

from __future__ import annotations

import errno
import os
import socket
import stat


def discard_stale(directory: int, name: str) -> bool:
    """Remove the socket *name* of the open *directory* if nobody has it; tell whether it was so.

    Raises:
        OSError: when it cannot be removed.

    """
    if not is_socket(directory, name) or is_served(directory, name):
        return False
    os.unlink(name, dir_fd=directory)
    return True


def is_socket(directory: int, name: str) -> bool:
    """Tell whether *name* in the open *directory* is a socket; a link to one is none."""
    try:
        return stat.S_ISSOCK(os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode)
    except OSError:
        return False


def is_served(directory: int, name: str) -> bool:
    """Tell whether somebody listens on *name* in the open *directory*, if it is a socket."""
    if not is_socket(directory, name):
        return False
    # Whoever has bound a stream or a packet socket refuses a datagram one for its type, and does
    # not notice it. A connection would be noticed: after one that says nothing, the memif driver of
    # DPDK 22.11 never ends, and ovs-vswitchd with it.
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
        # A descriptor's path is short, however long the directory's is.
        return probe.connect_ex(f"/proc/self/fd/{directory}/{name}") != errno.ECONNREFUSED
