"""Kernel bridges, their ports and VLANs: <linux/if_bridge.h>.

Functions that send a request raise :class:`.Refused` when the kernel refuses it.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import socket
import struct
import sys
from typing import TYPE_CHECKING

from userspace_cni.cni.errors import DataplaneError
from userspace_cni.kernel.links import DELLINK, HEADER, NEWLINK, SETLINK, info, link_body
from userspace_cni.kernel.netlink import Refused, attribute
from userspace_cni.kernel.pyroute import iproute

if TYPE_CHECKING:
    from userspace_cni.kernel.links import Link, Links

_AF_BRIDGE = 7
_BR_STP_STATE, _BR_VLAN_FILTERING, _VLAN_ID = 5, 7, 1  # IFLA_, in IFLA_INFO_DATA
_BRPORT_MODE, _BRPORT_ISOLATED = 4, 33  # IFLA_
_PROTINFO, _AF_SPEC = 12, 26  # IFLA_
_NESTED = 0x8000  # NLA_F_NESTED
_BRIDGE_FLAGS, _BRIDGE_VLAN_INFO = 0, 2  # IFLA_, in IFLA_AF_SPEC
_SELF = 0x2  # BRIDGE_FLAGS_SELF
_PVID, _UNTAGGED, _RANGE_BEGIN, _RANGE_END = 0x2, 0x4, 0x8, 0x10  # BRIDGE_VLAN_INFO_
_VLAN_INFO = struct.Struct("=HH")  # struct bridge_vlan_info: flags, VLAN
_SIOCDEVPRIVATE = 0x89F0
_BRCTL_GET_PORT_LIST = 7
_BR_MAX_PORTS = 1024  # net/bridge/br_private.h


def bridge_data(*, vlan_filtering: bool = False) -> bytes:
    """Encode the settings of a bridge: spanning tree disabled, VLAN filtering on request."""
    data = attribute(_BR_STP_STATE, 0)
    return data + attribute(_BR_VLAN_FILTERING, b"\1") if vlan_filtering else data


def vlan_data(vlan: int) -> bytes:
    """Encode the settings of a VLAN sub-interface for the VLAN ID *vlan*."""
    return attribute(_VLAN_ID, vlan.to_bytes(2, sys.byteorder))


def filter_vlans(links: Links, bridge: Link) -> None:
    """Enable VLAN filtering on *bridge*."""
    body = link_body(bridge.index) + info("bridge", bridge_data(vlan_filtering=True))
    links.request(f"change vlan_filtering of the interface {bridge.name}", NEWLINK, body)


def set_port(links: Links, port: Link, *, hairpin: bool = False, isolated: bool = False) -> None:
    """Enable hairpin mode or isolation on the bridge port *port*; never disable either."""
    asked = ((_BRPORT_MODE, hairpin), (_BRPORT_ISOLATED, isolated))
    settings = b"".join(attribute(kind, b"\1") for kind, wanted in asked if wanted)
    body = HEADER.pack(_AF_BRIDGE, port.index, 0, 0) + attribute(_PROTINFO | _NESTED, settings)
    links.request(f"set the bridge port {port.name} to hairpin or isolated", SETLINK, body)


def add_vlans(
    links: Links, link: Link, vlans: range, *, own: bool = False, itself: bool = False
) -> None:
    """Make *link* a member of *vlans*.

    Args:
        links: a socket in the bridge's namespace.
        link: a bridge port or, with *itself*, a bridge.
        vlans: contiguous VLAN IDs.
        own: untagged frames belong to the VLAN and leave untagged; only with a single VLAN.
        itself: change the bridge's own port, which the host uses.

    """
    if len(vlans) > 1:
        infos = [(vlans[0], _RANGE_BEGIN), (vlans[-1], _RANGE_END)]
    else:
        infos = [(vlans[0], _PVID | _UNTAGGED if own else 0)]
    action = f"put {link.name} into the VLANs {vlans[0]} to {vlans[-1]}"
    links.request(action, SETLINK, _vlan_body(link, infos, itself=itself))


def remove_vlan(links: Links, port: Link, vlan: int) -> None:
    """Remove *port* from *vlan*; do nothing if it is not a member."""
    action = f"take {port.name} out of the VLAN {vlan}"
    try:
        links.request(action, DELLINK, _vlan_body(port, [(vlan, 0)]))
    except Refused as error:
        if error.errno != errno.ENOENT:
            raise


def vlans_of(link: Link) -> tuple[int, set[int]]:
    """Return the VLAN of a port's untagged traffic (0 for none) and its tagged VLANs.

    The port must be in the calling thread's namespace.
    """
    with iproute(f"read the VLANs of {link.name}") as kernel:
        found = [
            vlan
            for port in kernel.get_vlans(index=link.index)
            for vlan in port.get_nested("IFLA_AF_SPEC").get_attrs("IFLA_BRIDGE_VLAN_INFO")
        ]
    own = next((vlan["vid"] for vlan in found if vlan["flags"] & _PVID), 0)
    return own, {vlan["vid"] for vlan in found if not vlan["flags"] & (_PVID | _UNTAGGED)}


def has_ports(link: Link) -> bool:
    """Return whether *link* is a bridge with at least one port, in the calling thread's namespace.

    This uses an old ioctl(2) that fills a table of port indexes. Netlink can only dump every port,
    which is slow on a bridge with a thousand of them, and /sys shows the namespace that it was
    mounted in.

    Raises:
        DataplaneError: if the ioctl fails.

    """
    if link.kind != "bridge":
        return False  # the same ioctl has another meaning for other kinds of interfaces
    name = link.name
    ports = (ctypes.c_int * _BR_MAX_PORTS)()
    arguments = (ctypes.c_ulong * 4)(
        _BRCTL_GET_PORT_LIST, ctypes.addressof(ports), _BR_MAX_PORTS, 0
    )
    # struct ifreq: the interface's name and ifr_data
    request = struct.pack("16sP16x", name.encode(), ctypes.addressof(arguments))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as control:
        try:
            fcntl.ioctl(control, _SIOCDEVPRIVATE, request)
        except OSError as error:
            if error.errno == errno.ENODEV:
                return False
            raise DataplaneError(
                f"cannot list the ports of the bridge {name}", error.strerror or ""
            ) from error
    return any(ports)


def _vlan_body(link: Link, infos: list[tuple[int, int]], *, itself: bool = False) -> bytes:
    spec = b"".join(
        attribute(_BRIDGE_VLAN_INFO, _VLAN_INFO.pack(flags, vid)) for vid, flags in infos
    )
    if itself:
        spec = attribute(_BRIDGE_FLAGS, _SELF.to_bytes(2, sys.byteorder)) + spec
    return HEADER.pack(_AF_BRIDGE, link.index, 0, 0) + attribute(_AF_SPEC, spec)
