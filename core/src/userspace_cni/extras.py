"""How what is optional is installed: told in errors that miss it."""

from __future__ import annotations

import sys


def pip(*arguments: str) -> str:
    """Return the command that installs into this interpreter, whatever ``pip`` is first in PATH."""
    return " ".join((sys.executable or "python3", "-m", "pip", "install", *arguments))


def pip_extra(extra: str) -> str:
    """Return the command that installs userspace-cni with *extra*."""
    return pip(f"'userspace-cni[{extra}]'")
