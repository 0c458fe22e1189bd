"""Reads JSON files that others may have written or replaced."""

from __future__ import annotations

import json
import os
import stat
from typing import Any

#: The maximum size in bytes of a file of ours.
MAX = 1 << 20

_KINDS = {
    stat.S_IFLNK: "symbolic link",
    stat.S_IFIFO: "FIFO",
    stat.S_IFSOCK: "socket",
    stat.S_IFDIR: "directory",
}


def read_bytes(
    name: str, directory: int | None = None, *, follow: bool = False, limit: int = MAX
) -> bytes:
    """Return the content of the regular file *name*, below the descriptor *directory* if given.

    It may be a symbolic link only with *follow*. Only regular files are opened, because opening a
    terminal, a FIFO or a device has side effects.

    Raises:
        FileNotFoundError: the file does not exist.
        OSError: it cannot be read.
        ValueError: it cannot be a file of ours; the text has the reason.

    """
    flags = os.O_PATH | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW)
    found = os.open(name, flags, dir_fd=directory)
    try:
        kind = stat.S_IFMT(os.fstat(found).st_mode)
        if kind != stat.S_IFREG:
            raise ValueError(f"is a {_KINDS.get(kind, 'device')}, expected a regular file")
        # Opens the same inode even if another file has the name by now.
        flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        file = os.open(f"/proc/self/fd/{found}", flags)
    finally:
        os.close(found)
    with open(file, "rb") as stream:
        content = stream.read(limit + 1)
    if len(content) > limit:
        raise ValueError(f"is larger than {limit} bytes")
    return content


def read_object(name: str, directory: int | None = None, *, limit: int = MAX) -> dict[str, Any]:
    """Return the JSON object in the file *name*; raise as :func:`read_bytes` does."""
    return parse_object(read_bytes(name, directory, limit=limit))


def parse_object(content: bytes) -> dict[str, Any]:
    """Return the JSON object in *content*.

    Raises:
        ValueError: *content* is not a JSON object.

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
