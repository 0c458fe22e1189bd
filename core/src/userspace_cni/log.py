"""Logging: to standard error and, where configured, to a file. Standard output is the result's."""

from __future__ import annotations

import logging
import os
import sys
from io import TextIOWrapper
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

logger = logging.getLogger("userspace_cni")

#: The handlers that :func:`configure` made.
_handlers: list[logging.Handler] = []

_FORMAT = "%(asctime)s %(levelname)s %(context)s%(message)s"


def configure(level: str, path: Path | None, context: str) -> None:
    """Send records of *level* and above to standard error and *path*, each with *context*.

    A log file that cannot be opened is reported and otherwise ignored: logging never fails a
    request.
    """
    # The root logger, because engines and their libraries have loggers of their own.
    root = logging.getLogger()
    root.setLevel(level.upper())
    formatter = logging.Formatter(_FORMAT, defaults={"context": context})
    while _handlers:
        handler = _handlers.pop()
        root.removeHandler(handler)
        handler.close()
    problem: OSError | ValueError | None = None
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stderr)]
    if path is not None:
        try:
            handlers.append(_FileHandler(path))
        except (OSError, ValueError) as error:  # ValueError: a NUL in the path
            problem = error
    for handler in handlers:
        handler.setFormatter(formatter)
        root.addHandler(handler)
        _handlers.append(handler)
    if problem is not None:
        logger.warning("cannot write the log file %s: %s", path, problem)


class _FileHandler(logging.FileHandler):
    """Appends to a file that only root's group may read, and never through a symbolic link."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, encoding="utf-8")

    def _open(self) -> TextIOWrapper:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        return TextIOWrapper(
            os.fdopen(os.open(self.baseFilename, flags, 0o640), "ab"), encoding="utf-8"
        )
