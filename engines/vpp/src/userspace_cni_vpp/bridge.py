"""Bridge domains: made when the first port comes, removed with the last if they are ours."""

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
    """Yield what is wrong with the section ``bridge`` of one *end*, which netType bridge needs."""
    if conf.section(BridgeSection).domain is None:
        yield InvalidConfig(
            f"{end}.bridge.bridgeName",
            'missing, and netType "bridge" needs it',
            'for example: "bridge": {"bridgeName": "blue"}, or the number of a bridge domain',
        )


def section_of(conf: EngineConf, end: str = "host") -> tuple[BridgeSection, int]:
    """Return the section ``bridge``, and the number of its bridge domain.

    Raises:
        CniError: when it names none.

    """
    section = conf.section(BridgeSection)
    for problem in problems(conf, end):
        raise problem
    assert section.domain is not None  # noqa: S101  that would be a problem
    return section, section.domain


def lock_name(domain: int) -> str:
    """Return the name of the lock that work on a bridge domain takes."""
    return f"bridge {domain}"


def join(switch: Switch, port: int, section: BridgeSection, domain: int) -> None:
    """Make the interface *port* a member of the bridge domain, which is made if it is not there.

    Call it under the lock: having a member keeps the bridge domain from being removed.
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
    """Give the bridge domain an interface of its own (BVI) with *addresses*, under the lock."""
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
    """Put right what somebody changed of a bridge domain of ours, and of its BVI."""
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
    """Return the gateways of the container's addresses *ips*, with the length of their networks."""
    missing = [str(ip.address) for ip in ips if ip.gateway is None]
    if missing or not ips:
        raise InvalidConfig(
            "host.bridge.gateway",
            "needs a gateway from ipam for each address, got "
            + (f"{', '.join(missing)} without one" if missing else "no address"),
        )
    return [ip_interface(f"{ip.gateway}/{ip.address.network.prefixlen}") for ip in ips]


def remove_if_unused(switch: Switch, section: BridgeSection, domain: int) -> None:
    """Remove the bridge domain if it is ours and has no port, under the lock."""
    tag = tags.of_bridge(section.name)
    found = switch.domain(domain)
    if found is None or found.tag != tag or found.members - {found.bvi}:
        return
    if section.gateway or found.bvi is not None:
        bvi = switch.loopback(tag, tags.shared_mac(tag))
        if bvi is not None:
            switch.remove(bvi)
    with suppress(Refused):  # a BVI that is not ours keeps it
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
            f"somebody has switched off in bridge domain {domain}: {', '.join(found.off)}",
            f"mend it with: vppctl set bridge-domain {found.off[0].replace('_', '-')} {domain}",
        )
    if section.gateway:
        _check_gateway(switch, found, attachment, tag, domain)


def _check_gateway(
    switch: Switch, found: Domain, attachment: Attachment, tag: str, domain: int
) -> None:
    """Raise CheckFailed unless the bridge domain *found* has a BVI that answers."""
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
            f"bridge domain {domain}, which the name {section.name!r} stands for, is another's",
            f"it is tagged {found.tag!r}; choose another name, or a number",
        )
