"""Ownership tags: the alias (IFLA_IFALIAS) of an interface says who made it, and for whom.

``userspace-cni/1 <attachment id> <network id> network=... container=... ifname=...``

The ids decide; what follows them is for people who read ``ip -d link``. A bridge, or a VLAN
sub-interface of one, belongs to no attachment: its alias is :data:`BRIDGE`.
"""

from __future__ import annotations

import re
from hashlib import sha256
from typing import TYPE_CHECKING

from attrs import frozen

if TYPE_CHECKING:
    from userspace_cni.engine import Attachment

_PREFIX = "userspace-cni/1"

#: The alias of a bridge that we made, and of our VLAN sub-interfaces of it.
BRIDGE = f"{_PREFIX} bridge"

#: In bytes: the kernel's IFALIASZ is 256, less the NUL that is sent along, less the one it adds.
MAX_LENGTH = 254

_TAG = re.compile(rf"{_PREFIX} (?P<id>[0-9a-f]{{16}}) (?P<network>[0-9a-f]{{16}})(?: [a-z]+=\S+)*")


@frozen
class Tag:
    """What the alias of an attachment's interface says."""

    #: The attachment's id.
    id: str
    #: The network's id, see :func:`network_id`.
    network: str


def network_id(network: str) -> str:
    """Return 16 hexadecimal digits that stand for *network*, whose name may be of any length."""
    return sha256(network.encode()).hexdigest()[:16]


def encode(attachment: Attachment) -> str:
    """Return the alias of *attachment*'s interfaces.

    A field that would not fit as a whole is left out: half a container id names another container.
    """
    alias = f"{_PREFIX} {attachment.id} {network_id(attachment.network)}"
    for key, value in (
        ("network", attachment.network),
        ("container", attachment.container_id),
        ("ifname", attachment.ifname),
    ):
        longer = f"{alias} {key}={value}"
        if len(longer.encode()) <= MAX_LENGTH:
            alias = longer
    return alias


def short_name(attachment_id: str) -> str:
    """Return an interface name made of as much of the id as fits into 15 characters."""
    return f"uc{attachment_id[:13]}"


def parse(alias: str) -> Tag | None:
    """Read an alias; None when it is not exactly of our making."""
    match = _TAG.fullmatch(alias)
    return None if match is None else Tag(match["id"], match["network"])
