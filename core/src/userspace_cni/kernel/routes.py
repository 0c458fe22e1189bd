"""Kernel routes: rtnetlink(7), <linux/rtnetlink.h>.

*links* is a socket in the routes' namespace. Every function that takes it raises :class:`.Refused`
when the kernel refuses the request.
"""

from __future__ import annotations

import struct
from ipaddress import ip_address
from socket import AF_INET, AF_INET6
from typing import TYPE_CHECKING

from attrs import frozen

from userspace_cni.kernel.netlink import CREATE, DUMP, EXCLUSIVE, attribute, attributes, number

if TYPE_CHECKING:
    from collections.abc import Mapping

    from userspace_cni.api import IPAddress, IPNetwork
    from userspace_cni.kernel.links import Link, Links

MAIN_TABLE = 254  # RT_TABLE_MAIN
SCOPE_UNIVERSE = 0  # RT_SCOPE_
SCOPE_LINK = 253
#: Keys of metrics for :func:`add_route`.
RTAX_MTU = 2
RTAX_ADVMSS = 8

_NEWROUTE, _GETROUTE = 24, 26  # RTM_
#: struct rtmsg: family, lengths of destination and source, TOS, table, protocol, scope, type, flags
_HEADER = struct.Struct("=BBBBBBBBI")
_DST, _OIF, _GATEWAY, _PRIORITY, _PREFSRC, _METRICS, _TABLE = 1, 4, 5, 6, 7, 8, 15  # RTA_
_UNICAST = 1  # RTN_
_STATIC = 4  # RTPROT_


@frozen(kw_only=True)
class KernelRoute:
    """A route of any table, as the kernel describes it."""

    dst: str
    gw: str | None
    table: int
    priority: int
    #: Preferred source address.
    src: str | None
    scope: int
    #: Index of the outgoing interface; 0 for a route with several next hops.
    oif: int


def add_route(
    links: Links,
    link: Link,
    dst: IPNetwork,
    gw: IPAddress | None = None,
    *,
    scope: int = SCOPE_UNIVERSE,
    table: int = MAIN_TABLE,
    src: IPAddress | None = None,
    priority: int | None = None,
    metrics: Mapping[int, int] | None = None,
) -> None:
    """Add a route.

    Args:
        links: a socket in the route's namespace.
        link: the outgoing interface.
        dst: the destination; a prefix length of 0 makes a default route.
        gw: the gateway; None for a directly connected destination.
        scope: :data:`SCOPE_UNIVERSE` or :data:`SCOPE_LINK`.
        table: number of the routing table.
        src: preferred source address.
        priority: the metric of the route, lowest first; the kernel's default if None.
        metrics: :data:`RTAX_MTU` and :data:`RTAX_ADVMSS`, in bytes.

    Raises:
        Refused: with errno EEXIST if the route already exists.

    """
    family = AF_INET6 if dst.version == 6 else AF_INET
    body = _HEADER.pack(family, dst.prefixlen, 0, 0, 0, _STATIC, scope, _UNICAST, 0)
    body += attribute(_OIF, link.index) + attribute(_TABLE, table)
    if dst.prefixlen:
        body += attribute(_DST, dst.network_address.packed)
    for kind, address in ((_GATEWAY, gw), (_PREFSRC, src)):
        if address is not None:
            body += attribute(kind, address.packed)
    if priority is not None:
        body += attribute(_PRIORITY, priority)
    if metrics:
        values = b"".join(attribute(kind, value) for kind, value in metrics.items())
        body += attribute(_METRICS, values)
    through = f"{gw} on {link.name}" if gw else link.name
    action = f"add a route to {dst} through {through}"
    links.request(action, _NEWROUTE, body, CREATE | EXCLUSIVE)


def routes_of(links: Links, link: Link | None = None) -> list[KernelRoute]:
    """Return the unicast routes of all tables, optionally only those through *link*."""
    return [*_routes(links, AF_INET, link), *_routes(links, AF_INET6, link)]


def default_interface(links: Links) -> Link | None:
    """Return the interface of the default route (IPv4 before IPv6), or None without one.

    This reads every route of the namespace and is slow if there are many.
    """
    for family in (AF_INET, AF_INET6):
        defaults = [
            route
            for route in _routes(links, family)
            if route.dst.endswith("/0") and route.oif and route.table == MAIN_TABLE
        ]
        if defaults:
            return links.at(min(defaults, key=lambda route: route.priority).oif)
    return None


def decode(answer: bytes) -> KernelRoute | None:
    """Return the route in the body of an RTM_NEWROUTE message, or None if it is not unicast."""
    family, length, _, _, table, _, scope, kind, _ = _HEADER.unpack_from(answer)
    if kind != _UNICAST:
        return None
    found = attributes(answer, _HEADER.size)
    everything = bytes(16 if family == AF_INET6 else 4)
    return KernelRoute(
        dst=f"{_address(found.get(_DST, everything))}/{length}",
        gw=_address(found.get(_GATEWAY)),
        table=number(found.get(_TABLE)) or table,
        priority=number(found.get(_PRIORITY)),
        src=_address(found.get(_PREFSRC)),
        scope=scope,
        oif=number(found.get(_OIF)),
    )


def _routes(links: Links, family: int, link: Link | None = None) -> list[KernelRoute]:
    body = _HEADER.pack(family, 0, 0, 0, 0, 0, 0, 0, 0)
    if link is not None:
        body += attribute(_OIF, link.index)
    action = f"read the routes{f' of {link.name}' if link else ''}"
    answers = links.request(action, _GETROUTE, body, DUMP)
    return [route for route in map(decode, answers) if route is not None]


def _address(value: bytes | None) -> str | None:
    return None if value is None else str(ip_address(value))
