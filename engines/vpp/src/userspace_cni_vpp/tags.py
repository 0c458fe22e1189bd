"""Ownership tags: the tag of each interface and bridge domain that we make. VPP has 63 bytes.

The host's VPP has ``userspace-cni/1 <id> <network>``, both of 16 hexadecimal digits.
"""

from __future__ import annotations

import re
from hashlib import sha256
from typing import TYPE_CHECKING

from attrs import frozen

if TYPE_CHECKING:
    from userspace_cni.api import Attachment

_PREFIX = "userspace-cni/1"
#: Begins the tag of every loopback that lends its addresses.
GATEWAY = f"{_PREFIX} gateway "
#: Begins its MAC address: locally administered, unicast (IEEE 802c), and nobody else's of ours.
GATEWAY_MAC = b"\x06uc"
_TAG = re.compile(rf"{_PREFIX} (?P<id>[0-9a-f]{{16}}) (?P<network>[0-9a-f]{{16}})")


@frozen
class Tag:
    """What the tag of an attachment's interface says."""

    #: The attachment's id.
    id: str
    #: See :func:`network_id`.
    network: str


def network_id(network: str) -> str:
    """Return 16 hexadecimal digits that stand for *network*, whose name may be of any length."""
    return sha256(network.encode()).hexdigest()[:16]


def of(attachment: Attachment) -> str:
    """Return the tag of the interface of *attachment*."""
    return f"{_PREFIX} {attachment.id} {network_id(attachment.network)}"


def parse(tag: str) -> Tag | None:
    """Read a tag; None when it is not exactly of our making."""
    match = _TAG.fullmatch(tag)
    return None if match is None else Tag(match["id"], match["network"])


def of_bridge(name: str) -> str:
    """Return the tag of a bridge domain that we made, and of its BVI."""
    return f"{_PREFIX} bridge {name}"


def of_gateway(vrf: int, addresses: list[str]) -> str:
    """Return the tag of a loopback that has the gateway *addresses* in table *vrf*."""
    digest = sha256(" ".join([str(vrf), *sorted(addresses)]).encode()).hexdigest()[:16]
    return f"{GATEWAY}{digest}"


def of_table() -> str:
    """Return the name of a routing table that we made."""
    return _PREFIX


def in_container(interface: str) -> str:
    """Return the tag of *interface* in the container's own VPP."""
    return f"{_PREFIX} interface {interface}"


def host_mac(attachment_id: str) -> bytes:
    """Return the MAC address of the host's end.

    It follows from the id alone, and so finds an interface that has not got its tag yet. 02 is
    locally administered, unicast (IEEE 802c).
    """
    return bytes((0x02, *sha256(f"{attachment_id}/vpp".encode()).digest()[:5]))


def number(subject: str) -> int:
    """Return the number by which VPP's name of an interface tells whose it is.

    *subject* is the attachment's id, or what :func:`in_container` returns. A memif has it as the
    number of its socket, a vhost-user port as its own: neither needs a tag to be found.
    """
    return int.from_bytes(sha256(f"{subject}/number".encode()).digest()[:4], "big") >> 1 or 1


def shared_mac(tag: str) -> bytes:
    """Return the MAC address of a gateway with *tag*: the same on every node, and for ever.

    That of a loopback that lends its addresses says so itself, should it lack its tag.
    """
    digest = sha256(tag.encode()).digest()
    return GATEWAY_MAC + digest[:3] if tag.startswith(GATEWAY) else b"\x02" + digest[:5]
