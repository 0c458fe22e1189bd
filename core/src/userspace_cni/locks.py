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

from userspace_cni.cni.errors import CniError, Code

_FLAGS = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
_PAUSE = 0.005  # seconds; flock(2) has no timeout of its own


class Locks:
    """The locks of one node, files in a directory that only root may enter."""

    def __init__(self, directory: Path, timeout: float) -> None:
        """Keep the files in *directory*; wait *timeout* seconds for a lock."""
        self._directory = directory
        self._timeout = timeout
        #: By name, as long as anyone here holds or awaits it: the lock, and how many do.
        self._turns: dict[str, tuple[threading.Lock, int]] = {}
        self._guard = threading.Lock()

    @contextmanager
    def hold(self, name: str) -> Iterator[int]:
        """Hold the lock *name*; the file descriptor that is given holds it.

        Raises:
            CniError: 11 when another holds it for longer than the timeout.

        """
        deadline = time.monotonic() + self._timeout
        with self._turn(name, self._timeout) as ours:
            while (descriptor := self._try(name) if ours else None) is None:
                if time.monotonic() >= deadline:
                    raise CniError(
                        Code.TRY_AGAIN_LATER,
                        f"the lock {name!r} is held by another request "
                        f"for over {self._timeout:g} s",
                    )
                time.sleep(_PAUSE)
            with self._held(name, descriptor):
                yield descriptor

    @contextmanager
    def hold_if_free(self, name: str) -> Iterator[bool]:
        """Hold the lock *name* if nobody else does; tell whether it is held."""
        with self._turn(name, 0) as ours:
            descriptor = self._try(name) if ours else None
            if descriptor is None:
                yield False
                return
            with self._held(name, descriptor):
                yield True

    @contextmanager
    def _turn(self, name: str, timeout: float) -> Iterator[bool]:
        """Take turns with the other threads of this process; tell whether it is ours in time."""
        with self._guard:
            lock, users = self._turns.get(name, (threading.Lock(), 0))
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

    def _try(self, name: str) -> int | None:
        path = self._path(name)
        try:
            try:
                descriptor = os.open(path, _FLAGS, 0o640)
            except FileNotFoundError:
                self._directory.mkdir(mode=0o750, parents=True, exist_ok=True)
                descriptor = os.open(path, _FLAGS, 0o640)
        except OSError as error:
            raise CniError(
                Code.IO_FAILURE, f"the lock file {path} cannot be made: {error.strerror}"
            ) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The holder before us may have removed the file between our open and our lock.
            if os.fstat(descriptor).st_ino == os.stat(path).st_ino:
                return descriptor
        except (BlockingIOError, FileNotFoundError):
            pass
        os.close(descriptor)
        return None

    @contextmanager
    def _held(self, name: str, descriptor: int) -> Iterator[None]:
        try:
            yield
        finally:
            try:
                with suppress(FileNotFoundError):
                    os.unlink(self._path(name))
            finally:
                os.close(descriptor)
