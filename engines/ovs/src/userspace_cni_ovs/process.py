"""The process ovs-vswitchd, as its pid file tells it.

Open vSwitch holds a lock on the file for as long as it runs (fcntl(2), F_SETLK): the kernel tells
who does, by the number that the process has here, whatever number stands in the file.
"""

from __future__ import annotations

import fcntl
import os
import struct

from attrs import frozen

_FLOCK = struct.Struct("hhqqi4x")  # l_type, l_whence, l_start, l_len, l_pid


@frozen
class Process:
    """An ovs-vswitchd that runs."""

    #: Changes with every start.
    generation: str
    #: 0 where it is in a process namespace that cannot be seen from here.
    pid: int


def of(path: str) -> Process | None:
    """Return the process that has the pid file *path*, None where there is no file, or nobody."""
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
