"""Address announcements: gratuitous ARP and unsolicited neighbour advertisements.

When an address moves to another container, its neighbours send to the old MAC address until their
cache entries expire. An announcement updates the caches at once (RFC 5227 section 3, RFC 4861
section 7.2.6).
"""

from __future__ import annotations

import _thread
import socket
import struct
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from userspace_cni.api import IPAddress
    from userspace_cni.kernel.links import Link, Links

#: How long to wait for the carrier, in seconds; the kernel usually takes a few milliseconds.
TIMEOUT = 0.2

_PAUSE = 0.001  # seconds
_ETH_P_ARP = 0x0806
_ND_NEIGHBOR_ADVERT = 136
_OVERRIDE = 0x20000000
_TARGET_LINK_LAYER_ADDRESS = 2
_ALL_NODES = "ff02::1"


def announce(links: Links, link: Link, addresses: Iterable[IPAddress]) -> None:
    """Announce *addresses* on *link* once it is operational.

    Raises:
        OSError: if the link is not operational in time, or a packet cannot be sent.

    """
    _wait_until_operational(links, link)
    mac = bytes.fromhex(link.mac.replace(":", ""))
    for address in addresses:
        if address.version == 4:
            _gratuitous_arp(link.name, mac, address.packed)
        else:
            _neighbour_advertisement(link.index, mac, address)


def _wait_until_operational(links: Links, link: Link) -> None:
    deadline = time.monotonic() + TIMEOUT
    while True:
        now = links.at(link.index)
        # If the peer is a bridge port, the bridge forwards only once the peer has a carrier too.
        # Reading the peer's state makes the kernel process pending carrier changes.
        if now is not None and now.operational:
            far = links.at_far_end(now)
            if far is None or far.operational:
                return
        if time.monotonic() >= deadline:
            raise TimeoutError(f"no carrier within {TIMEOUT} s")
        time.sleep(_PAUSE)


def _gratuitous_arp(interface: str, mac: bytes, address: bytes) -> None:
    broadcast = b"\xff" * 6
    ethernet = broadcast + mac + struct.pack("!H", _ETH_P_ARP)
    # Ethernet, IPv4, their address lengths, request; sender and target are the same address.
    arp = struct.pack("!HHBBH", 1, 0x0800, 6, 4, 1) + mac + address + bytes(6) + address
    raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC)
    try:
        raw.bind((interface, 0))
        raw.send(ethernet + arp)
    finally:
        # Closing a packet socket blocks for about 10 ms (RCU), which the ADD need not wait for.
        _thread.start_new_thread(raw.close, ())


def _neighbour_advertisement(index: int, mac: bytes, address: IPAddress) -> None:
    message = (
        struct.pack("!BBHI", _ND_NEIGHBOR_ADVERT, 0, 0, _OVERRIDE)  # the kernel sets the checksum
        + address.packed
        + struct.pack("!BB", _TARGET_LINK_LAYER_ADDRESS, 1)
        + mac
    )
    with socket.socket(
        socket.AF_INET6, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.IPPROTO_ICMPV6
    ) as raw:
        # Receivers drop packets with any other hop limit (RFC 4861 section 7.1.2).
        raw.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
        raw.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, index)
        raw.bind((str(address), 0, 0, index))
        raw.sendto(message, (_ALL_NODES, 0, 0, index))
