"""Mounts a directory a second time, without following symbolic links in it.

A switch opens a socket by its path, long after we could have checked it. If a container can write
to the directory, the path must not lead to files of another container. Linux supports such mounts
since version 5.14. The property is set before the mount is attached, so that mount propagation,
for example to a switch in a container, includes it.
"""

from __future__ import annotations

import ctypes
import os
import struct
from contextlib import suppress
from functools import cache

from userspace_cni import files

# asm-generic/unistd.h; the numbers of newer system calls are the same everywhere.
_OPEN_TREE, _MOVE_MOUNT, _MOUNT_SETATTR = 428, 429, 442
_OPEN_TREE_CLONE, _OPEN_TREE_CLOEXEC = 1, os.O_CLOEXEC
_MOVE_MOUNT_F_EMPTY_PATH = 4
_AT_FDCWD, _AT_EMPTY_PATH = -100, 0x1000
_NOSUID, _NODEV, _NOEXEC, _NOSYMFOLLOW = 0x2, 0x4, 0x8, 0x200000  # MOUNT_ATTR_*
_ST_NOSYMFOLLOW = 0x2000  # statfs(2)
_MNT_DETACH, _UMOUNT_NOFOLLOW = 2, 8


def provide(directory: int, path: str) -> None:
    """Mount the directory of descriptor *directory* at *path*, unless it is mounted already.

    Raises:
        OSError: it cannot be mounted.

    """
    if shows(directory, path):
        return
    remove(path)  # the mount of an earlier directory with the same name
    files.make(path, 0o700)
    tree = _call(_OPEN_TREE, directory, b"", _AT_EMPTY_PATH | _OPEN_TREE_CLONE | _OPEN_TREE_CLOEXEC)
    try:
        # struct mount_attr: attributes to set, attributes to clear, propagation, user namespace.
        wanted = struct.pack("4Q", _NOSYMFOLLOW | _NOSUID | _NODEV | _NOEXEC, 0, 0, 0)
        _call(_MOUNT_SETATTR, tree, b"", _AT_EMPTY_PATH, wanted, len(wanted))
        _call(_MOVE_MOUNT, tree, b"", _AT_FDCWD, os.fsencode(path), _MOVE_MOUNT_F_EMPTY_PATH)
    finally:
        os.close(tree)


def shows(directory: int, path: str) -> bool:
    """Return whether the directory of descriptor *directory* is mounted at *path*."""
    try:
        return bool(os.statvfs(path).f_flag & _ST_NOSYMFOLLOW) and os.path.samestat(
            os.stat(path), os.fstat(directory)
        )
    except OSError:
        return False


def remove(path: str) -> None:
    """Unmount *path* and remove the mount point; do nothing if it does not exist.

    Raises:
        OSError: it cannot be removed.

    """
    if not os.path.lexists(path):
        return
    # A switch may be using it.
    while _libc().umount2(os.fsencode(path), _MNT_DETACH | _UMOUNT_NOFOLLOW) == 0:
        pass
    with suppress(FileNotFoundError):
        try:
            os.rmdir(path)
        except NotADirectoryError:
            os.unlink(path)  # earlier versions had a link there


def _call(number: int, *arguments: int | bytes) -> int:
    words = [ctypes.c_long(a) if isinstance(a, int) else ctypes.c_char_p(a) for a in arguments]
    outcome = int(_libc().syscall(ctypes.c_long(number), *words))
    if outcome < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return outcome


@cache
def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    return libc
