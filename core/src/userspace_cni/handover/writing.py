"""Writes a file atomically and without following links, where others can write too."""

from __future__ import annotations

import os
import secrets
from contextlib import suppress


def replace(directory: int, name: str, content: bytes, mode: int, group: int = -1) -> None:
    """Write *content* as *name* below the descriptor *directory*, replacing an existing file.

    Readers see the old file or the new one. If *name* is a link, the link is replaced.

    Raises:
        OSError: it cannot be written; an existing file is unchanged.

    """
    draft = f".{secrets.token_hex(12)}"  # not longer than any permitted name
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    file = os.open(draft, flags, mode, dir_fd=directory)
    try:
        with os.fdopen(file, "wb") as stream:
            os.fchown(file, -1, group)
            os.fchmod(file, mode)
            stream.write(content)
        os.rename(draft, name, src_dir_fd=directory, dst_dir_fd=directory)
    except BaseException:
        with suppress(OSError):
            os.unlink(draft, dir_fd=directory)
        raise
