"""Kernel bridges: made where they are missing, used as they are where they are not ours.

Every function here that changes a bridge, or adds a port to one, is called under the lock that
:func:`lock_name` names, so that none is removed while another request relies on it.
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

    from userspace_cni.api import Attachment, IPInterface
    from userspace_cni.kernel.links import Link, Links
    from userspace_cni_linux.sections import BridgeSection

#: The alias of a bridge that we made, and of our VLAN sub-interfaces of it: no attachment's.
TAG = "userspace-cni/1 bridge"

_DEFAULT_VLAN = 1  # what the kernel puts a port into
_DRAFT = "ucb-"
_NAME_LENGTH = 15  # IFNAMSIZ without the NUL


def lock_name(name: str) -> str:
    """Return the name of the node's lock on the bridge *name*."""
    return f"bridge {name}"


def gateways(attachment: Attachment, path: str) -> tuple[IPInterface, ...]:
    """Return the gateway addresses that IPAM told, each with its subnet's prefix length.

    Raises:
        InvalidConfig: for the key *path* that needs one, when IPAM told none.

    """
    found = tuple(
        ip_interface((ip.gateway, ip.address.network.prefixlen))
        for ip in attachment.ips
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
    """Return the bridge, made if need be, ready for a port of *section*.

    Args:
        links: in the host's namespace.
        section: what the network asks of the bridge.
        undo: gets ``remove(name)`` if the bridge is made.
        remove: removes a bridge of ours without ports, and takes the lock itself.

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
    """Return the bridge, which must exist and do what *section* asks.

    Raises:
        DataplaneError: when it does not; says which command would mend it.

    """
    return _usable(links.find(section.bridge_name), section)


def provide_gateways(
    links: Links, link: Link, section: BridgeSection, addresses: tuple[IPInterface, ...]
) -> None:
    """Give our bridge, or its VLAN sub-interface, the gateways' *addresses*."""
    holder = link if section.vlan_id is None else _sub_interface(links, link, section.vlan_id)
    for address in addresses:
        if address.version == 6:
            sysctl.enable_ipv6(holder.name)
        added = ensure_address(links, holder, address)
        if added and address.version == 6:
            # The kernel would make it a second after the first port came, and forwards to no
            # neighbour before.
            ensure_address(links, holder, _link_local(holder.mac))


def require_gateways(
    links: Links, bridge: Link, section: BridgeSection, addresses: tuple[IPInterface, ...]
) -> None:
    """Raise DataplaneError unless every gateway address is where :func:`provide_gateways` puts it.

    The error says which command would mend it.
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
                f"the bridge's interface {name} has not the gateway address {address}",
                f"it has {', '.join(sorted(found)) or 'none'}; mend it with: "
                f"ip address add {address} dev {name}",
            )


def _require_traffic(bridge: Link, sub_interface: Link) -> None:
    """Raise DataplaneError unless what is in the VLAN reaches *sub_interface*."""
    vlan = sub_interface.vlan_id
    if not sub_interface.up:
        raise DataplaneError(
            f"the bridge's interface {sub_interface.name} is down",
            f"mend it with: ip link set {sub_interface.name} up",
        )
    _, tagged = vlans_of(bridge)
    if vlan not in tagged:
        raise DataplaneError(
            f"the bridge {bridge.name} is not in VLAN {vlan} itself, which the gateway needs",
            f"mend it with: bridge vlan add dev {bridge.name} vid {vlan} self",
        )


def check_gateways(
    links: Links, link: Link, section: BridgeSection, addresses: tuple[IPInterface, ...]
) -> None:
    """Raise CheckFailed unless every gateway address is where :func:`provide_gateways` put it."""
    try:
        require_gateways(links, link, section, addresses)
    except DataplaneError as error:
        raise CheckFailed(error.msg, error.details) from error


def configure_port(links: Links, name: str, section: BridgeSection) -> None:
    """Put a new port, still down, into its VLANs, and set what *section* asks of a port."""
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
    """Raise CheckFailed unless *port* is as :func:`configure_port` left it."""
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
    """Remove the bridge *name* if it is ours, has no port, and bears nothing of anybody else's.

    Holding the lock: else it could get a port meanwhile.
    """
    # Also one that never got its name, because the request that made it died.
    for candidate in (name, _draft_name(name)):
        link = links.find(candidate)
        if link is None or link.kind != "bridge" or not is_ours(link) or has_ports(link):
            continue
        # It would take the interfaces upon it along.
        upon = [other for other in links.all() if other.parent == link.index]
        if all(is_ours(other) or _unfinished(other, link) for other in upon):
            links.remove(link)


def is_ours(link: Link) -> bool:
    """Tell whether *link* is a bridge that we made."""
    return link.alias == TAG or link.name.startswith(_DRAFT)


def _draft_name(name: str) -> str:
    """Return what the bridge *name* is called until it is tagged."""
    return f"{_DRAFT}{sha256(name.encode()).hexdigest()[:11]}"


def _unfinished(link: Link, bridge: Link) -> bool:
    """Tell whether *link* is a sub-interface of ours whose request died before it was tagged."""
    name = _sub_interface_name(bridge.name, link.vlan_id)
    return not link.up and not link.alias and link.name == name


def _filters(section: BridgeSection) -> bool:
    return section.vlan_id is not None or bool(section.trunk)


def _trunk(section: BridgeSection) -> set[int]:
    return {vlan for trunk in section.trunk for vlan in trunk.vlans}


def _without(vlans: range, hole: int | None) -> list[range]:
    """Return *vlans* less *hole*: a VLAN cannot be both tagged and untagged on one port."""
    if hole is None or hole not in vlans:
        return [vlans]
    return [part for part in (range(vlans.start, hole), range(hole + 1, vlans.stop)) if part]


def _create(links: Links, section: BridgeSection) -> None:
    name = section.bridge_name
    draft = _draft_name(name)
    remove_if_unused(links, name)  # of a request that died between the next steps
    try:
        # With a MAC address of its own it keeps it; else it would take its lowest port's, and
        # change it as ports come and go. By chance, because two nodes may share a segment.
        links.create(draft, "bridge", bridge_data(), address=_random_mac())
        link = links.require(draft)
        sysctl.ignore_router_advertisements(draft)
        sysctl.trust_own_addresses(draft)
        if _filters(section):
            _filter(links, link)
        # Tagged before it has its name: no bridge of that name is ever left without a tag.
        links.change(link, ifalias=TAG)
        links.change(link, ifname=name, up=True)
    except BaseException as error:
        remove_if_unused(links, name)
        # EEXIST: somebody outside of the lock was faster, and it is theirs.
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
            f"host.bridge.bridgeName: {name} is no bridge, but "
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
    """Return the VLAN sub-interface of our *bridge*, made if need be."""
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
    """Return the link-local address that the kernel makes of *mac* (RFC 4291, appendix A)."""
    octets = bytes.fromhex(mac.replace(":", ""))
    identifier = bytes((octets[0] ^ 0x02, *octets[1:3], 0xFF, 0xFE, *octets[3:]))
    return IPv6Interface((b"\xfe\x80" + bytes(6) + identifier, 64))


def _random_mac() -> str:
    # 02: locally administered, unicast (IEEE 802c).
    return ":".join(f"{byte:02x}" for byte in (0x02, *os.urandom(5)))
