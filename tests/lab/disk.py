"""A disk that is full: a small file system of the test's own over the plugin's state."""

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
    """Put half a mebibyte in the place of *plugin*'s state directory."""
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
    """Leave no room at all in the file system of *directory*; return the file that has it."""
    ballast = directory / "ballast"
    with ballast.open("wb", buffering=0) as file:
        size = shutil.disk_usage(directory).free
        assert 0 < size < 2**20
        with suppress(OSError):  # full a little earlier, or exactly
            file.write(b"x" * size)
            file.write(b"x")
    assert shutil.disk_usage(directory).free == 0
    return ballast
