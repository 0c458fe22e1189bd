"""Faults in the calls that an engine makes to the outside: files, sockets, processes, the kernel.

The calls are found while they are made, by Python's audit events (PEP 578) and by the methods of
``socket.socket`` that have none, so that no list of an engine's steps can be out of date.
"""

from __future__ import annotations

import errno
import os
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from attrs import define

#: Audit events of calls that reach the outside (https://docs.python.org/3/library/audit_events.html).
_EVENTS = frozenset(
    {
        "fcntl.ioctl",
        "open",
        "os.chmod",
        "os.chown",
        "os.link",
        "os.mkdir",
        "os.posix_spawn",
        "os.remove",
        "os.rename",
        "os.rmdir",
        "os.symlink",
        "os.truncate",
        "socket.bind",
        "socket.connect",
        "subprocess.Popen",
    }
)
#: Reading fails after the peer has done what was asked, which is the harder case.
_METHODS = ("recv", "recv_into", "recvfrom", "recvmsg", "send", "sendall", "sendmsg", "sendto")
_current = threading.local()


@define
class Fault:
    """The calls of one thread, of which one fails."""

    #: Which call fails, counted from 1; 0 for none.
    number: int
    #: How many calls were made.
    count: int = 0
    #: Description of the call that failed, empty as long as none did.
    failed: str = ""

    def _made(self, what: str, error: int) -> None:
        self.count += 1
        if self.count == self.number:
            self.failed = what
            raise OSError(error, f"{os.strerror(error)} (a fault that the test made)")


@contextmanager
def failing(number: int = 0) -> Iterator[Fault]:
    """Let the external call *number* of this thread fail in the body; with 0 only count them.

    The call raises OSError: ECONNRESET on a socket, EIO on all else. Calls after it work.
    """
    _install()
    fault = Fault(number)
    _current.fault = fault
    try:
        yield fault
    finally:
        _current.fault = None


@contextmanager
def unharmed() -> Iterator[None]:
    """Let no call fail in the body, nor count: it is not the engine's work."""
    fault, _current.fault = getattr(_current, "fault", None), None
    try:
        yield
    finally:
        _current.fault = fault


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    fault: Fault | None = getattr(_current, "fault", None)
    if fault is None or event not in _EVENTS:
        return
    reset = event.startswith("socket.")
    fault._made(f"{event}{arguments!r}", errno.ECONNRESET if reset else errno.EIO)  # noqa: SLF001


def _watched(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
    def call(self: socket.socket, *arguments: Any, **keywords: Any) -> Any:
        fault: Fault | None = getattr(_current, "fault", None)
        if fault is not None:
            fault._made(f"socket.{name}{arguments!r}", errno.ECONNRESET)  # noqa: SLF001
        return method(self, *arguments, **keywords)

    return call


_installed = threading.Lock()
_is_installed = False


def _install() -> None:
    """Start to watch; an audit hook stays as long as the process."""
    global _is_installed  # noqa: PLW0603  there is one interpreter to watch
    with _installed:
        if _is_installed:
            return
        sys.addaudithook(_audit)
        for name in _METHODS:
            setattr(socket.socket, name, _watched(name, getattr(socket.socket, name)))
        _is_installed = True
