"""Executables of other CNI plugins: find them in CNI_PATH, run them, collect their output."""

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

# execve(2) fails with "text file busy" while a plugin is being replaced; libcni waits as long.
_BUSY_TRIES = 5
_BUSY_PAUSE = 1.0  # seconds
#: How long to wait after SIGKILL; a process that waits for a disk or NFS server cannot end.
_END_PATIENCE = 1.0  # seconds

OUT_MAX = 1 << 20  # bytes; a result usually has a few hundred
ERR_MAX = 1 << 16  # bytes


def find(name: str, path: tuple[str, ...]) -> Path | None:
    """Return the executable *name* in the first directory of *path* that has it, or None."""
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
    """A running executable that waits for its standard input.

    It is not killed when this process dies, because a plugin that is killed half way may leave
    resources behind that nobody can find.
    """

    def __init__(self, program: Path, environ: Mapping[str, str], lock: int | None = None) -> None:
        """Start *program*.

        Args:
            program: path of the executable.
            environ: its environment.
            lock: a file descriptor to inherit, which keeps a lock while the program runs.

        Raises:
            OSError: if it cannot be executed.

        """
        self.out, self.err = bytearray(), bytearray()
        self._left = memoryview(b"")
        self._process = _started(program, environ, () if lock is None else (lock,))
        try:
            # Do this before the program gets its input: if there are no descriptors left, it has
            # done nothing yet.
            self._ending = os.pidfd_open(self._process.pid)
        except BaseException:
            self._process.kill()
            self._process.wait()
            self._close_pipes()
            raise

    def tell(self, stdin: bytes) -> None:
        """Begin to write *stdin*; :meth:`wait` writes what the pipe does not accept at once."""
        pipe: Any = self._process.stdin
        os.set_blocking(pipe.fileno(), False)
        self._left = memoryview(stdin)
        if self._write(pipe.fileno()):
            pipe.close()

    def wait(self, until: float) -> int | None:
        """Wait until the program ends; return its exit status, or None if it has not ended.

        Its output is collected in :attr:`out` and :attr:`err`, which are cut off at
        :data:`OUT_MAX` and :data:`ERR_MAX`. The method does not wait for the pipes to close,
        because a background process of the program may hold them open.

        Args:
            until: when to stop waiting, on the monotonic clock.

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
                        ended = True  # its whole output is in the pipes now
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
        """Kill the program and wait briefly for its end."""
        self._process.kill()
        try:
            self._process.wait(_END_PATIENCE)
        except subprocess.TimeoutExpired:
            logger.error("process %d was killed but has not ended", self._process.pid)
        self._close()

    def _write(self, pipe: int) -> bool:
        """Write more of the input; return whether all is written or the reader is gone."""
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
            # Without preexec_fn Python uses vfork(2), which is fast even in a large process.
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
    """Return a function that reads a pipe into *kept* and returns whether the pipe has ended.

    About *limit* bytes are kept.
    """

    def read(pipe: int) -> bool:
        chunk = os.read(pipe, 1 << 16)
        if len(kept) <= limit:
            kept.extend(chunk)
        return not chunk

    return read
