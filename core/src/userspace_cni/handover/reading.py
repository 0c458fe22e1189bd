"""Reading JSON files that somebody else may have put there, or put something else in place of."""

from __future__ import annotations

import json
import os
import stat
from typing import Any

#: Bytes; what is longer is none of ours.
MAX = 1 << 20


def read_bytes(name: str, directory: int | None = None, *, follow: bool = False) -> bytes:
    """Return the content of the regular file *name*, below the descriptor *directory* if given.

    It may be a symbolic link only if *follow* says so.

    Raises:
        FileNotFoundError: there is no such file.
        OSError: it cannot be read.
        ValueError: it is something else than a file of ours could be; the text says what.

    """
    try:
        # Not blocking: it may be a FIFO, which nobody writes to.
        flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW)
        file = os.open(name, flags, dir_fd=directory)
    except OSError as error:
        kind = _kind(name, directory)
        if not follow and kind not in ("", "regular file"):
            raise ValueError(f"is a {kind}, expected a regular file") from error
        raise
    with open(file, "rb") as stream:
        if not stat.S_ISREG(os.fstat(file).st_mode):
            raise ValueError(f"is a {_kind(name, directory)}, expected a regular file")
        content = stream.read(MAX + 1)
    if len(content) > MAX:
        raise ValueError(f"is larger than {MAX} bytes")
    return content


def read_object(name: str, directory: int | None = None) -> dict[str, Any]:
    """Return the JSON object in the file *name*; raises as :func:`read_bytes` does."""
    return parse_object(read_bytes(name, directory))


def parse_object(content: bytes) -> dict[str, Any]:
    """Return the JSON object that *content* is.

    Raises:
        ValueError: it is none.

    """
    try:
        document = json.loads(content)
    except RecursionError:
        raise ValueError("is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"is not JSON: {error}") from None
    if not isinstance(document, dict):
        raise ValueError(f"is no JSON object, but {type(document).__name__}")
    return document


def _kind(name: str, directory: int | None) -> str:
    try:
        mode = os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode
    except OSError:
        return ""
    kinds = {
        stat.S_IFLNK: "symbolic link",
        stat.S_IFIFO: "FIFO",
        stat.S_IFSOCK: "socket",
        stat.S_IFDIR: "directory",
        stat.S_IFREG: "regular file",
    }
    return kinds.get(stat.S_IFMT(mode), "device")
