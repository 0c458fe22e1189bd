"""Logging to standard error and, if configured, to a file.

Standard output is reserved for the CNI result. In the daemon many requests log at the same time,
each with its own level and destinations. A context variable holds the current request's scope, and
one handler on the root logger uses it.
"""

from __future__ import annotations

import logging
import os
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from io import TextIOWrapper
from threading import Lock
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from pathlib import Path

logger = logging.getLogger("userspace_cni")

_FORMAT = "%(asctime)s %(levelname)s %(context)s%(message)s"


class _Scope:
    """The destinations, minimum level and prefix of log records."""

    def __init__(self, level: str, path: Path | None, context: str, stream: TextIO) -> None:
        self.level: int = getattr(logging, level.upper())
        self.context = context
        self.problem: Exception | None = None
        self.handlers: list[logging.Handler] = [logging.StreamHandler(stream)]
        if path is not None:
            try:
                self.handlers.append(_FileHandler(path))
            except (OSError, ValueError) as error:  # ValueError: a NUL in the path
                self.problem = error
        for handler in self.handlers:
            handler.setFormatter(logging.Formatter(_FORMAT))

    def close(self) -> None:
        for handler in self.handlers:
            handler.close()


_current: ContextVar[_Scope | None] = ContextVar("scope", default=None)


class _Dispatcher(logging.Handler):
    """Passes each record to the scope of the current request and to that of the process."""

    def __init__(self) -> None:
        super().__init__()
        self._levels: Counter[int] = Counter()
        self._guard = Lock()
        self.process: _Scope | None = None

    def emit(self, record: logging.LogRecord) -> None:
        scope = _current.get() or self.process
        if scope is None:
            if logging.lastResort is not None and record.levelno >= logging.lastResort.level:
                logging.lastResort.handle(record)
            return
        if record.levelno < scope.level:
            return
        record.context = scope.context
        for handler in scope.handlers:
            handler.handle(record)
        if self.process not in (None, scope):
            self.process.handlers[0].handle(record)

    def count(self, level: int, change: int) -> None:
        """Count scopes by level, and set the root logger to the lowest level in use."""
        # The root logger is used because engines and their libraries have loggers of their own.
        root = logging.getLogger()
        with self._guard:
            if self not in root.handlers:
                root.addHandler(self)
            self._levels[level] += change
            wanted = min((+self._levels).keys(), default=logging.WARNING)
            if root.level != wanted:
                root.setLevel(wanted)


_dispatcher = _Dispatcher()


@contextmanager
def scope(level: str, path: Path | None, context: str, stream: TextIO) -> Iterator[None]:
    """Send log records of the body to *stream* and *path*.

    A log file that cannot be opened causes a warning but never fails the request.

    Args:
        level: minimum level, such as ``info``.
        path: the log file; None for none.
        context: prefix of each message.
        stream: normally standard error.

    """
    own = _Scope(level, path, context, stream)
    _dispatcher.count(own.level, 1)
    token = _current.set(own)
    try:
        if own.problem is not None:
            logger.warning("cannot write the log file %s: %s", path, own.problem)
        yield
    finally:
        _current.reset(token)
        _dispatcher.count(own.level, -1)
        own.close()


@contextmanager
def process(level: str, path: Path | None) -> Iterator[None]:
    """Send log records outside of requests to standard error and to *path*.

    Records of requests are also sent to standard error. *level* is the minimum level.
    """
    own = _Scope(level, path, "", sys.stderr)
    _dispatcher.count(own.level, 1)
    _dispatcher.process = own
    try:
        if own.problem is not None:
            logger.warning("cannot write the log file %s: %s", path, own.problem)
        yield
    finally:
        _dispatcher.process = None
        _dispatcher.count(own.level, -1)
        own.close()


class _FileHandler(logging.FileHandler):
    """Appends to a file with mode 0640, without following symbolic links.

    After log rotation has renamed the file, the next record creates a new file. If that fails, the
    old file is still used.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path, encoding="utf-8")

    def emit(self, record: logging.LogRecord) -> None:
        if self.stream is not None and not self._is_in_place(self.stream):
            with suppress(OSError):
                fresh = self._open()
                self.stream.close()
                self.stream = fresh
        super().emit(record)

    def _is_in_place(self, stream: TextIOWrapper) -> bool:
        try:
            return os.path.samestat(os.lstat(self.baseFilename), os.fstat(stream.fileno()))
        except OSError:
            return False

    def _open(self) -> TextIOWrapper:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        flags |= os.O_NOCTTY  # the configured path may be a terminal
        return TextIOWrapper(
            os.fdopen(os.open(self.baseFilename, flags, 0o640), "ab"), encoding="utf-8"
        )
