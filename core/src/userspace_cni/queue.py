"""The queue of DELs that came while no daemon answered: files that the shim has written.

A runtime gets success for a DEL that is in here: it is carried out before any later ADD of the same
attachment, whoever serves that.
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

_PAUSE = 0.02  # seconds; flock(2) has no timeout of its own


class Queue:
    """The files ``*.del`` of a directory, in the order of their names."""

    def __init__(
        self,
        directory: Path,
        answer: Callable[[Mapping[str, str], bytes, StringIO], Answer],
        replayed: Callable[[str], None],
    ) -> None:
        """Let *answer* carry out what is in *directory*, and *replayed* note each outcome."""
        self._directory = directory
        self._answer = answer
        self._replayed = replayed

    def make(self) -> None:
        """Make the directory where the shim may write.

        Raises:
            CniError: 5 when it cannot be made.

        """
        try:
            files.make(self._directory, 0o700)
        except OSError as error:
            raise CniError(
                Code.IO_FAILURE,
                f"the queue {self._directory} cannot be made",
                error.strerror or "",
            ) from error

    def replay(self, stop: Event) -> None:
        """Carry out every file, and remove it; until *stop* is set.

        One that must be tried again later (code 11) stays, and so do those behind it of the same
        network, which would wait for the same plugin. One that is no DEL is renamed to ``*.bad``.
        """
        put_off: set[str] = set()
        for path in self._files():
            if stop.is_set():
                return
            self._replay(path, None, put_off)

    def replay_before(self, add: Mapping[str, str]) -> None:
        """Carry out what is queued of the attachment that the environment of an *add* names.

        Raises:
            CniError: 11 when it must be tried again later; else it would hit what is added.

        """
        for path in self._files():
            if self._replay(path, _attachment(add), set()) == "later":
                raise CniError(
                    Code.TRY_AGAIN_LATER,
                    f"an earlier DEL of this attachment is still to be carried out: {path}",
                    "see the messages about it",
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
        """Carry out the DEL at *path*, if it is of the attachment *only*; return the outcome.

        Not if its network is one of those *put_off*, which it may become.
        """
        try:
            if stat.S_ISREG(path.lstat().st_mode):
                with path.open("rb") as file:
                    outcome = self._carry_out(path, file, only, put_off)
            else:
                outcome = _put_aside(path, "it is no file")
        except FileNotFoundError:
            return ""  # done by another
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
        # Threads, and processes, that come to it at once: it is the first one's.
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
    """Lock *file*; tell whether that was possible before the deadline of the request."""
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
    # Without the network: a container has one interface of a name.
    return tuple(environ.get(name, "") for name in ("CNI_CONTAINERID", "CNI_IFNAME"))


def _put_aside(path: Path, problem: str) -> str:
    logger.error("%s is no queued DEL: %s", path, problem)
    path.rename(path.with_suffix(".bad"))
    return "bad"


def _deletion(file: BinaryIO) -> tuple[dict[str, str], bytes]:
    """Return the environment and the standard input of the queued DEL; raises BadFrame."""
    environ, stdin = frames.load_request(file.read(frames.REQUEST_MAX + 1))
    if environ.get("CNI_COMMAND") != "DEL":
        raise BadFrame(f"its CNI_COMMAND is {environ.get('CNI_COMMAND')!r}")
    return environ, stdin
