"""Removes a directory that others can write to, and nothing outside of it."""

from __future__ import annotations

import os
from time import monotonic

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
#: Time limit in seconds. If removal takes longer, somebody is still adding files.
_TIME = 20.0


def remove_tree(parent: int, name: str) -> None:
    """Remove the directory *name* below the descriptor *parent*, and everything in it.

    Subdirectories are first moved up, so that neither the stack nor the number of descriptors grows
    with the depth.

    Raises:
        OSError: something cannot be removed; the rest has been removed.

    """
    end = monotonic() + _TIME
    top = os.open(name, _DIRECTORY, dir_fd=parent)
    try:
        _clear(top, top)
        while names := os.listdir(top):
            for below in names:
                directory = os.open(below, _DIRECTORY, dir_fd=top)
                try:
                    _clear(directory, top)
                finally:
                    os.close(directory)
                os.rmdir(below, dir_fd=top)
                if monotonic() > end:
                    raise TimeoutError(0, f"it takes longer than {_TIME:g} s")
    finally:
        os.close(top)
    os.rmdir(name, dir_fd=parent)


def _clear(directory: int, top: int) -> None:
    """Remove the files in *directory*, and move its directories to *top*."""
    with os.scandir(directory) as entries:
        found = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
    for name, is_directory in found:
        if not is_directory:
            os.unlink(name, dir_fd=directory)
        elif directory != top:
            os.rename(name, os.urandom(16).hex(), src_dir_fd=directory, dst_dir_fd=top)
