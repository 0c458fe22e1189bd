"""Tell the neighbours where an address is now: gratuitous ARP, unsolicited neighbour advertisement.

An address that moves to another container keeps its neighbours talking to the old MAC address until
their caches expire; this makes them forget at once (RFC 5227 section 3, RFC 4861 section 7.2.6).
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

#: In seconds, how long to wait for the carrier, which takes the kernel a few milliseconds.
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
        OSError: when it is not in time, or a packet cannot be sent.

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
        # A bridge that the far end is a port of forwards once that end has its carrier too; that
        # it is asked for makes the kernel see to it.
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
    # Ethernet, IPv4, the lengths of their addresses, request; sender and target are ourselves.
    arp = struct.pack("!HHBBH", 1, 0x0800, 6, 4, 1) + mac + address + bytes(6) + address
    raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC)
    try:
        raw.bind((interface, 0))
        raw.send(ethernet + arp)
    finally:
        # The kernel waits some 10 ms for others when a packet socket closes; the ADD need not.
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
        # A receiver drops any other hop limit (RFC 4861 section 7.1.2).
        raw.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
        raw.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, index)
        raw.bind((str(address), 0, 0, index))
        raw.sendto(message, (_ALL_NODES, 0, 0, index))
