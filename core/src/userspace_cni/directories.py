"""Creation of directories with an exact mode, independent of the umask."""

from __future__ import annotations

import os


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
