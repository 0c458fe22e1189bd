"""Host's end of a routed port: the container's gateway and only neighbour."""

from __future__ import annotations

from ipaddress import ip_interface, ip_network
from typing import TYPE_CHECKING

from userspace_cni.api import CheckFailed, DataplaneError, InvalidConfig
from userspace_cni_vpp import tags
from userspace_cni_vpp.switch import mac_bytes

if TYPE_CHECKING:
    from userspace_cni.api import IPConfig, IPInterface
    from userspace_cni_vpp.sections import InterfaceSection
    from userspace_cni_vpp.switch import Port, Switch

#: Lock for all routed ports, because they share loopbacks and tables.
LOCK = "routes"
_VERSIONS = (4, 6)


def require_gateways(ips: tuple[IPConfig, ...], section: InterfaceSection) -> None:
    """Raise InvalidConfig unless there is an address for the host's end."""
    if section.addresses:
        return
    lacking = [str(ip.address) for ip in ips if ip.gateway is None]
    if lacking or not ips:
        raise InvalidConfig(
            "host.netType",
            '"interface" needs a gateway from ipam for each address, got '
            + (f"{', '.join(lacking)} without one" if lacking else "no address"),
            'set "gateway" in the ipam section, or "addresses" in host.interface, or use netType '
            '"bridge" or "none"',
        )


def configure(
    switch: Switch,
    port: int,
    ips: tuple[IPConfig, ...],
    section: InterfaceSection,
    mac: str,
) -> None:
    """Configure the host's end's addresses and the routes to the container.

    The caller holds the lock.

    Args:
        switch: the VPP instance.
        port: index of the host's end.
        ips: the container's addresses.
        section: the network's section ``interface``.
        mac: the container's MAC address; empty if the port has none.

    Raises:
        DataplaneError: if VPP already routes one of the addresses to another interface.

    """
    for version in _versions(ips, section) if section.vrf else ():
        switch.create_table(section.vrf, version, tags.of_table())
        switch.set_table(port, section.vrf, version)
    if section.addresses:
        for text in section.addresses:
            switch.add_address(port, ip_interface(text))
    else:
        lender = _gateway(switch, _gateways(ips), section.vrf)
        switch.borrow_addresses(port, lender)
    if any(ip.address.version == 6 for ip in ips):
        switch.enable_ipv6(port)
    for ip in ips:
        dst = ip_network(ip.address.ip)
        there = switch.route_to(dst, section.vrf)
        if there is not None and there != port and _is_used(switch, there):
            raise DataplaneError(
                f"VPP already routes {dst}, the container's address, to another interface",
                "another container may have this address: see "
                f"vppctl show ip{'6' if dst.version == 6 else ''} fib {dst}",
            )
        if mac:
            # We chose the MAC address, so VPP need not resolve it.
            switch.add_neighbour(port, ip.address.ip, mac_bytes(mac))
        switch.add_route(dst, port, section.vrf)


def clean_up(switch: Switch, port: Port) -> None:
    """Remove the routes of :func:`configure`, which VPP would keep when the interface is removed.

    The caller holds the lock.
    """
    for version in _VERSIONS:
        switch.remove_routes(port.index, switch.table_of(port.index, version), version)


def remove_unused(switch: Switch, vrf: int) -> None:
    """Remove the engine's unused loopbacks, and its table *vrf* if that is empty.

    The caller holds the lock. A loopback that was not tagged because the connection broke is
    recognized by its MAC address.
    """
    tag, mac = tags.GATEWAY, tags.GATEWAY_MAC
    candidates = [
        port
        for port in switch.ports(containing=[tag.encode(), mac], name="loop")
        if port.tag.startswith(tag) or (not port.tag and port.mac.startswith(mac.hex(":")))
    ]
    lenders = set(switch.borrowers().values()) if candidates else ()
    for port in candidates:
        if port.index not in lenders:
            switch.remove(port)
    if vrf:
        for (number, version), name in switch.tables().items():
            empty = name == tags.of_table() and not switch.is_routed(vrf, version)
            if number == vrf and empty:
                switch.remove_table(vrf, version)


def check(switch: Switch, port: Port, ips: tuple[IPConfig, ...], section: InterfaceSection) -> None:
    """Raise CheckFailed unless *port* is configured as :func:`configure` does it."""
    for version in _versions(ips, section):
        table = switch.table_of(port.index, version)
        if table != section.vrf:
            raise CheckFailed(
                f"the interface {port.name} is in another table",
                f"expected {section.vrf}, found {table} (IPv{version})",
            )
    if section.addresses:
        wanted, lender = {ip_interface(text) for text in section.addresses}, port.index
    else:
        wanted = _gateways(ips)
        lender = switch.borrowers().get(port.index, port.index)
    lending = switch.find(lender)
    if lending is not None and not lending.up:
        raise CheckFailed(
            f"{lending.name}, which has the gateway of {port.name}, is down",
            f"set it up with: vppctl set interface state {lending.name} up",
        )
    lost = wanted - switch.addresses(lender)
    if lost:
        raise CheckFailed(
            f"the interface {port.name} has lost the address {', '.join(map(str, lost))}"
        )
    for ip in ips:
        dst = ip_network(ip.address.ip)
        if switch.route_to(dst, section.vrf) != port.index:
            raise CheckFailed(f"VPP has lost the route to {dst} through {port.name}")


def _gateway(switch: Switch, addresses: set[IPInterface], vrf: int) -> int:
    """Return the loopback with *addresses* in table *vrf*; create it if it is missing."""
    tag = tags.of_gateway(vrf, [str(address) for address in addresses])
    mac = tags.shared_mac(tag)
    found = switch.loopback(tag, mac)
    index = found.index if found else switch.create_loopback(mac)
    if found is None or not found.tag:
        switch.tag(index, tag)
    if found is None or not found.up:
        for version in sorted({a.version for a in addresses}) if vrf else ():
            # VPP refuses this if the interface has an address, even if the table is the same.
            if switch.table_of(index, version) != vrf:
                switch.set_table(index, vrf, version)
    for address in sorted(addresses, key=str):
        switch.add_address(index, address)
    if found is None or not found.up:
        switch.up(index)
    return index


def _is_used(switch: Switch, index: int) -> bool:
    """Return whether routes through interface *index* are in use.

    VPP keeps the routes of an interface that was removed by hand, even when another interface gets
    its index.
    """
    found = switch.find(index)
    return found is not None and not found.tag.startswith(tags.GATEWAY)


def _gateways(ips: tuple[IPConfig, ...]) -> set[IPInterface]:
    # Full-length prefixes, because the container's network is reachable only through its own port.
    return {ip_interface(ip.gateway) for ip in ips if ip.gateway is not None}


def _versions(ips: tuple[IPConfig, ...], section: InterfaceSection) -> list[int]:
    own = [ip_interface(text).version for text in section.addresses]
    return sorted({*own, *(ip.address.version for ip in ips)})
