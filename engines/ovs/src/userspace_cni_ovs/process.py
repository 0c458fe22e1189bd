"""The ovs-vswitchd process, found through its pid file.

ovs-vswitchd locks the file while it runs (fcntl(2), F_SETLK). The kernel returns the PID of the
lock's holder as seen from the caller's PID namespace; the number in the file is not used.
"""

from __future__ import annotations

import fcntl
import os
import struct

from attrs import frozen

_FLOCK = struct.Struct("hhqqi4x")  # l_type, l_whence, l_start, l_len, l_pid


@frozen
class Process:
    """A running ovs-vswitchd."""

    #: Changes with every start.
    generation: str
    #: 0 if the process is in a PID namespace that is not visible from here.
    pid: int


def of(path: str) -> Process | None:
    """Return the process that holds the pid file *path*; None without a file or a holder."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        kind, *_, pid = _FLOCK.unpack(fcntl.fcntl(file, fcntl.F_GETLK, asked))
        if kind == fcntl.F_UNLCK:
            return None
        found = os.fstat(file)
    finally:
        os.close(file)
    return Process(f"{found.st_ino} {found.st_mtime_ns}", max(pid, 0))
