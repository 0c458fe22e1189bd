"""Safe access to files in directories that other programs can read and write as well.

Files are replaced atomically without following links, and only regular files are read.
"""

from __future__ import annotations

import fcntl
import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

#: The maximum size of our files in bytes.
MAX = 1 << 20

_KINDS = {
    stat.S_IFLNK: "symbolic link",
    stat.S_IFIFO: "FIFO",
    stat.S_IFSOCK: "socket",
    stat.S_IFDIR: "directory",
}


def make(path: str | os.PathLike[str], mode: int = 0o750) -> None:
    """Create the directory *path* with exactly *mode*; leave an existing one as it is.

    Missing parent directories get mode 0755, because other programs may use them too.

    Raises:
        OSError: if it cannot be created, or *path* is not a directory.

    """
    try:
        os.mkdir(path, mode)
    except FileExistsError:
        if not os.path.isdir(path):
            raise
    except FileNotFoundError:
        make(os.path.dirname(path), 0o755)
        make(path, mode)
    else:
        os.chmod(path, mode)


@contextmanager
def locked(directory: str | os.PathLike[str]) -> Iterator[int]:
    """Hold the lock of *directory*, and yield a descriptor of it.

    Raises:
        OSError: if it cannot be opened or locked.

    """
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield descriptor
    finally:
        os.close(descriptor)


def replace(
    directory: int,
    name: str,
    content: bytes,
    mode: int,
    *,
    group: int = -1,
    draft: str = ".",
    durable: bool = False,
) -> None:
    """Write *content* as *name* below the descriptor *directory*, replacing an existing file.

    Readers see either the old or the new file; with *durable*, this also holds after a crash. If
    *name* is a link, the link is replaced. The name of the temporary file begins with *draft*.

    Raises:
        OSError: if it cannot be written; an existing file is unchanged.

    """
    temporary = f"{draft}{os.urandom(12).hex()}"  # not longer than any permitted name
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    file = os.open(temporary, flags, mode, dir_fd=directory)
    try:
        with os.fdopen(file, "wb") as stream:
            os.fchown(file, -1, group)
            os.fchmod(file, mode)
            stream.write(content)
            if durable:
                stream.flush()
                os.fsync(file)
        os.rename(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary, dir_fd=directory)
        raise
    if durable:
        os.fsync(directory)


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
