"""The version of the contract between core and engines: docs/engine-contract.md."""

from __future__ import annotations

#: The version of the contract that this core keeps. An engine that was written for the same major
#: number, and for this minor number or a lower one, works with it.
API_VERSION: tuple[int, int] = (1, 0)


def version_text(version: tuple[int, int]) -> str:
    """Return *version* as people write it, such as ``1.0``."""
    return ".".join(map(str, version))
