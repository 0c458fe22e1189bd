"""CNI protocol versions that we speak. Imports nothing: VERSION must answer at once."""

from __future__ import annotations

#: Every released version of the protocol, oldest first.
SUPPORTED = ("0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")

#: The version that a configuration without ``cniVersion`` has (SPEC 0.1.0 knew no such key).
UNSTATED = "0.1.0"

#: The first version that has each command; commands that are not here are in all of them.
SINCE = {"CHECK": "0.4.0", "GC": "1.1.0", "STATUS": "1.1.0"}


def at_least(version: str, minimum: str) -> bool:
    """Tell whether *version* is *minimum* or later; both must be of :data:`SUPPORTED`."""
    return SUPPORTED.index(version) >= SUPPORTED.index(minimum)
