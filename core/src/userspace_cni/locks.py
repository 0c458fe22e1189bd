"""Locks between the threads and processes of a node, by name.

Each is a file that flock(2) locks: the kernel frees it when its holder dies, however it dies. The
threads of one process take turns before that, so that they wait without polling.
"""

from __future__ import annotations

import fcntl
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path

from userspace_cni import deadline, directories
from userspace_cni.cni.errors import CniError, Code
from userspace_cni.log import logger

_FLAGS = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
_PAUSE = 0.005  # seconds; flock(2) has no timeout of its own


class Locks:
    """The locks of one node, files in a directory that only root may enter."""

    def __init__(self, directory: Path, timeout: float) -> None:
        """Keep the files in *directory*; wait *timeout* seconds for a lock."""
        self._directory = directory
        self._timeout = timeout
        #: By name, as long as anyone here holds or awaits it: the lock, and how many do.
        self._turns: dict[str, tuple[threading.RLock, int]] = {}
        #: The file descriptors of those that are held here.
        self._descriptors: dict[str, int] = {}
        self._guard = threading.Lock()

    @contextmanager
    def hold(self, name: str) -> Iterator[int]:
        """Hold the lock *name*; the file descriptor that is given holds it.

        A thread that holds it already goes on at once, and frees it when the outermost ends.

        Raises:
            CniError: 11 when another holds it for longer than the timeout, or than our own request
                may take; 5 when its file cannot be made or locked.

        """
        began = time.monotonic()
        until = deadline.after(self._timeout)
        with self._turn(name, max(until - began, 0)) as ours:
            if ours and name in self._descriptors:
                yield self._descriptors[name]
                return
            while (descriptor := self._try(name) if ours else None) is None:
                if time.monotonic() >= until:
                    holder = ours and _holder(self._path(name))
                    raise CniError(
                        Code.TRY_AGAIN_LATER,
                        f"the lock {name!r} is held by {holder or 'another request'} "
                        f"for over {max(until - began, 0):.3g} s",
                        f"its file is {self._path(name)}; end what holds it if that hangs",
                    )
                time.sleep(_PAUSE)
            with self._held(name, descriptor):
                yield descriptor

    @contextmanager
    def hold_if_free(self, name: str) -> Iterator[bool]:
        """Hold the lock *name* if nobody else does; tell whether it is held."""
        with self._turn(name, 0) as ours:
            if ours and name in self._descriptors:
                yield True
                return
            descriptor = self._try(name) if ours else None
            if descriptor is None:
                yield False
                return
            with self._held(name, descriptor):
                yield True

    def held(self, name: str) -> int | None:
        """Return the file descriptor that holds the lock *name*, for whoever works under it."""
        return self._descriptors.get(name)

    @contextmanager
    def _turn(self, name: str, timeout: float) -> Iterator[bool]:
        """Take turns with the other threads of this process; tell whether it is ours in time."""
        with self._guard:
            lock, users = self._turns.get(name, (threading.RLock(), 0))
            self._turns[name] = lock, users + 1
        ours = lock.acquire(timeout=timeout)
        try:
            yield ours
        finally:
            if ours:
                lock.release()
            with self._guard:
                lock, users = self._turns.pop(name)
                if users > 1:
                    self._turns[name] = lock, users - 1

    def _path(self, name: str) -> str:
        # Any text may be a name, that of an interface which is no UTF-8 too; a file's name may not.
        digest = sha256(name.encode(errors="surrogatepass")).hexdigest()
        return f"{self._directory}/{digest[:32]}"

    def sweep(self) -> None:
        """Remove the files of holders that died: nobody else would, if their names are not needed.

        What cannot be removed is logged, and harms nobody.
        """
        with suppress(FileNotFoundError):
            for name in os.listdir(self._directory):
                path = f"{self._directory}/{name}"
                try:
                    # What is locked, or is gone meanwhile, belongs to somebody.
                    if (descriptor := _locked(path, 0)) is not None:
                        _release(path, descriptor)
                except OSError as error:
                    logger.warning("the lock file %s cannot be looked at: %s", path, error.strerror)

    def _try(self, name: str) -> int | None:
        path = self._path(name)
        try:
            try:
                return _locked(path, os.O_CREAT)
            except FileNotFoundError:
                directories.make(self._directory)
                return _locked(path, os.O_CREAT)
        except OSError as error:
            raise CniError(
                Code.IO_FAILURE,
                f"the lock file {path} cannot be made or locked: {error.strerror}",
                "check run_dir in the node's settings: root must be able to write there, on a "
                "file system with flock(2)",
            ) from error

    @contextmanager
    def _held(self, name: str, descriptor: int) -> Iterator[None]:
        self._descriptors[name] = descriptor
        try:
            yield
        finally:
            del self._descriptors[name]
            _release(self._path(name), descriptor)


def _locked(path: str, flags: int) -> int | None:
    """Return a descriptor that holds the lock file *path*, None while another does."""
    descriptor = os.open(path, _FLAGS | flags, 0o640)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # The holder before us may have removed the file between our open and our lock.
        if os.fstat(descriptor).st_ino == os.stat(path).st_ino:
            return descriptor
    except (BlockingIOError, FileNotFoundError):
        pass
    except BaseException:
        os.close(descriptor)
        raise
    os.close(descriptor)
    return None


def _release(path: str, descriptor: int) -> None:
    try:
        os.unlink(path)
    except OSError as error:
        # What was done under the lock is done. The file is free, and the next GC removes it.
        if not isinstance(error, FileNotFoundError):
            logger.warning("the lock file %s cannot be removed: %s", path, error.strerror)
    finally:
        os.close(descriptor)


def _holder(path: str) -> str:
    """Return who else has the file *path* open, as ``process 7 (host-local)``; empty for nobody."""
    for pid in filter(str.isdigit, os.listdir("/proc")):
        if int(pid) == os.getpid():
            continue
        with suppress(OSError):  # it has ended
            for descriptor in os.listdir(f"/proc/{pid}/fd"):
                if os.readlink(f"/proc/{pid}/fd/{descriptor}") == path:
                    return f"process {pid} ({Path(f'/proc/{pid}/comm').read_text().strip()})"
    return ""
