"""Kernel bridges of the ``linux`` engine.

A missing bridge is created, and a bridge that the engine did not create is used but never changed.

Callers of functions that change a bridge or add a port must hold the lock named by
:func:`lock_name`, so that no bridge is removed while another request relies on it.
"""

from __future__ import annotations

import errno
import os
from hashlib import sha256
from ipaddress import IPv6Interface, ip_interface
from typing import TYPE_CHECKING

from userspace_cni.api import CheckFailed, DataplaneError, InvalidConfig
from userspace_cni.kernel import sysctl
from userspace_cni.kernel.addresses import addresses_of, ensure_address
from userspace_cni.kernel.bridges import (
    add_vlans,
    bridge_data,
    filter_vlans,
    has_ports,
    remove_vlan,
    set_port,
    vlan_data,
    vlans_of,
)
from userspace_cni.kernel.netlink import Refused

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import ExitStack

    from userspace_cni.api import IPConfig, IPInterface
    from userspace_cni.kernel.links import Link, Links
    from userspace_cni_linux.sections import BridgeSection

#: The alias of bridges that the engine created and of their VLAN sub-interfaces.
TAG = "userspace-cni/1 bridge"

_DEFAULT_VLAN = 1  # the kernel adds every new port to this VLAN
_DRAFT = "ucb-"
_NAME_LENGTH = 15  # IFNAMSIZ without the NUL


def lock_name(name: str) -> str:
    """Return the name of the lock for the bridge *name*."""
    return f"bridge {name}"


def gateways(ips: tuple[IPConfig, ...], path: str) -> tuple[IPInterface, ...]:
    """Return the gateways of *ips*, each with the prefix length of its subnet.

    Raises:
        InvalidConfig: for the key *path*, which needs a gateway, if IPAM returned none.

    """
    found = tuple(
        ip_interface((ip.gateway, ip.address.network.prefixlen))
        for ip in ips
        if ip.gateway is not None
    )
    if not found:
        raise InvalidConfig(
            path,
            "needs a gateway address from ipam, which told none",
            'set "gateway" in the ipam section, or turn this off',
        )
    return found


def ensure(
    links: Links, section: BridgeSection, undo: ExitStack, remove: Callable[[str], None]
) -> Link:
    """Return the bridge, ready for a port of *section*; create it if it is missing.

    Args:
        links: a socket in the host's namespace.
        section: the network's bridge configuration.
        undo: receives the step ``remove(name)`` if the bridge is created.
        remove: removes a bridge that the engine created and that has no ports; takes the lock.

    Raises:
        DataplaneError: if the bridge is missing or unsuitable and may not be created or changed.

    """
    name = section.bridge_name
    link = links.find(name)
    if link is None and section.create:
        _create(links, section)
        undo.callback(remove, name)
        link = links.find(name)
    link = _usable(link, section)
    if is_ours(link):
        if not link.up:
            links.change(link, up=True)
        if _filters(section) and not link.vlan_filtering:
            _filter(links, link)
        if section.promiscuous and not link.promiscuous:
            links.change(link, promiscuous=True)
    return link


def require(links: Links, section: BridgeSection) -> Link:
    """Return the bridge, which must exist and meet the requirements of *section*.

    Raises:
        DataplaneError: if it does not; the error names the command that fixes it.

    """
    return _usable(links.find(section.bridge_name), section)


def provide_gateways(
    links: Links, link: Link, section: BridgeSection, addresses: tuple[IPInterface, ...]
) -> None:
    """Add the gateway *addresses* to a bridge of the engine or to its VLAN sub-interface."""
    holder = link if section.vlan_id is None else _sub_interface(links, link, section.vlan_id)
    for address in addresses:
        if address.version == 6:
            sysctl.enable_ipv6(holder.name)
        added = ensure_address(links, holder, address)
        if added and address.version == 6:
            # The kernel generates the link-local address a second after the first port is added,
            # and cannot forward to any neighbour before.
            ensure_address(links, holder, _link_local(holder.mac))


def require_gateways(
    links: Links, bridge: Link, section: BridgeSection, addresses: tuple[IPInterface, ...]
) -> None:
    """Raise DataplaneError unless the host has every gateway address on the right interface.

    That is the interface to which :func:`provide_gateways` adds them. The error names the command
    that fixes the problem.
    """
    holder: Link | None = bridge
    name = bridge.name
    if section.vlan_id is not None:
        holder = next(
            (
                link
                for link in links.all()
                if link.parent == bridge.index and link.vlan_id == section.vlan_id
            ),
            None,
        )
        name = holder.name if holder else _sub_interface_name(bridge.name, section.vlan_id)
    if holder is None:
        raise DataplaneError(
            f"the bridge {bridge.name} has no sub-interface for VLAN {section.vlan_id}, which the "
            "gateway needs",
            f"make it with: ip link add link {bridge.name} name {name} up type vlan id "
            f"{section.vlan_id} && bridge vlan add dev {bridge.name} vid {section.vlan_id} self",
        )
    if holder is not bridge:
        _require_traffic(bridge, holder)
    found = addresses_of(links, holder)
    for address in addresses:
        if str(address) not in found:
            raise DataplaneError(
                f"the bridge's interface {name} does not have the gateway address {address}",
                f"it has {', '.join(sorted(found)) or 'none'}; mend it with: "
                f"ip address add {address} dev {name}",
            )


