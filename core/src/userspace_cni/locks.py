"""Named locks between the threads and processes of a node.

Each lock is a file locked by flock(2), which the kernel releases when the holder dies. Threads of
one process first compete for a thread lock, so that they wait without polling.
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

from userspace_cni import deadline, files
from userspace_cni.cni.errors import CniError, Code
from userspace_cni.log import logger

_FLAGS = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
_PAUSE = 0.005  # seconds between attempts, because flock(2) has no timeout


class Locks:
    """The locks of a node, which are files in a directory that only root may enter."""

    def __init__(self, directory: Path, timeout: float) -> None:
        """Keep the files in *directory*; wait at most *timeout* seconds for a lock."""
        self._directory = directory
        self._timeout = timeout
        #: Thread lock and number of its users, by the name of a lock in use in this process.
        self._turns: dict[str, tuple[threading.RLock, int]] = {}
        #: File descriptors of the locks that this process holds, by name.
        self._descriptors: dict[str, int] = {}
        self._guard = threading.Lock()

    @contextmanager
    def hold(self, name: str) -> Iterator[int]:
        """Hold the lock *name* and yield the file descriptor that holds it.

        The lock is re-entrant: a thread that holds it gets it again at once, and the outermost
        context releases it.

        Raises:
            CniError: 11 if the lock is not free before the timeout or the request's deadline; 5 if
                its file cannot be created or locked.

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
        """Hold the lock *name* if it is free; yield whether it is held.

        Raises:
            CniError: 5 if its file cannot be created or locked.

        """
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
        """Return the file descriptor that holds the lock *name*; None if it is not held here.

        A child process that inherits the descriptor keeps the lock.
        """
        return self._descriptors.get(name)

    @contextmanager
    def _turn(self, name: str, timeout: float) -> Iterator[bool]:
        """Acquire the thread lock for *name*; yield whether that succeeded within *timeout*."""
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
        # A digest, because a name may be any text, even an interface name that is not valid UTF-8.
        digest = sha256(name.encode(errors="surrogatepass")).hexdigest()
        return f"{self._directory}/{digest[:32]}"

    def sweep(self) -> None:
        """Remove lock files whose holders died.

        A file that cannot be removed is harmless and only logged.
        """
        with suppress(FileNotFoundError):
            for name in os.listdir(self._directory):
                path = f"{self._directory}/{name}"
                try:
                    # A file that is locked, or was removed meanwhile, is in use.
                    if (descriptor := _locked(path, 0)) is not None:
                        _release(path, descriptor)
                except OSError as error:
                    logger.warning("the lock file %s cannot be opened: %s", path, error.strerror)

    def _try(self, name: str) -> int | None:
        path = self._path(name)
        try:
            try:
                return _locked(path, os.O_CREAT)
            except FileNotFoundError:
                files.make(self._directory)
                return _locked(path, os.O_CREAT)
        except OSError as error:
            raise CniError(
                Code.IO_FAILURE,
                f"the lock file {path} cannot be created or locked: {error.strerror}",
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
    """Lock the file *path* and return its descriptor; None if another process holds it."""
    descriptor = os.open(path, _FLAGS | flags, 0o640)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # The previous holder may have removed the file between our open and our lock.
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
        # Not an error: the lock is released anyway, and the next GC removes the file.
        if not isinstance(error, FileNotFoundError):
            logger.warning("the lock file %s cannot be removed: %s", path, error.strerror)
    finally:
        os.close(descriptor)


def _holder(path: str) -> str:
    """Return another process that has *path* open, such as ``process 7 (host-local)``, or ""."""
    for pid in filter(str.isdigit, os.listdir("/proc")):
        if int(pid) == os.getpid():
            continue
        with suppress(OSError):  # the process may have ended
            for descriptor in os.listdir(f"/proc/{pid}/fd"):
                if os.readlink(f"/proc/{pid}/fd/{descriptor}") == path:
                    return f"process {pid} ({Path(f'/proc/{pid}/comm').read_text().strip()})"
    return ""
