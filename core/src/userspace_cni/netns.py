"""Work inside a network namespace.

A network namespace belongs to a thread (setns(2)): the caller's thread goes there and comes back.
One of its own would cost more than the work. A socket stays in the namespace that it was opened in,
so one can be opened here and used by the caller.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import struct
import threading
from collections.abc import Callable
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from userspace_cni.cni.errors import CniError, Code

if TYPE_CHECKING:
    from collections.abc import Iterator

_P = ParamSpec("_P")
_T = TypeVar("_T")

_CLONE_NEWNET = 0x40000000
_NS_GET_NSTYPE = 0xB703  # ioctl_ns(2)
_SIOCSIFFLAGS = 0x8914
_IFF_UP = 1
_OWN = "/proc/thread-self/ns/net"


def exists(path: str) -> bool:
    """Tell whether *path* is a network namespace now."""
    try:
        with _opened(path):
            return True
    except CniError:
        return False


def identity(path: str) -> str:
    """Return what tells the network namespace *path* from all others that exist now.

    Raises:
        CniError: code 4 when *path* is no network namespace.

    """
    with _opened(path) as namespace:
        return _identity(namespace)


def is_gone(path: str, identity: str) -> bool:
    """Tell whether the network namespace that had *identity* is no longer at *path*.

    Paths are used again: ``/proc/PID/ns/net`` with the process id. A file that is no namespace is
    not gone, because the mount on it may just not be seen from here; nor is one whose directory is
    missing too, for the same reason. The empty *identity* is any.
    """
    try:
        with _opened(path) as namespace:
            return bool(identity) and _identity(namespace) != identity
    except CniError:
        in_sight = path.startswith("/proc/") or os.path.isdir(os.path.dirname(path))
        return in_sight and not os.path.exists(path)


def require_foreign(path: str) -> None:
    """Raise a CNI error unless *path* is a network namespace other than the caller's own.

    Raises:
        CniError: code 4 when *path* is no network namespace, 8 when it is our own, in which an ADD
            would tear at the host's own interfaces.

    """
    with _opened(path) as namespace:
        theirs, own = os.fstat(namespace), os.stat(_OWN)
    if (theirs.st_dev, theirs.st_ino) == (own.st_dev, own.st_ino):
        raise CniError(
            Code.INVALID_NETNS,
            f"CNI_NETNS={path} is the network namespace of the plugin itself",
            "give the container a network namespace of its own, or set CNI_NETNS_OVERRIDE=1",
        )


def call(path: str, function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
    """Call *function* inside the network namespace *path* and return what it returns.

    Raises:
        CniError: code 4 when *path* is no network namespace.
        Exception: whatever *function* raises.

    """
    with _opened(path) as namespace, _opened(_OWN) as own:
        _setns(namespace)
        try:
            return function(*args, **kwargs)
        finally:
            try:
                _setns(own)
            except OSError:  # pragma: no cover  it is open, and we are root
                # What this thread does next would befall the container.
                os.abort()


def _identity(namespace: int) -> str:
    found = os.fstat(namespace)
    return f"{found.st_dev}:{found.st_ino}"


@contextmanager
def created() -> Iterator[str]:
    """Make a network namespace with its loopback up, and yield its path.

    It lives as long as the context, and as what runs in it. Nothing is mounted for it.

    Raises:
        CniError: code 5 when the kernel refuses.

    """
    made: list[int] = []
    failure: list[OSError] = []

    def unshare() -> None:
        try:
            _checked("unshare", _CLONE_NEWNET)
            made.append(os.open(_OWN, os.O_RDONLY | os.O_CLOEXEC))
            _loopback_up()
        except OSError as error:
            failure.append(error)

    thread = threading.Thread(target=unshare, name="new netns")
    thread.start()
    thread.join()
    try:
        if failure:
            raise CniError(
                Code.IO_FAILURE,
                "cannot make a network namespace",
                f"{failure[0].strerror}; it takes root",
            )
        yield f"/proc/{os.getpid()}/fd/{made[0]}"
    finally:
        for descriptor in made:
            os.close(descriptor)


def _loopback_up() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as any_socket:
        request = struct.pack("16sH22x", b"lo", _IFF_UP)  # struct ifreq, netdevice(7)
        fcntl.ioctl(any_socket, _SIOCSIFFLAGS, request)


@contextmanager
def _opened(path: str) -> Iterator[int]:
    try:
        namespace = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise CniError(
            Code.INVALID_ENVIRONMENT, f"CNI_NETNS={path} cannot be opened", error.strerror or ""
        ) from error
    try:
        try:
            kind = fcntl.ioctl(namespace, _NS_GET_NSTYPE)
        except OSError:
            kind = 0
        if kind != _CLONE_NEWNET:
            raise CniError(
                Code.INVALID_ENVIRONMENT,
                f"CNI_NETNS={path} is not a network namespace",
                "give the path of one; it is gone if the container has ended",
            )
        yield namespace
    finally:
        os.close(namespace)


def _setns(namespace: int) -> None:
    # os.setns() exists since Python 3.12.
    _checked("setns", namespace, _CLONE_NEWNET)


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _checked(function: str, *arguments: int) -> None:
    """Call a *function* of the C library that returns 0, or else sets errno."""
    if getattr(_libc(), function)(*arguments):
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error), function)
