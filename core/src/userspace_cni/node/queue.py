"""The queue of DELs that came while no daemon answered: files that the shim has written.

A runtime gets success for a DEL that is in here: it is carried out before any later request.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from threading import Event, Lock
from typing import TYPE_CHECKING

from userspace_cni.cni.errors import CniError, Code
from userspace_cni.log import logger
from userspace_cni.node import protocol
from userspace_cni.node.protocol import BadFrame

if TYPE_CHECKING:
    from collections.abc import Mapping

    from userspace_cni.exchange import Answer
    from userspace_cni.node.observer import Observer


class Queue:
    """The files ``*.del`` of a directory, in the order of their names."""

    def __init__(
        self,
        directory: Path,
        answer: Callable[[Mapping[str, str], bytes, StringIO], Answer],
        observer: Observer,
    ) -> None:
        """Let *answer* carry out what is in *directory*."""
        self._directory = directory
        self._answer = answer
        self._observer = observer
        self._turn = Lock()

    def make(self) -> None:
        """Make the directory where the shim may write.

        Raises:
            CniError: 5 when it cannot be made.

        """
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise CniError(
                Code.IO_FAILURE,
                f"the queue {self._directory} cannot be made",
                error.strerror or "",
            ) from error

    def replay(self, stop: Event | None = None) -> None:
        """Carry out every file, and remove it; until *stop* is set.

        One that must be tried again later (code 11) stays; one that is no DEL is renamed to
        ``*.bad``.
        """
        with self._turn:
            for path in self._files():
                if stop is not None and stop.is_set():
                    return
                try:
                    outcome = self._carry_out(path)
                except OSError as error:
                    logger.error("queued DEL %s: %s", path, error)
                    outcome = "later"
                self._observer.replayed(outcome)

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

    def _carry_out(self, path: Path) -> str:
        try:
            environ, stdin = _deletion(path)
        except BadFrame as error:
            logger.error("%s is no queued DEL: %s", path, error)
            path.rename(path.with_suffix(".bad"))
            return "bad"
        answer = self._answer(environ, stdin, StringIO())
        if answer.code == Code.TRY_AGAIN_LATER:
            logger.warning("queued DEL %s is put off: %s", path.name, answer.out.strip())
            return "later"
        path.unlink()
        if answer.status:
            logger.error("queued DEL %s failed: %s", path.name, answer.out.strip())
            return "failed"
        logger.info("queued DEL %s is done", path.name)
        return "done"


def _deletion(path: Path) -> tuple[dict[str, str], bytes]:
    """Return the environment and the standard input of the queued DEL; raises BadFrame."""
    environ, stdin = protocol.load_request(_content(path))
    if environ.get("CNI_COMMAND") != "DEL":
        raise BadFrame(f"its CNI_COMMAND is {environ.get('CNI_COMMAND')!r}")
    return environ, stdin


def _content(path: Path) -> bytes:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        raise BadFrame(f"it cannot be opened: {error.strerror}") from None
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise BadFrame("it is no file")
        return file.read(protocol.REQUEST_MAX + 1)
