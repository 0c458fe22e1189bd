"""Queue of DELs that the shim wrote to files because no daemon answered.

The runtime has received success for a queued DEL. It is executed before any later ADD of the same
attachment, by the daemon or by the one-process plugin.
"""

from __future__ import annotations

import fcntl
import os
import stat
import time
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING

from userspace_cni import deadline, files, frames
from userspace_cni.cni.errors import CniError, Code
from userspace_cni.frames import BadFrame
from userspace_cni.log import logger

if TYPE_CHECKING:
    from collections.abc import Mapping
    from threading import Event
    from typing import BinaryIO

    from userspace_cni.cni.answer import Answer

_PAUSE = 0.02  # seconds between attempts, because flock(2) has no timeout


class Queue:
    """The files ``*.del`` in a directory, in the order of their names."""

    def __init__(
        self,
        directory: Path,
        answer: Callable[[Mapping[str, str], bytes, StringIO], Answer],
        replayed: Callable[[str], None],
    ) -> None:
        """Use the queue in *directory*.

        Args:
            directory: the queue's directory.
            answer: executes a request, given its environment, standard input and standard error.
            replayed: called with the outcome of each DEL, see :meth:`.Observer.replayed`.

        """
        self._directory = directory
        self._answer = answer
        self._replayed = replayed

    def make(self) -> None:
        """Create the directory.

        Raises:
            CniError: 5 if it cannot be created.

        """
        try:
            files.make(self._directory, 0o700)
        except OSError as error:
            raise CniError(
                Code.IO_FAILURE,
                f"the queue {self._directory} cannot be created",
                error.strerror or "",
            ) from error

    def replay(self, stop: Event) -> None:
        """Execute and remove every queued DEL, until *stop* is set.

        A DEL that must be retried later (code 11) stays in the queue, together with later ones of
        the same network, which would wait for the same plugin. A file that is not a DEL is renamed
        to ``*.bad``.
        """
        put_off: set[str] = set()
        for path in self._files():
            if stop.is_set():
                return
            self._replay(path, None, put_off)

    def replay_before(self, add: Mapping[str, str]) -> None:
        """Execute the queued DELs of an attachment before its ADD.

        Args:
            add: the environment of the ADD.

        Raises:
            CniError: 11 if a DEL must be retried later; otherwise it would remove the new
                attachment.

        """
        for path in self._files():
            if self._replay(path, _attachment(add), set()) == "later":
                raise CniError(
                    Code.TRY_AGAIN_LATER,
                    f"an earlier DEL of this attachment has not been executed yet: {path}",
                    "see the log messages about it",
                )

    def _files(self) -> list[Path]:
        try:
            return sorted(
                self._directory / name
                for name in os.listdir(self._directory)
                if name.endswith(".del") and not name.startswith(".")
            )
        except FileNotFoundError:
            return []
        except OSError as error:
            logger.error("the queue %s cannot be read: %s", self._directory, error)
            return []

    def _replay(self, path: Path, only: tuple[str, ...] | None, put_off: set[str]) -> str:
        """Execute the DEL at *path* and return the outcome; empty if it is skipped.

        Args:
            path: the file.
            only: skip DELs of other attachments than this one.
            put_off: skip DELs of these networks; a network is added if its DEL must be retried.

        """
        try:
            if stat.S_ISREG(path.lstat().st_mode):
                with path.open("rb") as file:
                    outcome = self._carry_out(path, file, only, put_off)
            else:
                outcome = _put_aside(path, "it is not a regular file")
        except FileNotFoundError:
            return ""  # executed by another thread or process
        except OSError as error:
            logger.error("queued DEL %s: %s", path, error)
            outcome = "later"
        if outcome:
            self._replayed(outcome)
        return outcome

    def _carry_out(
        self, path: Path, file: BinaryIO, only: tuple[str, ...] | None, put_off: set[str]
    ) -> str:
        try:
            environ, stdin = _deletion(file)
        except BadFrame as error:
            return _put_aside(path, str(error))
        network = frames.network_of(stdin)
        if only not in (None, _attachment(environ)) or network in put_off:
            return ""
        # Only one of several threads and processes may execute the DEL.
        if not _locked(file):
            return "later"
        if not os.fstat(file.fileno()).st_nlink:
            return ""
        answer = self._answer(environ, stdin, StringIO())
        if answer.code == Code.TRY_AGAIN_LATER:
            put_off.add(network)
            logger.warning("queued DEL %s is put off: %s", path.name, answer.out.strip())
            return "later"
        path.unlink()
        if answer.status:
            logger.error("queued DEL %s failed: %s", path.name, answer.out.strip())
        else:
            logger.info("queued DEL %s is done", path.name)
        return "failed" if answer.status else "done"


def _locked(file: BinaryIO) -> bool:
    """Lock *file*; return False if that was not possible before the request's deadline."""
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if deadline.left() <= 0:
                return False
            time.sleep(_PAUSE)
        else:
            return True


def _attachment(environ: Mapping[str, str]) -> tuple[str, ...]:
    # The network is not needed, because an interface name is unique in a container.
    return tuple(environ.get(name, "") for name in ("CNI_CONTAINERID", "CNI_IFNAME"))


def _put_aside(path: Path, problem: str) -> str:
    logger.error("%s is not a queued DEL: %s", path, problem)
    path.rename(path.with_suffix(".bad"))
    return "bad"


def _deletion(file: BinaryIO) -> tuple[dict[str, str], bytes]:
    """Return the environment and the standard input of a queued DEL; raise BadFrame."""
    environ, stdin = frames.load_request(file.read(frames.REQUEST_MAX + 1))
    if environ.get("CNI_COMMAND") != "DEL":
        raise BadFrame(f"its CNI_COMMAND is {environ.get('CNI_COMMAND')!r}")
    return environ, stdin
