"""Container engine ``linux``: configures a kernel interface in the container's namespace.

The interface may come from this package's host engine or from any other engine with kernel ports.
"""

from __future__ import annotations

import errno
import logging
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from attrs import frozen

from userspace_cni.api import (
    CheckFailed,
    ContainerEngine,
    DataplaneError,
    EngineInfo,
    Handoff,
    IPAddress,
    IPNetwork,
)
from userspace_cni.kernel import sysctl
from userspace_cni.kernel.addresses import add_address, addresses_of
from userspace_cni.kernel.links import Links
from userspace_cni.kernel.netlink import Refused
from userspace_cni.kernel.routes import (
    MAIN_TABLE,
    RTAX_ADVMSS,
    RTAX_MTU,
    SCOPE_LINK,
    SCOPE_UNIVERSE,
    KernelRoute,
    add_route,
    routes_of,
)
from userspace_cni_linux.announce import announce

if TYPE_CHECKING:
    from collections.abc import Iterator

    from userspace_cni.api import (
        Attachment,
        EngineConf,
        HostPort,
        Route,
    )
    from userspace_cni.kernel.links import Link

_log = logging.getLogger(__name__)


class LinuxContainerEngine(ContainerEngine):
    """Sets addresses and routes in the container's namespace, from the node."""

    info: ClassVar[EngineInfo] = EngineInfo(
        name="linux",
        api_version=(1, 0),
        summary="the container's kernel: addresses and routes",
        interface_types=("veth", "tap", "macvlan"),
        network_types=("interface", "none"),
    )
    where: ClassVar[Literal["node", "container"]] = "node"

    def prepare(self, attachment: Attachment, conf: EngineConf, port: HostPort) -> Handoff:
        """See :meth:`.ContainerEngine.prepare`."""
        addresses = attachment.wait_for_addresses()
        more = (route for route in port.routes if route not in addresses.routes)
        return Handoff(
            interface=attachment.interface,
            iftype=conf.iftype,
            net_type=conf.net_type,
            mac=port.mac,
            mtu=port.mtu,
            point_to_point=port.point_to_point,
            ips=addresses.ips,
            routes=(*addresses.routes, *more),
            dns=addresses.dns,
        )

    def add(self, handoff: Handoff) -> None:
        """See :meth:`.ContainerEngine.add`. Runs inside the container's namespace."""
        with Links() as links:
            link = links.require(handoff.interface)
            if handoff.net_type == "none":
                links.change(link, up=True)
                return
            if any(ip.address.version == 6 for ip in handoff.ips):
                sysctl.enable_ipv6(link.name)
                sysctl.keep_ipv6_addresses(link.name)
                # Only IPAM assigns addresses and routes; anyone on the link could advertise others.
                sysctl.ignore_router_advertisements(link.name)
            for ip in handoff.ips:
                add_address(links, link, ip.address, prefix_route=not handoff.point_to_point)
            links.change(link, up=True)
            for wanted in _routes(handoff):
                _add_route(links, link, wanted)
            # A tap has no carrier until its application opens it.
            if handoff.ips and handoff.iftype != "tap":
                _announce(links, link, handoff)

    def check(self, handoff: Handoff) -> None:
        """See :meth:`.ContainerEngine.check`. Runs inside the container's namespace."""
        name = handoff.interface
        with Links() as links:
            link = links.find(name)
            if link is None:
                raise CheckFailed(f"the container's interface {name} is gone")
            _check_link(link, handoff)
            if handoff.net_type == "none":
                return
            addresses = addresses_of(links, link)
            for ip in handoff.ips:
                if str(ip.address) not in addresses:
                    raise CheckFailed(
                        f"the container's interface {name} has lost the address {ip.address}",
                        f"found: {', '.join(sorted(addresses)) or 'none'}",
                    )
            _check_routes(links, link, handoff)


def _check_link(link: Link, handoff: Handoff) -> None:
    for what, wanted, found in (
        ("MAC address", handoff.mac.lower(), link.mac),
        ("MTU", handoff.mtu, link.mtu),
    ):
        if wanted and wanted != found:
            raise CheckFailed(
                f"the container's interface {link.name} has another {what}",
                f"expected {wanted}, found {found}",
            )
    if not link.up:
        raise CheckFailed(f"the container's interface {link.name} is down")