def _require_traffic(bridge: Link, sub_interface: Link) -> None:
    """Raise DataplaneError unless the VLAN's traffic reaches *sub_interface*."""
    vlan = sub_interface.vlan_id
    if not sub_interface.up:
        raise DataplaneError(
            f"the bridge's interface {sub_interface.name} is down",
            f"mend it with: ip link set {sub_interface.name} up",
        )
    _, tagged = vlans_of(bridge)
    if vlan not in tagged:
        raise DataplaneError(
            f"the bridge {bridge.name} is not itself in VLAN {vlan}, which the gateway needs",
            f"mend it with: bridge vlan add dev {bridge.name} vid {vlan} self",
        )


def check_gateways(
    links: Links, link: Link, section: BridgeSection, addresses: tuple[IPInterface, ...]
) -> None:
    """Raise CheckFailed if :func:`require_gateways` finds a problem."""
    try:
        require_gateways(links, link, section, addresses)
    except DataplaneError as error:
        raise CheckFailed(error.msg, error.details) from error


def configure_port(links: Links, name: str, section: BridgeSection) -> None:
    """Apply the VLANs and port options of *section* to a new port, which must still be down."""
    sysctl.no_link_local_address(name)
    if not (_filters(section) or section.hairpin or section.isolated):
        return
    port = links.require(name)
    if _filters(section):
        if section.vlan_id is not None:
            add_vlans(links, port, range(section.vlan_id, section.vlan_id + 1), own=True)
        if section.vlan_id != _DEFAULT_VLAN and _DEFAULT_VLAN not in _trunk(section):
            remove_vlan(links, port, _DEFAULT_VLAN)
        for trunk in section.trunk:
            for vlans in _without(trunk.vlans, section.vlan_id):
                add_vlans(links, port, vlans)
    if section.hairpin or section.isolated:
        set_port(links, port, hairpin=section.hairpin, isolated=section.isolated)


def check_port(port: Link, section: BridgeSection) -> None:
    """Raise CheckFailed unless *port* is configured as :func:`configure_port` does it."""
    for what, wanted, found in (
        ("hairpin", section.hairpin, port.hairpin),
        ("isolated", section.isolated, port.isolated),
    ):
        if wanted and not found:
            raise CheckFailed(f"the bridge port {port.name} is not set to {what}")
    if not _filters(section):
        return
    own, tagged = vlans_of(port)
    if section.vlan_id is not None and own != section.vlan_id:
        raise CheckFailed(
            f"the bridge port {port.name} is in another VLAN",
            f"expected untagged traffic in VLAN {section.vlan_id}, found VLAN {own or 'none'}",
        )
    missing = _trunk(section) - tagged - {own}
    if missing:
        raise CheckFailed(
            f"the bridge port {port.name} lacks VLANs of its trunk",
            f"missing: {', '.join(map(str, sorted(missing)))}",
        )


def remove_if_unused(links: Links, name: str) -> None:
    """Remove the bridge *name* if the engine created it and nothing uses it any more.

    A bridge is in use if it has a port, or an interface on top of it that the engine did not
    create. The caller holds the lock, because otherwise the bridge could get a port meanwhile.
    """
    # The draft name belongs to a bridge whose request died before it could rename it.
    for candidate in (name, _draft_name(name)):
        link = links.find(candidate)
        if link is None or link.kind != "bridge" or not is_ours(link) or has_ports(link):
            continue
        # Removing the bridge also removes the interfaces on top of it.
        upon = [other for other in links.all() if other.parent == link.index]
        if all(is_ours(other) or _unfinished(other, link) for other in upon):
            links.remove(link)


def is_ours(link: Link) -> bool:
    """Return whether the engine created the bridge or sub-interface *link*."""
    return link.alias == TAG or link.name.startswith(_DRAFT)


def _draft_name(name: str) -> str:
    """Return the temporary name of the bridge *name*, used until it is tagged."""
    return f"{_DRAFT}{sha256(name.encode()).hexdigest()[:11]}"


def _unfinished(link: Link, bridge: Link) -> bool:
    """Return whether *link* is our sub-interface and its request died before it was tagged."""
    name = _sub_interface_name(bridge.name, link.vlan_id)
    return not link.up and not link.alias and link.name == name


def _filters(section: BridgeSection) -> bool:
    return section.vlan_id is not None or bool(section.trunk)


