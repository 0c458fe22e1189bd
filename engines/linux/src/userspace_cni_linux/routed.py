"""Host side of a routed veth: the host's end is the container's gateway and only neighbour."""

from __future__ import annotations

import errno
from ipaddress import ip_interface, ip_network
from typing import TYPE_CHECKING

from userspace_cni.api import CheckFailed, DataplaneError, InvalidConfig
from userspace_cni.kernel import sysctl
from userspace_cni.kernel.addresses import addresses_of, ensure_address
from userspace_cni.kernel.netlink import Refused
from userspace_cni.kernel.routes import SCOPE_LINK, SCOPE_UNIVERSE, add_route, routes_of

if TYPE_CHECKING:
    from userspace_cni.api import IPConfig, IPInterface, IPNetwork
    from userspace_cni.kernel.links import Link, Links


def require_gateways(ips: tuple[IPConfig, ...]) -> None:
    """Raise InvalidConfig unless each of the container's addresses *ips* has a gateway."""
    lacking = [str(ip.address) for ip in ips if ip.gateway is None]
    if lacking or not ips:
        subject = f"{', '.join(lacking)} without" if lacking else "no address and no gateway"
        raise InvalidConfig(
            "host.netType",
            f'"interface" needs a gateway from ipam for each address, got {subject}'
            + (" one" if lacking else ""),
            'set "gateway" in the ipam section, or use netType "bridge" or "none"',
        )


def configure(links: Links, name: str, ips: tuple[IPConfig, ...]) -> None:
    """Add the gateway addresses and the routes to the container to the host's end.

    Args:
        links: a socket in the host's namespace.
        name: the host's end, which must be up.
        ips: the container's addresses, with their gateways.

    Raises:
        DataplaneError: if the host already has a route to one of the addresses.

    """
    link = links.require(name)
    versions: set[int] = {ip.address.version for ip in ips}
    if 6 in versions:
        sysctl.enable_ipv6(name)
    for address in _addresses(ips):
        ensure_address(links, link, address)
    for dst in _destinations(ips):
        try:
            # IPv6 routes have no scope.
            scope = SCOPE_LINK if dst.version == 4 else SCOPE_UNIVERSE
            add_route(links, link, dst, scope=scope)
        except Refused as error:
            if error.errno == errno.EEXIST:
                raise DataplaneError(
                    f"the host already has a route to {dst}, the container's address",
                    f"another container may have this address: see ip route show {dst}",
                ) from error
            raise
    sysctl.forward(versions)


def check(links: Links, link: Link, ips: tuple[IPConfig, ...]) -> None:
    """Raise CheckFailed unless *link* is configured as :func:`configure` does it."""
    found = addresses_of(links, link)
    for address in _addresses(ips):
        if str(address) not in found:
            raise CheckFailed(
                f"the host's interface {link.name} has lost the gateway address {address}",
                f"found: {', '.join(sorted(found)) or 'none'}",
            )
    routes = {route.dst for route in routes_of(links, link)}
    for dst in _destinations(ips):
        if str(dst) not in routes:
            raise CheckFailed(
                f"the host has lost the route to {dst} through {link.name}",
                f"found: {', '.join(sorted(routes)) or 'none'}",
            )


def _addresses(ips: tuple[IPConfig, ...]) -> list[IPInterface]:
    # Full-length prefixes, because the host's end of every container in a subnet has the same
    # gateway address.
    return [ip_interface(ip.gateway) for ip in ips if ip.gateway is not None]


def _destinations(ips: tuple[IPConfig, ...]) -> list[IPNetwork]:
    return [ip_network(ip.address.ip) for ip in ips]