@frozen(kw_only=True)
class _Wanted:
    """A route of the container with all defaults resolved."""

    dst: IPNetwork
    gw: IPAddress | None = None
    src: IPAddress | None = None
    mtu: int | None = None
    advmss: int | None = None
    priority: int | None = None
    table: int = MAIN_TABLE
    scope: int | None = None

    def __str__(self) -> str:
        via = f" via {self.gw}" if self.gw else ""
        table = f" table {self.table}" if self.table != MAIN_TABLE else ""
        metric = f" metric {self.priority}" if self.priority is not None else ""
        return f"{self.dst}{via}{metric}{table}"

    def is_met_by(self, route: KernelRoute) -> bool:
        return (
            route.dst == str(self.dst)
            and route.gw == (str(self.gw) if self.gw else None)
            and route.table == self.table
            and (self.priority is None or route.priority == self.priority)
        )

    def options(self) -> dict[str, Any]:
        """Return the keyword arguments for :func:`.add_route`."""
        options: dict[str, Any] = {
            "table": self.table,
            "src": self.src,
            "priority": self.priority,
            "metrics": {
                name: value
                for name, value in ((RTAX_MTU, self.mtu), (RTAX_ADVMSS, self.advmss))
                if value is not None
            },
        }
        if self.dst.version == 4:
            through_gateway = SCOPE_UNIVERSE if self.gw else SCOPE_LINK
            options["scope"] = through_gateway if self.scope is None else self.scope
        return options


def _routes(handoff: Handoff) -> Iterator[_Wanted]:
    """Yield the routes of *handoff* in the order in which they can be added."""
    if handoff.point_to_point:
        yield from _routes_to_gateway(handoff)
    gateways: dict[int, IPAddress] = {}
    for ip in handoff.ips:
        if ip.gateway is not None:
            gateways.setdefault(ip.gateway.version, ip.gateway)
    for route in handoff.routes:
        yield _Wanted(
            dst=route.dst,
            gw=route.gw or _implied_gateway(route, gateways),
            mtu=route.mtu,
            advmss=route.advmss,
            priority=route.priority,
            table=MAIN_TABLE if route.table is None else route.table,
            scope=route.scope,
        )


def _routes_to_gateway(handoff: Handoff) -> Iterator[_Wanted]:
    """Yield the routes that make the gateway the only neighbour, with the subnet behind it."""
    for ip in handoff.ips:
        if ip.gateway is None:
            continue
        network = ip.address.network
        host_route = type(network)(ip.gateway)
        yield _Wanted(dst=host_route, src=ip.address.ip)
        if network.prefixlen < network.max_prefixlen:
            yield _Wanted(dst=network, gw=ip.gateway, src=ip.address.ip)


def _implied_gateway(route: Route, gateways: dict[int, IPAddress]) -> IPAddress | None:
    # With scope link or narrower the destination is directly connected.
    if route.scope is not None and route.scope >= SCOPE_LINK:
        return None
    return gateways.get(route.dst.version)


def _add_route(links: Links, link: Link, wanted: _Wanted) -> None:
    try:
        add_route(links, link, wanted.dst, wanted.gw, **wanted.options())
    except Refused as error:
        if error.errno != errno.EEXIST:
            raise
        if any(wanted.is_met_by(route) for route in routes_of(links, link)):
            return
        if (str(wanted.dst), wanted.table) not in _elsewhere(links, link):
            raise DataplaneError(
                f"the network has two routes to {wanted.dst}",
                f"cannot add {wanted} through {link.name}; leave one of them out, or give it a "
                '"priority" of its own',
            ) from error
        # The first route wins, as with the reference plugins: several of a container's networks
        # may have a default route.
        _log.warning(
            "the container already has a route to %s; not adding one through %s", wanted, link.name
        )


def _check_routes(links: Links, link: Link, handoff: Handoff) -> None:
    found = routes_of(links, link)
    elsewhere = _elsewhere(links, link)
    for wanted in _routes(handoff):
        # A route of another network won, see _add_route.
        if (str(wanted.dst), wanted.table) in elsewhere:
            continue
        if not any(wanted.is_met_by(route) for route in found):
            raise CheckFailed(
                f"the container has lost the route {wanted} through {link.name}",
                f"found: {'; '.join(map(_text, found)) or 'none'}",
            )


def _elsewhere(links: Links, link: Link) -> set[tuple[str, int]]:
    """Return destination and table of all routes through other interfaces than *link*."""
    return {(route.dst, route.table) for route in routes_of(links) if route.oif != link.index}


def _announce(links: Links, link: Link, handoff: Handoff) -> None:
    addresses = [ip.address.ip for ip in handoff.ips]
    try:
        announce(links, link, addresses)
    except OSError as error:
        # Not fatal: without the announcement neighbours find the address a little later.
        told = ", ".join(map(str, addresses))
        _log.warning("cannot announce %s on %s to the neighbours: %s", told, link.name, error)


def _text(route: KernelRoute) -> str:
    return f"{route.dst} via {route.gw}" if route.gw else route.dst
