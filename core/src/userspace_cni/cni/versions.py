"""The supported versions of the CNI protocol. Imports nothing, so that VERSION is fast."""

from __future__ import annotations

#: Every released version of the protocol, oldest first.
SUPPORTED = ("0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")

#: The version of a configuration without ``cniVersion`` (SPEC 0.1.0 did not have this key).
UNSTATED = "0.1.0"

#: The first version of each command; all other commands exist in every version.
SINCE = {"CHECK": "0.4.0", "GC": "1.1.0", "STATUS": "1.1.0"}


def at_least(version: str, minimum: str) -> bool:
    """Return whether *version* is *minimum* or later; both must be in :data:`SUPPORTED`."""
    return SUPPORTED.index(version) >= SUPPORTED.index(minimum)
