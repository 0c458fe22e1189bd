"""Container engine ``vpp``: configures the VPP that runs inside the container."""

from __future__ import annotations

import os
from ipaddress import ip_network
from typing import TYPE_CHECKING, ClassVar, Literal

from userspace_cni.api import (
    CheckFailed,
    ContainerEngine,
    EngineInfo,
    Handoff,
    InvalidConfig,
    Memif,
)
from userspace_cni_vpp import bridge, tags
from userspace_cni_vpp.connection import connect
from userspace_cni_vpp.ports import MTU, vpp_socket
from userspace_cni_vpp.sections import BridgeSection, MemifSection
from userspace_cni_vpp.settings import VppSettings
from userspace_cni_vpp.switch import Switch, mac_bytes

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from userspace_cni.api import (
        Attachment,
        CniError,
        EngineConf,
        HostPort,
        IPAddress,
        IPInterface,
        IPNetwork,
        Route,
    )
    from userspace_cni_vpp.switch import Port

#: Environment variables for the program in the container, if its VPP uses other paths.
API_SOCKET_VARIABLE = "USERSPACE_CNI_VPP_API_SOCKET"
API_DIR_VARIABLE = "USERSPACE_CNI_VPP_API_DIR"


class VppContainerEngine(ContainerEngine):
    """The container's end of a memif, in the container's VPP."""

    info: ClassVar[EngineInfo] = EngineInfo(
        name="vpp",
        api_version=(1, 0),
        summary="a VPP in the container: memif",
        interface_types=("memif",),
        network_types=("interface", "bridge", "none"),
        sections={"memif": MemifSection, "bridge": BridgeSection},
    )
    where: ClassVar[Literal["node", "container"]] = "container"

    def problems(self, conf: EngineConf, port: HostPort | None) -> Iterable[CniError]:
        """See :meth:`.ContainerEngine.problems`."""
        if conf.net_type == "bridge":
            yield from bridge.problems(conf, "container")
        memif = port.port if port is not None else None
        if memif is not None and not isinstance(memif, Memif):
            yield InvalidConfig(
                "container.engine",
                f"'vpp' cannot use a port of iftype {conf.iftype}",
                "VPP has no driver for the application's end of vhost-user: use memif",
            )
        given = next((s for s in conf.sections.values() if isinstance(s, MemifSection)), None)
        if given is None or not isinstance(memif, Memif):
            return
        if given.is_server is not None and given.is_server != (memif.role == "server"):
            yield InvalidConfig(
                "container.memif.role",
                f"expected {memif.role!r}, the opposite of the host's, got {given.role!r}",
                "leave it out",
            )
        if given.mode != memif.mode:
            yield InvalidConfig(
                "container.memif.mode",
                f"expected {memif.mode!r}, as the host has, got {given.mode!r}",
                "write the same mode at both ends",
            )

    def prepare(self, attachment: Attachment, conf: EngineConf, port: HostPort) -> Handoff:
        """See :meth:`.ContainerEngine.prepare`."""
        for problem in self.problems(conf, port):
            raise problem
        name = ""
        if conf.net_type == "bridge":
            name = bridge.section_of(conf, "container")[0].name
        addresses = attachment.wait_for_addresses()
        more = (route for route in port.routes if route not in addresses.routes)
        return Handoff(
            interface=attachment.interface,
            iftype=conf.iftype,
            net_type=conf.net_type,
            mac=port.mac,
            mtu=port.mtu,
            point_to_point=port.point_to_point,
            bridge=name,
            ips=addresses.ips,
            routes=(*addresses.routes, *more),
            dns=addresses.dns,
            port=port.port,
        )

    def add(self, handoff: Handoff) -> None:
        """See :meth:`.ContainerEngine.add`. An earlier interface of that name is replaced."""
        memif, switch = _memif(handoff), _switch()
        _remove(switch, handoff)
        tag = tags.in_container(handoff.interface)
        index = switch.create_memif(
            vpp_socket(memif.socket),
            number=tags.number(tag),
            server=memif.role == "server",
            mode=memif.mode,
            id=memif.id,
            secret=memif.secret,
            ring_size=memif.ring_size,
            buffer_size=memif.buffer_size,
            rx_queues=memif.rx_queues,
            tx_queues=memif.tx_queues,
            zero_copy=memif.zero_copy,
            mac=mac_bytes(handoff.mac) if handoff.mac else bytes(6),
        )
        switch.tag(index, tag)
        _configure(switch, index, handoff)

    def restore(self, handoff: Handoff) -> None:
        """See :meth:`.ContainerEngine.restore`. An existing memif is kept."""
        switch = _switch()
        port = switch.tagged(tags.in_container(handoff.interface))
        if port is not None and _is_memif_of(switch, port, handoff):
            _configure(switch, port.index, handoff)
        else:
            self.add(handoff)

    def check(self, handoff: Handoff) -> None:
        """See :meth:`.ContainerEngine.check`."""
        switch = _switch()
        port = switch.tagged(tags.in_container(handoff.interface))
        if port is None:
            raise CheckFailed(f"the container's VPP has no interface for {handoff.interface}")
        _check_port(port, handoff)
        if not _is_memif_of(switch, port, handoff):
            raise CheckFailed(f"{port.name} in the container is another memif")
        if handoff.net_type == "bridge":
            _, domain = _bridge(handoff)
            there = switch.domain(domain)
            if there is None or port.index not in there.members:
                raise CheckFailed(f"{port.name} in the container is not in bridge {domain}")
        elif handoff.net_type == "interface":
            lost = {_address(handoff, ip.address) for ip in handoff.ips} - switch.addresses(
                port.index
            )
            if lost:
                raise CheckFailed(
                    f"{port.name} in the container has lost {', '.join(map(str, lost))}"
                )
            for dst, _ in _routes(handoff):
                if switch.route_to(dst, 0) != port.index:
                    raise CheckFailed(
                        f"the container's VPP has lost the route {dst} through {port.name}"
                    )

    def delete(self, handoff: Handoff) -> None:
        """See :meth:`.ContainerEngine.delete`."""
        _remove(_switch(), handoff)


