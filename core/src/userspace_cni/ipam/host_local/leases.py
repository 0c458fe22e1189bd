"""The leases of host-local: a directory with a file for each address that somebody has.

The executable of the reference plugins works on the same directory, in turn or at once. A file is
named by its address and says whose it is: the container's id, CR, LF, the interface's name. Older
versions wrote the id alone.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from fcntl import LOCK_EX, LOCK_NB, flock

from userspace_cni.cni.errors import CniError, Code
from userspace_cni.cni.result import IPAddress
from userspace_cni.ipam.address import address

_LOCK = "lock"
_LAST = "last_reserved_ip."
#: Becomes a lease by link(2), whole or not at all.
_NEW = ".new"
_PAUSE = 0.001  # seconds; flock(2) has no timeout of its own
#: No owner is longer than this.
_OWNER_MAX = 1024
#: CLOCK_REALTIME_COARSE, by which the kernel dates files (<linux/time.h>).
_COARSE = 5


def owner(container_id: str, ifname: str) -> bytes:
    """Return what is in a lease of the attachment; of one by an older version, with no *ifname*."""
    return (f"{container_id}\r\n{ifname}" if ifname else container_id).encode()


class Leases:
    """The leases in one directory. All but :meth:`locked` and :meth:`taken` is for its body.

    What the files say is remembered for as long as nobody else changes the directory, which saves
    reading them all. link(2) decides whether an address is free, and a file is read again before
    anything is done because of it.
    """

    def __init__(self, directory: str) -> None:
        """Work in *directory*, which is made when it is needed."""
        self.directory = directory
        self._turn = threading.Lock()
        #: Owners by the path of the file, and paths by owner.
        self._owners: dict[str, bytes] = {}
        self._paths: dict[bytes, list[str]] = {}
        #: Of the directory, as long as nobody has changed it since it was read, or we have.
        self._stamp: tuple[int, int, int, int] | None = None
        #: Whether what is remembered is all that the directory has.
        self._complete = False

    @contextmanager
    def locked(self, until: float) -> Iterator[None]:
        """Hold the lock of the directory, which excludes the executable too.

        Raises:
            CniError: 11 when it is not to be had *until* then.
            OSError: the directory cannot be made, read or locked.

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
        """Return the names of all files, those of the addresses that somebody has among them."""
        try:
            return {*os.listdir(self.directory)}
        except FileNotFoundError:
            return set()

    def has(self, whose: bytes) -> bool:
        """Tell whether *whose* has a lease."""
        return any(_still(path, whose) for path in self._paths.get(whose, ()))

    def addresses(self, whose: bytes) -> Iterator[IPAddress]:
        """Yield the addresses that *whose* has."""
        for path in self._paths.get(whose, ()):
            found = address(os.path.basename(path))
            if found and _still(path, whose):
                yield found

    def reserve(self, name: str, whose: bytes) -> bool:
        """Give the address *name* to *whose*; tell whether it was free."""
        path = f"{self.directory}/{name}"
        if path in self._owners:
            return False
        self._stamp = None
        new = f"{self.directory}/{_NEW}"
        try:
            descriptor = _create(new)
        except FileExistsError:  # somebody died here
            os.unlink(new)
            descriptor = _create(new)
        try:
            os.write(descriptor, whose)
        finally:
            os.close(descriptor)
        try:
            os.link(new, path)
        except FileExistsError:
            self._complete = False  # no file that can be read, or somebody who takes no lock
            return False
        finally:
            os.unlink(new)
        self._remember(path, whose)
        return True

    def release(self, whose: bytes) -> bool:
        """Free what *whose* has; tell whether that was anything."""
        freed = False
        for path in (*self._paths.get(whose, ()),):
            freed |= self._remove(path, whose)
        return freed

    def release_all_but(self, stays: Callable[[bytes], bool]) -> None:
        """Free every address whose owner does not stay."""
        for path, whose in (*self._owners.items(),):
            name = path.removeprefix(f"{self.directory}/")
            if (address(name) and not stays(whose)) or name == _NEW:
                self._remove(path, whose)

    def last(self, index: int) -> IPAddress | None:
        """Return the address that was allocated last from the range set of that *index*."""
        told = _content(f"{self.directory}/{_LAST}{index}")
        return None if told is None else address(told.decode("ascii", "replace"))

    def set_last(self, index: int, name: str) -> None:
        """Note that the address *name* was allocated last."""
        path = f"{self.directory}/{_LAST}{index}"
        if path not in self._owners:
            self._stamp = None
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            os.write(descriptor, name.encode())
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
            "see what holds it: a process host-local that hangs, or too many requests at once",
        )

    # -- what is remembered

    def _refresh(self) -> None:
        """Read the directory again if somebody else has changed it."""
        if self._stamp is None or self._stamp != self._stamp_now():
            self._stamp, self._complete = None, True
            self._owners.clear()
            self._paths.clear()
            self._read(self.directory)

    def _seal(self) -> None:
        """Date the directory so that the next change, by anybody, gives it another date.

        The kernel's own clock for that stands still for some milliseconds: two changes may get one
        date. No change can get one that is over.
        """
        if self._stamp is not None or not self._complete:
            return
        past = time.clock_gettime_ns(_COARSE) - 1
        with suppress(OSError):
            os.utime(self.directory, ns=(past, past))
            stamp = self._stamp_now()
            if past in stamp:  # a file system may know seconds alone
                self._stamp = stamp

    def _stamp_now(self) -> tuple[int, int, int, int]:
        found = os.stat(self.directory)
        return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_ctime_ns

    def _read(self, directory: str) -> None:
        """Remember the files in *directory* and, as the executable does, below it."""
        with os.scandir(directory) as entries:
            for entry in entries:
                is_directory = entry.is_dir(follow_symlinks=False)
                if is_directory or entry.is_symlink():
                    self._complete = False  # what is behind it changes without the directory
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
    """Return what is in the file *path*, None if it cannot be read; nothing, if that is long."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            content = os.read(descriptor, _OWNER_MAX + 1)
        finally:
            os.close(descriptor)
    except OSError:
        return None
    return content if len(content) <= _OWNER_MAX else b""


def _still(path: str, whose: bytes) -> bool:
    """Tell whether the file *path* is a lease of *whose*."""
    content = _content(path)
    return content is not None and content.strip() == whose
