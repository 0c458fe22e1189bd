"""Ownership tags of interfaces and bridge domains. A tag in VPP has at most 63 bytes.

The tag of a port is ``userspace-cni/1 <attachment id> <network id>``; each ID has 16 hexadecimal
digits.
"""

from __future__ import annotations

import re
from hashlib import sha256
from typing import TYPE_CHECKING

from attrs import frozen

if TYPE_CHECKING:
    from userspace_cni.api import Attachment

_PREFIX = "userspace-cni/1"
#: Prefix of the tags of loopbacks that hold gateway addresses.
GATEWAY = f"{_PREFIX} gateway "
#: Prefix of their MAC addresses: locally administered unicast (IEEE 802c), not used otherwise.
GATEWAY_MAC = b"\x06uc"
_TAG = re.compile(rf"{_PREFIX} (?P<id>[0-9a-f]{{16}}) (?P<network>[0-9a-f]{{16}})")


@frozen
class Tag:
    """The decoded tag of an attachment's interface."""

    #: The attachment's ID.
    id: str
    #: See :func:`network_id`.
    network: str


def network_id(network: str) -> str:
    """Return a network's ID: 16 hexadecimal digits, because its name may be of any length."""
    return sha256(network.encode()).hexdigest()[:16]


def of(attachment: Attachment) -> str:
    """Return the tag of the interface of *attachment*."""
    return f"{_PREFIX} {attachment.id} {network_id(attachment.network)}"


def parse(tag: str) -> Tag | None:
    """Decode a tag; return None if it is not the tag of an attachment."""
    match = _TAG.fullmatch(tag)
    return None if match is None else Tag(match["id"], match["network"])


def of_bridge(name: str) -> str:
    """Return the tag of a bridge domain that the engine creates, and of its BVI."""
    return f"{_PREFIX} bridge {name}"


def of_gateway(vrf: int, addresses: list[str]) -> str:
    """Return the tag of a loopback with the gateway *addresses* in table *vrf*."""
    digest = sha256(" ".join([str(vrf), *sorted(addresses)]).encode()).hexdigest()[:16]
    return f"{GATEWAY}{digest}"


def of_table() -> str:
    """Return the name of a routing table that the engine creates."""
    return _PREFIX


def in_container(interface: str) -> str:
    """Return the tag of *interface* in the container's own VPP."""
    return f"{_PREFIX} interface {interface}"


def host_mac(attachment_id: str) -> bytes:
    """Return the MAC address of the host's end.

    It is derived from the attachment's ID, so an interface that is not tagged yet can be found by
    it. 02 marks a locally administered unicast address (IEEE 802c).
    """
    return bytes((0x02, *sha256(f"{attachment_id}/vpp".encode()).digest()[:5]))


def number(subject: str) -> int:
    """Return a number for VPP's name of an interface, derived from *subject*.

    *subject* is the attachment's ID or the result of :func:`in_container`. The number becomes the
    socket number of a memif or the number of a vhost-user port, so both can be found by name even
    without a tag.
    """
    return int.from_bytes(sha256(f"{subject}/number".encode()).digest()[:4], "big") >> 1 or 1


def shared_mac(tag: str) -> bytes:
    """Return the MAC address of a gateway with *tag*, which is the same on every node.

    The address of a loopback begins with :data:`GATEWAY_MAC`, so that the loopback is recognized
    even without its tag.
    """
    digest = sha256(tag.encode()).digest()
    return GATEWAY_MAC + digest[:3] if tag.startswith(GATEWAY) else b"\x02" + digest[:5]