def _trunk(section: BridgeSection) -> set[int]:
    return {vlan for trunk in section.trunk for vlan in trunk.vlans}


def _without(vlans: range, hole: int | None) -> list[range]:
    """Return *vlans* without *hole*: a VLAN cannot be both tagged and untagged on a port."""
    if hole is None or hole not in vlans:
        return [vlans]
    return [part for part in (range(vlans.start, hole), range(hole + 1, vlans.stop)) if part]


def _create(links: Links, section: BridgeSection) -> None:
    name = section.bridge_name
    draft = _draft_name(name)
    remove_if_unused(links, name)  # a draft left by a request that died during the next steps
    try:
        # Without an explicit MAC address a bridge uses the lowest of its ports' addresses, which
        # changes as ports come and go. The address is random because nodes may share a segment.
        links.create(draft, "bridge", bridge_data(), address=_random_mac())
        link = links.require(draft)
        sysctl.ignore_router_advertisements(draft)
        sysctl.trust_own_addresses(draft)
        if _filters(section):
            _filter(links, link)
        # Tag first, rename second, so that a bridge of the final name always has a tag.
        links.change(link, ifalias=TAG)
        links.change(link, ifname=name, up=True)
    except BaseException as error:
        remove_if_unused(links, name)
        # EEXIST: a program that does not use our lock created the bridge first. It is not ours.
        if not (isinstance(error, Refused) and error.errno == errno.EEXIST):
            raise


def _filter(links: Links, link: Link) -> None:
    try:
        filter_vlans(links, link)
    except Refused as error:
        if error.errno == errno.EOPNOTSUPP:
            raise DataplaneError(
                f"the bridge {link.name} cannot filter VLANs: this kernel was built without it",
                "use a kernel with CONFIG_BRIDGE_VLAN_FILTERING, or remove vlanId and trunk from "
                "host.bridge",
            ) from error
        raise


def _usable(link: Link | None, section: BridgeSection) -> Link:
    name = section.bridge_name
    if link is None:
        raise DataplaneError(
            f"the bridge {name} does not exist, and host.bridge.create is false",
            f"make it with: ip link add {name} up type bridge",
        )
    if link.kind != "bridge":
        raise DataplaneError(
            f"host.bridge.bridgeName: {name} is not a bridge, but "
            f"{f'of kind {link.kind}' if link.kind else 'a network device'}",
            "choose another bridgeName, or remove that interface",
        )
    if not is_ours(link):
        for wrong, problem, command in (
            (not link.up, "is down", f"ip link set {name} up"),
            (
                _filters(section) and not link.vlan_filtering,
                "does not filter VLANs, which vlanId and trunk need",
                f"ip link set {name} type bridge vlan_filtering 1",
            ),
            (
                section.promiscuous and not link.promiscuous,
                "is not promiscuous",
                f"ip link set {name} promisc on",
            ),
        ):
            if wrong:
                raise DataplaneError(
                    f"the bridge {name} {problem}",
                    f"it is not ours to change; mend it with: {command}",
                )
    return link


def _sub_interface_name(bridge: str, vlan: int) -> str:
    name = f"{bridge}.{vlan}"
    if len(name.encode()) <= _NAME_LENGTH:
        return name
    return f"ucv{sha256(bridge.encode()).hexdigest()[:7]}.{vlan}"


def _sub_interface(links: Links, bridge: Link, vlan: int) -> Link:
    """Return the VLAN sub-interface of the engine's *bridge*; create it if it is missing."""
    name = _sub_interface_name(bridge.name, vlan)
    link = links.find(name)
    add_vlans(links, bridge, range(vlan, vlan + 1), itself=True)
    if link is None:
        links.create(name, "vlan", vlan_data(vlan), link=bridge.index)
        link = links.require(name)
    if _unfinished(link, bridge):
        sysctl.ignore_router_advertisements(name)
        sysctl.trust_own_addresses(name)
        links.change(link, ifalias=TAG, up=True)
    elif (link.kind, link.parent, link.vlan_id) != ("vlan", bridge.index, vlan):
        raise DataplaneError(
            f"the interface name {name}, wanted for VLAN {vlan} of the bridge {bridge.name}, is "
            "taken on the host by something else",
            f"see ip -d link show {name}, and remove or rename it",
        )
    elif not link.up and is_ours(link):
        links.change(link, up=True)
    return link


def _link_local(mac: str) -> IPInterface:
    """Return the link-local address that the kernel derives from *mac* (RFC 4291, appendix A)."""
    octets = bytes.fromhex(mac.replace(":", ""))
    identifier = bytes((octets[0] ^ 0x02, *octets[1:3], 0xFF, 0xFE, *octets[3:]))
    return IPv6Interface((b"\xfe\x80" + bytes(6) + identifier, 64))


def _random_mac() -> str:
    # 02: a locally administered unicast address (IEEE 802c)
    return ":".join(f"{byte:02x}" for byte in (0x02, *os.urandom(5)))
