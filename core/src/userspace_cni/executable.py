"""Another CNI plugin's executable: found in CNI_PATH, started, told something, waited for."""

from __future__ import annotations

import errno
import os
import selectors
import stat
import subprocess
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from userspace_cni.log import logger

# A plugin that is being replaced answers "text file busy" for a moment; libcni waits as long.
_BUSY_TRIES = 5
_BUSY_PAUSE = 1.0  # seconds
#: After SIGKILL. A process that waits for a disk or an NFS server does not end before that answers.
_END_PATIENCE = 1.0  # seconds

OUT_MAX = 1 << 20  # bytes; a result has a few hundred
ERR_MAX = 1 << 16  # bytes


def find(name: str, path: tuple[str, ...]) -> Path | None:
    """Return the executable *name* in the first directory of *path* that has it."""
    for directory in path:
        candidate = Path(directory, name)
        try:
            mode = candidate.stat().st_mode
        except OSError:
            continue
        if candidate.is_absolute() and stat.S_ISREG(mode) and os.access(candidate, os.X_OK):
            return candidate
    return None


class Child:
    """An executable that was started, and waits for what it is told on standard input.

    Nothing ends it when we die: a plugin that is killed half way may leave what nobody finds again.
    """

    def __init__(self, program: Path, environ: Mapping[str, str], lock: int | None = None) -> None:
        """Start *program*, which inherits the file descriptor *lock*.

        Raises:
            OSError: when it cannot be executed.

        """
        self.out, self.err = bytearray(), bytearray()
        self._left = memoryview(b"")
        self._process = _started(program, environ, () if lock is None else (lock,))
        try:
            # Before it is told anything: when no descriptor is to be had, it has done nothing yet.
            self._ending = os.pidfd_open(self._process.pid)
        except BaseException:
            self._process.kill()
            self._process.wait()
            self._close_pipes()
            raise

    def tell(self, stdin: bytes) -> None:
        """Begin to give it *stdin*; :meth:`wait` gives what a pipe does not take at once."""
        pipe: Any = self._process.stdin
        os.set_blocking(pipe.fileno(), False)
        self._left = memoryview(stdin)
        if self._write(pipe.fileno()):
            pipe.close()

    def wait(self, until: float) -> int | None:
        """Wait for its end; return its exit status, None when it has not ended at *until*.

        What it prints is in :attr:`out` and :attr:`err`: of too much, the beginning. Its end is
        waited for, not that of its pipes: what it has started and left running may hold them open.
        """
        process: Any = self._process
        with selectors.PollSelector() as selector:
            selector.register(self._ending, selectors.EVENT_READ)
            for pipe, event, step in (
                (process.stdout, selectors.EVENT_READ, _reader(self.out, OUT_MAX)),
                (process.stderr, selectors.EVENT_READ, _reader(self.err, ERR_MAX)),
                (process.stdin, selectors.EVENT_WRITE, self._write),
            ):
                if not pipe.closed:
                    selector.register(pipe, event, step)
            ended = False
            while True:
                ready = selector.select(0 if ended else max(until - time.monotonic(), 0))
                for key, _ in ready:
                    if key.fd == self._ending:
                        selector.unregister(self._ending)
                        ended = True  # all that it has printed is there now
                    elif key.data(key.fd):
                        selector.unregister(key.fileobj)
                        key.fileobj.close()  # type: ignore[union-attr]
                if not ready or time.monotonic() >= until:
                    break
        if not ended:
            return None
        status = self._process.wait()
        self._close()
        return status

    def kill(self) -> None:
        """End it."""
        self._process.kill()
        try:
            self._process.wait(_END_PATIENCE)
        except subprocess.TimeoutExpired:
            logger.error("process %d does not end, although killed", self._process.pid)
        self._close()

    def _write(self, pipe: int) -> bool:
        """Write more of what it is told; tell whether nothing is left for its reader."""
        with suppress(BlockingIOError):
            try:
                self._left = self._left[os.write(pipe, self._left) :]
            except BrokenPipeError:
                return True
        return not self._left

    def _close(self) -> None:
        os.close(self._ending)
        self._close_pipes()

    def _close_pipes(self) -> None:
        process: Any = self._process
        for pipe in (process.stdin, process.stdout, process.stderr):
            pipe.close()


def _started(
    program: Path, environ: Mapping[str, str], inherited: tuple[int, ...]
) -> subprocess.Popen[bytes]:
    for remaining in reversed(range(_BUSY_TRIES)):
        try:
            # Without preexec_fn the process is made by vfork(2), however large we are.
            return subprocess.Popen(  # noqa: S603  an absolute path, found in CNI_PATH
                [program],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                bufsize=0,
                env=environ,
                pass_fds=inherited,
            )
        except OSError as error:
            if error.errno != errno.ETXTBSY or not remaining:
                raise
            logger.info("%s is being replaced, waiting", program)
            time.sleep(_BUSY_PAUSE)
    raise AssertionError  # pragma: no cover  the last try returns or raises


def _reader(kept: bytearray, limit: int) -> Callable[[int], bool]:
    """Return what reads a pipe into *kept* up to *limit*, and tells whether it has ended."""

    def read(pipe: int) -> bool:
        chunk = os.read(pipe, 1 << 16)
        if len(kept) <= limit:
            kept.extend(chunk)
        return not chunk

    return read
