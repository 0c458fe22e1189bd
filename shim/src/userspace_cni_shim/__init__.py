"""The CNI executable as a static program; ``userspace-cni install`` places it."""

from __future__ import annotations

from pathlib import Path


def path() -> Path:
    """Return where the program is; runtimes execute a copy with the node's settings in it."""
    return Path(__file__).with_name("userspace")
