"""Leases of host-local: a directory with a file for each allocated address.

The executable of the reference plugins may use the same directory, even at the same time. A file's
name is the address, and its content is the owner: the container's ID, CR, LF and the interface's
name. Older versions wrote only the ID.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from errno import EMFILE, ENFILE, ENOMEM
from fcntl import LOCK_EX, LOCK_NB, flock

from userspace_cni.cni.errors import CniError, Code
from userspace_cni.cni.result import IPAddress
from userspace_cni.ipam.address import address

_LOCK = "lock"
_LAST = "last_reserved_ip."
#: A new lease is written under this name and becomes valid atomically by link(2).
_NEW = ".new"
_PAUSE = 0.001  # seconds between attempts, because flock(2) has no timeout
#: Nearly every owner is shorter than this number of bytes.
_OWNER_USUAL = 1024
#: Maximum length of an owner in bytes: CNI_CONTAINERID, as long as the kernel allows an environment
#: variable to be (MAX_ARG_STRLEN in <linux/binfmts.h>), and an interface's name.
_OWNER_MAX = (1 << 17) + 32
#: CLOCK_REALTIME_COARSE, which the kernel uses for timestamps of files (<linux/time.h>).
_COARSE = 5
#: Errors of this process or node, not of a file: the file may be a lease.
_SHORTAGES = (EMFILE, ENFILE, ENOMEM)


def owner(container_id: str, ifname: str) -> bytes:
    """Return the content of the attachment's leases; without *ifname* in the older format."""
    return (f"{container_id}\r\n{ifname}" if ifname else container_id).encode()