def _switch() -> Switch:
    usual = VppSettings()
    return Switch(
        connect(
            os.environ.get(API_SOCKET_VARIABLE, str(usual.api_socket)),
            usual.timeout,
            os.environ.get(API_DIR_VARIABLE, str(usual.api_dir)),
        )
    )


def _memif(handoff: Handoff) -> Memif:
    if not isinstance(handoff.port, Memif):
        raise InvalidConfig("iftype", f"engine 'vpp' supports only memif, got {handoff.iftype!r}")
    return handoff.port


def _is_memif_of(switch: Switch, port: Port, handoff: Handoff) -> bool:
    """Return whether *port* is the memif of *handoff*."""
    memif, found = _memif(handoff), switch.memif(port.index)
    return found is not None and (found.server, found.id) == (memif.role == "server", memif.id)


def _configure(switch: Switch, index: int, handoff: Handoff) -> None:
    """Configure the interface *index* as *handoff* says; it may be partly configured already."""
    switch.set_mtu(index, handoff.mtu or MTU)
    if handoff.net_type == "bridge":
        section, domain = _bridge(handoff)
        bridge.join(switch, index, section, domain)
    elif handoff.net_type == "interface":
        for ip in handoff.ips:
            switch.add_address(index, _address(handoff, ip.address))
    switch.up(index)
    if handoff.net_type == "interface":
        for dst, gateway in _routes(handoff):
            switch.add_route(dst, index, 0, gateway)


def _bridge(handoff: Handoff) -> tuple[BridgeSection, int]:
    section = BridgeSection(bridge_name=handoff.bridge)
    assert section.domain is not None  # noqa: S101  prepare() has checked it
    return section, section.domain


def _address(handoff: Handoff, address: IPInterface) -> IPInterface:
    """Return the address to configure: on a routed port without its network's prefix length.

    A routed port has no neighbour but the gateway.
    """
    if not handoff.point_to_point:
        return address
    return type(address)(address.ip)


def _remove(switch: Switch, handoff: Handoff) -> None:
    """Remove the interface of *handoff*, even if it is not tagged yet, and its routes."""
    tag = tags.in_container(handoff.interface)
    number = tags.number(tag)
    unfinished = f"memif{number}/"
    for port in switch.ports(containing=[tag.encode(), unfinished.encode()]):
        if port.tag == tag or (not port.tag and port.name.startswith(unfinished)):
            # VPP would keep the routes and apply them to the next interface with this index.
            for dst, _ in _routes(handoff):
                if switch.route_to(dst, 0) == port.index:
                    switch.remove_route(dst, port.index, 0)
            switch.remove(port)
    switch.remove_memif_socket(number)


def _routes(handoff: Handoff) -> Iterator[tuple[IPNetwork, IPAddress | None]]:
    """Yield the routes, first those to gateways outside the interface's networks."""
    if handoff.point_to_point:
        for gateway in {ip.gateway for ip in handoff.ips if ip.gateway is not None}:
            yield ip_network(gateway), None
        for ip in handoff.ips:
            if ip.gateway is not None and ip.address.network.num_addresses > 1:
                yield ip.address.network, ip.gateway
    for route in handoff.routes:
        yield route.dst, route.gw or _gateway(handoff, route)


def _gateway(handoff: Handoff, route: Route) -> IPAddress | None:
    """Return the default gateway for a route: that of an address of the same family."""
    gateways = (ip.gateway for ip in handoff.ips if ip.address.version == route.dst.version)
    return next((gateway for gateway in gateways if gateway is not None), None)


def _check_port(port: Port, handoff: Handoff) -> None:
    for what, want, have in (
        ("state", "up", "up" if port.up else "down"),
        ("MAC address", handoff.mac.lower() or port.mac, port.mac),
        ("MTU", handoff.mtu or port.mtu, port.mtu),
    ):
        if want != have:
            raise CheckFailed(
                f"{port.name} in the container has another {what}",
                f"expected {want}, found {have}",
            )
