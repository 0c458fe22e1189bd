"""Work inside a network namespace.

A network namespace belongs to a thread (setns(2)): the caller's thread goes there and comes back.
One of its own would cost more than the work. A socket stays in the namespace that it was opened in,
so one can be opened here and used by the caller.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import socket
import struct
import sys
import threading
from collections.abc import Callable
from contextlib import contextmanager
from contextvars import ContextVar
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
_SO_NETNS_COOKIE = 71  # <asm-generic/socket.h>, since Linux 5.14
_OWN = "/proc/thread-self/ns/net"
#: A path, and the descriptor of the namespace that it leads to for now.
_pinned: ContextVar[tuple[str, int]] = ContextVar("pinned", default=("", -1))


def exists(path: str) -> bool:
    """Tell whether *path* is a network namespace now."""
    try:
        with _opened(path):
            return True
    except CniError:
        return False


def identity(path: str) -> str:
    """Return what tells the network namespace *path* from all others there are, were or will be.

    The kernel's cookie, with the id of the boot: ``COOKIE@BOOT``. A kernel before 5.14 has none;
    its device and inode, ``DEVICE:INODE``, are used again, and so they are in old records.

    Raises:
        CniError: code 4 when *path* is no network namespace.

    """
    with _opened(path) as namespace:
        return _identity(namespace)


def is_gone(path: str, identity: str, *, afresh: bool = False) -> bool:
    """Tell whether the network namespace that had *identity* is no longer at *path*.

    Paths are used again: ``/proc/PID/ns/net`` with the process id. A file that is no namespace is
    not gone, because the mount on it may just not be seen from here; nor is one whose directory is
    missing too, for the same reason. The empty *identity* is any. *afresh*: look where the path
    leads now, whatever is :func:`pinned`.
    """
    token = _pinned.set(("", -1)) if afresh else None
    try:
        with _opened(path) as namespace:
            return bool(identity) and not _is(namespace, identity)
    except CniError:
        in_sight = path.startswith("/proc/") or os.path.isdir(os.path.dirname(path))
        return in_sight and not os.path.exists(path)
    finally:
        if token is not None:
            _pinned.reset(token)


@contextmanager
def pinned(path: str, identity: str) -> Iterator[bool]:
    """Open the network namespace *path* once, and tell whether it has *identity*.

    While the body runs, this thread's work at *path* is done in what was opened, wherever the path
    leads by then. The empty *identity* is any.
    """
    try:
        namespace = open_namespace(path)
    except CniError:
        yield not is_gone(path, identity)  # perhaps it is just not seen from here
        return
    token = _pinned.set((path, namespace))
    try:
        yield not identity or _is(namespace, identity)
    finally:
        _pinned.reset(token)
        os.close(namespace)


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
    with _opened(path) as namespace:
        return call_in(namespace, function, *args, **kwargs)


def call_in(namespace: int, function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
    """Do as :func:`call`, in the network namespace that is open as descriptor *namespace*."""
    with _opened(_OWN) as own:
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
    try:
        return f"{call_in(namespace, _cookie)}@{_boot()}"
    except OSError as error:
        if error.errno != errno.ENOPROTOOPT:
            raise
        return _inode(namespace)


def _is(namespace: int, identity: str) -> bool:
    return identity == (_identity(namespace) if "@" in identity else _inode(namespace))


def _inode(namespace: int) -> str:
    found = os.fstat(namespace)
    return f"{found.st_dev}:{found.st_ino}"


def _cookie() -> int:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as any_socket:
        raw = any_socket.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8)
    return int.from_bytes(raw, sys.byteorder)


@cache
def _boot() -> str:
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()


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


def open_namespace(path: str) -> int:
    """Return a new file descriptor of the network namespace *path*; see :func:`pinned`.

    Raises:
        CniError: code 4 when *path* is no network namespace.

    """
    at, descriptor = _pinned.get()
    if path == at:
        return fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 0)
    try:
        namespace = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise CniError(
            Code.INVALID_ENVIRONMENT, f"CNI_NETNS={path} cannot be opened", error.strerror or ""
        ) from error
    try:
        kind = fcntl.ioctl(namespace, _NS_GET_NSTYPE)
    except OSError:
        kind = 0
    if kind != _CLONE_NEWNET:
        os.close(namespace)
        raise CniError(
            Code.INVALID_ENVIRONMENT,
            f"CNI_NETNS={path} is not a network namespace",
            "give the path of one; it is gone if the container has ended",
        )
    return namespace


@contextmanager
def _opened(path: str) -> Iterator[int]:
    namespace = open_namespace(path)
    try:
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
