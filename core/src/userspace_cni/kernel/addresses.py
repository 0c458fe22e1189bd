"""Addresses of kernel interfaces: rtnetlink(7), <linux/if_addr.h>.

*links* is a socket in the interface's namespace. Every function that takes it raises
:class:`.Refused` when the kernel refuses the request.
"""

from __future__ import annotations

import errno
import struct
from ipaddress import ip_address
from socket import AF_INET, AF_INET6
from typing import TYPE_CHECKING

from userspace_cni.kernel.netlink import CREATE, DUMP, EXCLUSIVE, Refused, attribute, attributes

if TYPE_CHECKING:
    from userspace_cni.api import IPInterface
    from userspace_cni.kernel.links import Link, Links

_NEWADDR, _GETADDR = 20, 22  # RTM_
_HEADER = struct.Struct("=BBBBI")  # struct ifaddrmsg: family, length, flags, scope, index
_ADDRESS, _LOCAL, _FLAGS = 1, 2, 8  # IFA_
_NODAD = 0x02  # IFA_F_
_NOPREFIXROUTE = 0x200


def add_address(
    links: Links, link: Link, address: IPInterface, *, prefix_route: bool = True
) -> None:
    """Add *address* to *link*.

    An IPv6 address can be used at once, because duplicate address detection is disabled for it.

    Args:
        links: a socket in the interface's namespace.
        link: the interface.
        address: the address with its prefix length.
        prefix_route: whether the kernel also adds a route to the address's subnet.

    Raises:
        Refused: with errno EEXIST if *link* already has the address.

    """
    flags = 0 if prefix_route else _NOPREFIXROUTE
    if address.version == 6:
        flags |= _NODAD
    family = AF_INET6 if address.version == 6 else AF_INET
    body = (
        _HEADER.pack(family, address.network.prefixlen, 0, 0, link.index)
        + attribute(_LOCAL, address.packed)
        + attribute(_ADDRESS, address.packed)
        + attribute(_FLAGS, flags)
    )
    action = f"give the interface {link.name} the address {address}"
    links.request(action, _NEWADDR, body, CREATE | EXCLUSIVE)


def ensure_address(links: Links, link: Link, address: IPInterface) -> bool:
    """Add *address* to *link* unless it is there; return whether it was added."""
    try:
        add_address(links, link, address)
    except Refused as error:
        if error.errno != errno.EEXIST:
            raise
        return False
    return True


def addresses_of(links: Links, link: Link) -> set[str]:
    """Return the addresses of *link*, each with its prefix length."""
    body = _HEADER.pack(0, 0, 0, 0, link.index)
    answers = links.request(f"read the addresses of {link.name}", _GETADDR, body, DUMP)
    return {decode(answer) for answer in answers}


def decode(answer: bytes) -> str:
    """Return the address in the body of an RTM_NEWADDR message, with its prefix length."""
    _, length, _, _, _ = _HEADER.unpack_from(answer)
    found = attributes(answer, _HEADER.size)
    # On a point-to-point interface IFA_ADDRESS is the peer's address and IFA_LOCAL is ours.
    packed = found.get(_LOCAL) or found[_ADDRESS]
    return f"{ip_address(packed)}/{length}"
