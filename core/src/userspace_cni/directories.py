"""Making directories with the mode that they shall have, whatever the umask is."""

from __future__ import annotations

import os


def make(path: str | os.PathLike[str], mode: int = 0o750) -> None:
    """Make the directory *path* with exactly that *mode*; what exists stays as it is.

    Missing ones above it get mode 0755: others may have their own beside ours.

    Raises:
        OSError: it cannot be made, or something else has its name.

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