class Leases:
    """The leases in one directory.

    All methods except :meth:`locked` and :meth:`taken` must be called in the body of
    :meth:`locked`.

    The contents of the files are cached as long as no other program changes the directory. link(2)
    decides whether an address is free, and a file is read again before an action depends on it.
    """

    def __init__(self, directory: str) -> None:
        """Use *directory*, which is created when it is needed."""
        self.directory = directory
        self._turn = threading.Lock()
        #: Owners by path of the file, and paths by owner.
        self._owners: dict[str, bytes] = {}
        self._paths: dict[bytes, list[str]] = {}
        #: Identity and times of the directory; None if it may have changed since they were read.
        self._stamp: tuple[int, int, int, int] | None = None
        #: Whether the cache covers everything in the directory.
        self._complete = False

    @contextmanager
    def locked(self, until: float) -> Iterator[None]:
        """Hold the lock of the directory, which the executable uses as well.

        Args:
            until: when to give up, on the monotonic clock.

        Raises:
            CniError: 11 if the lock is not free in time.
            OSError: if the directory cannot be created, read or locked.

        """
        if not self._turn.acquire(timeout=max(until - time.monotonic(), 0)):
            raise self._busy()
        try:
            descriptor = self._open_lock()
            try:
                while not _locks(descriptor):
                    if time.monotonic() >= until:
                        raise self._busy()
                    time.sleep(_PAUSE)
                self._refresh()
                try:
                    yield
                except CniError:
                    self._seal()
                    raise
                self._seal()
            finally:
                os.close(descriptor)
        finally:
            self._turn.release()

    def taken(self) -> set[str]:
        """Return the names of all files, which include the allocated addresses."""
        try:
            return {*os.listdir(self.directory)}
        except FileNotFoundError:
            return set()

    def has(self, whose: bytes) -> bool:
        """Return whether the owner *whose* has a lease."""
        return any(_still(path, whose) for path in self._paths.get(whose, ()))

    def addresses(self, whose: bytes) -> Iterator[IPAddress]:
        """Yield the addresses of the owner *whose*."""
        for path in self._paths.get(whose, ()):
            found = address(os.path.basename(path))
            if found and _still(path, whose):
                yield found

    def reserve(self, name: str, whose: bytes) -> bool:
        """Allocate the address *name* to *whose*; return False if it is taken."""
        path = f"{self.directory}/{name}"
        if path in self._owners:
            return False
        self._stamp = None
        new = f"{self.directory}/{_NEW}"
        try:
            descriptor = _create(new)
        except FileExistsError:  # left by a process that died
            os.unlink(new)
            descriptor = _create(new)
        try:
            os.write(descriptor, whose)
        finally:
            os.close(descriptor)
        try:
            os.link(new, path)
        except FileExistsError:
            self._complete = False  # an unreadable file, or a program that does not use the lock
            return False
        finally:
            os.unlink(new)
        self._remember(path, whose)
        return True

    def release(self, whose: bytes) -> bool:
        """Free all leases of *whose*; return whether there were any."""
        freed = False
        for path in (*self._paths.get(whose, ()),):
            freed |= self._remove(path, whose)
        return freed

    def release_all_but(self, stays: Callable[[bytes], bool]) -> None:
        """Free every address for whose owner *stays* returns False."""
        for path, whose in (*self._owners.items(),):
            name = path.removeprefix(f"{self.directory}/")
            if (address(name) and not stays(whose)) or name == _NEW:
                self._remove(path, whose)

    def last(self, index: int) -> IPAddress | None:
        """Return the address that was last allocated from range set number *index*."""
        told = _content(f"{self.directory}/{_LAST}{index}")
        return None if told is None else address(told.decode("ascii", "replace"))

    def set_last(self, index: int, name: str) -> None:
        """Record that the address *name* was allocated last from range set number *index*."""
        path = f"{self.directory}/{_LAST}{index}"
        if path not in self._owners:
            self._stamp = None
        # Without O_TRUNC: ext4 writes a file that was truncated to the disk when it is closed, and
        # the next O_TRUNC waits for that.
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(descriptor, os.write(descriptor, name.encode()))
        finally:
            os.close(descriptor)
        self._remember(path, name.encode())

    # -- the lock

    def _open_lock(self) -> int:
        path = f"{self.directory}/{_LOCK}"
        flags = os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC
        try:
            return os.open(path, flags, 0o750)
        except FileNotFoundError:
            os.makedirs(self.directory, 0o755, exist_ok=True)
            return os.open(path, flags, 0o750)

    def _busy(self) -> CniError:
        return CniError(
            Code.TRY_AGAIN_LATER,
            f"the lock {self.directory}/{_LOCK} is not free in time",
            "see what holds it: a host-local process that hangs, or too many requests at once",
        )

    # -- the cache

    def _refresh(self) -> None:
        """Read the directory again if another program has changed it."""
        if self._stamp is None or self._stamp != self._stamp_now():
            self._stamp, self._complete = None, True
            self._owners.clear()
            self._paths.clear()
            self._read(self.directory)

    def _seal(self) -> None:
        """Set the directory's time so that any later change is visible.

        The kernel's clock for timestamps advances only every few milliseconds, so two changes may
        get the same time. Setting a time in the past avoids this, because no change can get it.
        """
        if self._stamp is not None or not self._complete:
            return
        past = time.clock_gettime_ns(_COARSE) - 1
        with suppress(OSError):
            os.utime(self.directory, ns=(past, past))
            stamp = self._stamp_now()
            if past in stamp:  # some file systems store only seconds
                self._stamp = stamp

    def _stamp_now(self) -> tuple[int, int, int, int]:
        found = os.stat(self.directory)
        return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_ctime_ns

    def _read(self, directory: str) -> None:
        """Read the files in *directory* and its subdirectories, as the executable does."""
        with os.scandir(directory) as entries:
            for entry in entries:
                is_directory = entry.is_dir(follow_symlinks=False)
                if is_directory or entry.is_symlink():
                    self._complete = False  # its contents may change without the directory
                if is_directory:
                    with suppress(OSError):
                        self._read(entry.path)
                elif entry.is_file() and (content := _content(entry.path)) is not None:
                    self._remember(entry.path, content.strip())

    def _remember(self, path: str, whose: bytes) -> None:
        self._forget(path)
        self._owners[path] = whose
        self._paths.setdefault(whose, []).append(path)

    def _forget(self, path: str) -> None:
        if (whose := self._owners.pop(path, None)) is not None:
            self._paths[whose].remove(path)
            if not self._paths[whose]:
                del self._paths[whose]

    def _remove(self, path: str, whose: bytes) -> bool:
        """Remove the file *path* if it still is the lease of *whose*."""
        if not _still(path, whose):
            self._stamp, self._complete = None, False
            return False
        self._stamp = None
        with suppress(FileNotFoundError):
            os.unlink(path)
        self._forget(path)
        return True


def _locks(descriptor: int) -> bool:
    try:
        flock(descriptor, LOCK_EX | LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _create(path: str) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)


def _content(path: str) -> bytes | None:
    """Return the content of *path*; None if it cannot be read, empty if it is too long.

    Raises:
        OSError: too many files are open, or there is too little memory.

    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            content = os.read(descriptor, _OWNER_USUAL)
            if len(content) == _OWNER_USUAL:
                content += os.read(descriptor, _OWNER_MAX + 1)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno in _SHORTAGES:
            raise
        return None
    return content if len(content) <= _OWNER_MAX else b""


def _still(path: str, whose: bytes) -> bool:
    """Return whether the file *path* is a lease of *whose*."""
    content = _content(path)
    return content is not None and content.strip() == whose
