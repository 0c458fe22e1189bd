"""Bridge domains, created with their first port and removed with their last.

Bridge domains that the engine did not create are used but never removed.
"""

from __future__ import annotations

from contextlib import suppress
from ipaddress import ip_interface
from typing import TYPE_CHECKING

from userspace_cni.api import CheckFailed, DataplaneError, InvalidConfig
from userspace_cni_vpp import tags
from userspace_cni_vpp.connection import Refused
from userspace_cni_vpp.sections import BridgeSection

if TYPE_CHECKING:
    from collections.abc import Iterable

    from userspace_cni.api import Attachment, CniError, EngineConf, IPConfig, IPInterface
    from userspace_cni_vpp.switch import Domain, Port, Switch


def problems(conf: EngineConf, end: str) -> Iterable[CniError]:
    """Yield the problems of the section ``bridge`` of one *end*: ``host`` or ``container``."""
    if conf.section(BridgeSection).domain is None:
        yield InvalidConfig(
            f"{end}.bridge.bridgeName",
            'missing, and netType "bridge" needs it',
            'for example: "bridge": {"bridgeName": "blue"}, or the number of a bridge domain',
        )


def section_of(conf: EngineConf, end: str = "host") -> tuple[BridgeSection, int]:
    """Return the section ``bridge`` and the number of its bridge domain.

    Raises:
        CniError: if the section does not name a bridge domain.

    """
    section = conf.section(BridgeSection)
    for problem in problems(conf, end):
        raise problem
    assert section.domain is not None  # noqa: S101  problems() has checked it
    return section, section.domain


def lock_name(domain: int) -> str:
    """Return the name of the lock for a bridge domain."""
    return f"bridge {domain}"


def join(switch: Switch, port: int, section: BridgeSection, domain: int) -> None:
    """Add the interface *port* to the bridge domain; create the bridge domain if it is missing.

    The caller holds the lock. Once it has a member, the bridge domain is not removed.

    Raises:
        DataplaneError: if the name stands for a bridge domain that belongs to another bridge.

    """
    if not switch.create_domain(domain, tags.of_bridge(section.name)) and not (
        section.bridge_id == domain or section.bridge_name.isdecimal()
    ):
        _require_name(switch.domain(domain), section, domain)
    switch.join(port, domain)
    if section.vlan_id is not None:
        switch.set_vlan(port, section.vlan_id)


def provide_gateways(
    switch: Switch, section: BridgeSection, domain: int, addresses: list[IPInterface]
) -> None:
    """Give the bridge domain a BVI with the gateway *addresses*. The caller holds the lock."""
    tag = tags.of_bridge(section.name)
    found = switch.domain(domain)
    bvi = found.bvi if found else None
    if bvi is None:
        left = switch.loopback(tag, tags.shared_mac(tag))
        bvi = left.index if left else switch.create_loopback(tags.shared_mac(tag))
        switch.tag(bvi, tag)
        switch.join(bvi, domain, bvi=True)
    for address in addresses:
        switch.add_address(bvi, address)
    switch.up(bvi)


def mend(switch: Switch, section: BridgeSection, domain: int) -> None:
    """Undo foreign changes to a bridge domain that the engine created, and to its BVI."""
    tag = tags.of_bridge(section.name)
    found = switch.domain(domain)
    if found is None or found.tag != tag:
        return
    if found.off:
        switch.set_forwarding(domain)
    bvi = switch.find(found.bvi) if found.bvi is not None else None
    if bvi is not None and bvi.tag == tag and bvi.mac != tags.shared_mac(tag).hex(":"):
        switch.set_mac(bvi.index, tags.shared_mac(tag))


def gateways(ips: tuple[IPConfig, ...]) -> list[IPInterface]:
    """Return the gateways of the container's addresses *ips*, with their prefix lengths.

    Raises:
        InvalidConfig: if an address has no gateway, or there is no address.

    """
    missing = [str(ip.address) for ip in ips if ip.gateway is None]
    if missing or not ips:
        raise InvalidConfig(
            "host.bridge.gateway",
            "needs a gateway from ipam for each address, got "
            + (f"{', '.join(missing)} without one" if missing else "no address"),
        )
    return [ip_interface(f"{ip.gateway}/{ip.address.network.prefixlen}") for ip in ips]


def remove_if_unused(switch: Switch, section: BridgeSection, domain: int) -> None:
    """Remove the bridge domain if the engine created it and it has no port.

    The caller holds the lock.
    """
    tag = tags.of_bridge(section.name)
    found = switch.domain(domain)
    if found is None or found.tag != tag or found.members - {found.bvi}:
        return
    if section.gateway or found.bvi is not None:
        bvi = switch.loopback(tag, tags.shared_mac(tag))
        if bvi is not None:
            switch.remove(bvi)
    with suppress(Refused):  # refused while a BVI remains that is not ours
        switch.remove_domain(domain)


def check(
    switch: Switch, port: Port, attachment: Attachment, section: BridgeSection, domain: int
) -> None:
    """Raise CheckFailed unless *port* is in its bridge domain, with its VLAN and gateways."""
    found = switch.domain(domain)
    if found is None or port.index not in found.members:
        raise CheckFailed(
            f"the interface {port.name} is not in bridge domain {domain}",
            f"mend it with: vppctl set interface l2 bridge {port.name} {domain}",
        )
    if port.vlan != section.vlan_id:
        raise CheckFailed(
            f"the interface {port.name} has another VLAN",
            f"expected {section.vlan_id}, found {port.vlan}",
        )
    if section.vlan_id is not None and not switch.filters_vlan(port.name):
        raise CheckFailed(
            f"the interface {port.name} has lost the filter of its VLAN {section.vlan_id}",
            "frames of other VLANs reach the container",
        )
    tag = tags.of_bridge(section.name)
    if found.tag == tag and found.off:
        raise CheckFailed(
            f"bridge domain {domain} has these features switched off: {', '.join(found.off)}",
            f"mend it with: vppctl set bridge-domain {found.off[0].replace('_', '-')} {domain}",
        )
    if section.gateway:
        _check_gateway(switch, found, attachment, tag, domain)


def _check_gateway(
    switch: Switch, found: Domain, attachment: Attachment, tag: str, domain: int
) -> None:
    """Raise CheckFailed unless the bridge domain *found* has a working BVI."""
    bvi = switch.find(found.bvi) if found.bvi is not None else None
    there = switch.addresses(bvi.index) if bvi is not None else set()
    lost = [
        str(address)
        for address in gateways(attachment.wait_for_addresses().ips)
        if address not in there
    ]
    if lost or bvi is None:
        raise CheckFailed(f"bridge domain {domain} has lost the gateway {', '.join(lost)}")
    if not bvi.up:
        raise CheckFailed(
            f"{bvi.name}, which has the gateways of bridge domain {domain}, is down",
            f"set it up with: vppctl set interface state {bvi.name} up",
        )
    mac = tags.shared_mac(tag).hex(":")
    if bvi.tag == tag and bvi.mac != mac:
        raise CheckFailed(
            f"{bvi.name}, the gateway of bridge domain {domain}, has another MAC address",
            f"expected {mac}, found {bvi.mac}",
        )


def _require_name(found: Domain | None, section: BridgeSection, domain: int) -> None:
    tag = tags.of_bridge(section.name)
    if found is not None and found.tag not in (tag, section.name):
        raise DataplaneError(
            f"bridge domain {domain}, which the name {section.name!r} stands for, belongs to "
            "another bridge",
            f"its tag is {found.tag!r}; choose another name, or a number",
        )
