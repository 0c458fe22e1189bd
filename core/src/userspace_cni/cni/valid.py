"""The list of a GC: the attachments of a network that the runtime still uses (CNI SPEC, "GC")."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from userspace_cni.cni.errors import CniError, Code

_KEY = "cni.dev/valid-attachments"


def parse(config: Mapping[str, Any]) -> frozenset[tuple[str, str]]:
    """Return the container id and CNI_IFNAME of each attachment in the list of *config*.

    Raises:
        CniError: code 7, also if the list is absent: as "nothing is valid" it would disconnect all
            containers.

    """
    listed = config.get(_KEY)
    if listed is None:
        raise CniError(
            Code.INVALID_NETWORK_CONFIG,
            f"{_KEY}: missing; GC needs the list of attachments to keep",
            "an empty list removes all",
        )
    if not isinstance(listed, list):
        raise CniError(Code.INVALID_NETWORK_CONFIG, f"{_KEY}: expected a list, got {listed!r}")
    found = set()
    for position, item in enumerate(listed):
        match item:
            case {"containerID": str(container_id), "ifname": str(ifname)}:
                found.add((container_id, ifname))
            case _:
                raise CniError(
                    Code.INVALID_NETWORK_CONFIG,
                    f"{_KEY}[{position}]: expected containerID and ifname, got {item!r}",
                )
    return frozenset(found)


def extended(config: Mapping[str, Any], more: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """Return *config* with *more* attachments in its list."""
    added = [{"containerID": container_id, "ifname": ifname} for container_id, ifname in more]
    return {**config, _KEY: [*config[_KEY], *added]}
