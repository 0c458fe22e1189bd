"""Fault injection for an engine's external calls: files, sockets, processes, the kernel.

Calls are intercepted at run time, through Python's audit events (PEP 578) and through those methods
of ``socket.socket`` that raise no audit event. No list of an engine's steps has to be maintained.
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

#: Audit events of external calls (https://docs.python.org/3/library/audit_events.html).
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
#: Reads are included: they fail after the peer has executed the request, which is harder to undo.
_METHODS = ("recv", "recv_into", "recvfrom", "recvmsg", "send", "sendall", "sendmsg", "sendto")
_current = threading.local()


@define
class Fault:
    """The external calls of one thread, one of which fails."""

    #: Which call fails, counted from 1; 0 for none.
    number: int
    #: How many calls were made.
    count: int = 0
    #: Description of the call that failed; empty if none did.
    failed: str = ""

    def _made(self, what: str, error: int) -> None:
        self.count += 1
        if self.count == self.number:
            self.failed = what
            raise OSError(error, f"{os.strerror(error)} (a fault that the test made)")


@contextmanager
def failing(number: int = 0) -> Iterator[Fault]:
    """Make one external call of this thread fail in the body; later calls succeed.

    Args:
        number: which call fails, counted from 1; with 0 calls are only counted. The call raises
            OSError with ECONNRESET if it is on a socket, otherwise with EIO.

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
    """Exempt the body from fault injection and counting: it is not the engine's work."""
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
    """Install the hooks once per process; an audit hook cannot be removed."""
    global _is_installed  # noqa: PLW0603  there is one interpreter to watch
    with _installed:
        if _is_installed:
            return
        sys.addaudithook(_audit)
        for name in _METHODS:
            setattr(socket.socket, name, _watched(name, getattr(socket.socket, name)))
        _is_installed = True
