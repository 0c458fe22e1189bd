"""Function calls in network namespaces, and the identity of namespaces.

Each thread has its own network namespace (setns(2)). The calling thread enters the namespace and
returns; a separate thread would cost more than the work itself. A socket stays in the namespace in
which it was opened, so a function can open one and return it to the caller.
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
#: A path and the descriptor that is used for it, see :func:`pinned`.
_pinned: ContextVar[tuple[str, int]] = ContextVar("pinned", default=("", -1))


def exists(path: str) -> bool:
    """Return whether *path* currently is a network namespace."""
    try:
        with _opened(path):
            return True
    except CniError:
        return False


def identity(path: str) -> str:
    """Return a unique identifier of the network namespace *path*.

    It consists of the kernel's cookie and the ID of the boot, ``COOKIE@BOOT``. Kernels before 5.14
    and old records have device and inode instead, ``DEVICE:INODE``, which the kernel may reuse.

    Raises:
        CniError: code 4 if *path* is not a network namespace.

    """
    with _opened(path) as namespace:
        return _identity(namespace)


def is_gone(path: str, identity: str, *, afresh: bool = False) -> bool:
    """Return whether the network namespace with *identity* is no longer at *path*.

    Paths are reused, such as ``/proc/PID/ns/net``. If *path* is a file that is not a namespace, or
    its directory is missing, the namespace does not count as gone: its mount may only be invisible
    from here.

    Args:
        path: where the namespace was.
        identity: see :func:`identity`; empty for any namespace.
        afresh: look the path up even if it is :func:`pinned`.

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
    """Open the network namespace *path* once, and yield whether it has *identity*.

    During the body this thread uses the opened namespace whenever it works at *path*, even if the
    path leads to another one by then. An empty *identity* matches any namespace.
    """
    try:
        namespace = open_namespace(path)
    except CniError:
        yield not is_gone(path, identity)  # it may only be invisible from here
        return
    token = _pinned.set((path, namespace))
    try:
        yield not identity or _is(namespace, identity)
    finally:
        _pinned.reset(token)
        os.close(namespace)


def require_foreign(path: str) -> None:
    """Require that *path* is a network namespace other than the caller's own.

    Raises:
        CniError: code 4 if *path* is not a network namespace; 8 if it is the caller's own, where an
            ADD would change the host's interfaces.

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
    """Call *function* in the network namespace *path* and return its result.

    Raises:
        CniError: code 4 if *path* is not a network namespace.
        Exception: the exception that *function* raises.

    """
    with _opened(path) as namespace:
        return call_in(namespace, function, *args, **kwargs)


def call_in(namespace: int, function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
    """Call *function* in the network namespace of the file descriptor *namespace*."""
    with _opened(_OWN) as own:
        _setns(namespace)
        try:
            return function(*args, **kwargs)
        finally:
            try:
                _setns(own)
            except OSError:  # pragma: no cover  the descriptor is open and we are root
                # Continuing would let this thread's next operations change the container.
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
    """Create a network namespace with its loopback interface up, and yield its path.

    The namespace exists until the context ends and no process runs in it. Nothing is mounted.

    Raises:
        CniError: code 5 if the kernel refuses.

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
                "cannot create a network namespace",
                f"{failure[0].strerror}; it requires root",
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
    """Return a new file descriptor of the network namespace *path*; see also :func:`pinned`.

    Raises:
        CniError: code 4 if *path* is not a network namespace.

    """
    at, descriptor = _pinned.get()
    if path and path == at:  # both are empty if nothing is pinned
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
    # os.setns() requires Python 3.12.
    _checked("setns", namespace, _CLONE_NEWNET)


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _checked(function: str, *arguments: int) -> None:
    """Call a *function* of the C library that returns 0 or sets errno; raise OSError for errno."""
    if getattr(_libc(), function)(*arguments):
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error), function)
