"""A full disk: a small file system mounted over the plugin's state directory."""

from __future__ import annotations

import shutil
import subprocess
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from lab.plugin import Plugin


@contextmanager
def small_disk(plugin: Plugin) -> Iterator[Path]:
    """Mount a file system of half a mebibyte over *plugin*'s state directory."""
    directory = plugin.state_dir
    directory.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "lab", directory], check=True)
    try:
        yield directory
    finally:
        if plugin.daemon is not None:
            plugin.daemon.stop()
        subprocess.run(["umount", directory], check=True)


def fill(directory: Path) -> Path:
    """Fill the file system of *directory*; return the file that fills it."""
    ballast = directory / "ballast"
    with ballast.open("wb", buffering=0) as file:
        size = shutil.disk_usage(directory).free
        assert 0 < size < 2**20
        with suppress(OSError):  # the file system is full
            file.write(b"x" * size)
            file.write(b"x")
    assert shutil.disk_usage(directory).free == 0
    return ballast
