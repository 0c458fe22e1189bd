"""The CNI executable as a static program, which ``userspace-cni install`` installs."""

from __future__ import annotations

from pathlib import Path


def path() -> Path:
    """Return the program's path; runtimes execute a copy that contains the node's settings."""
    return Path(__file__).with_name("userspace")
