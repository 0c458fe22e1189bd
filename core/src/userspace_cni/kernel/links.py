"""Kernel network interfaces: rtnetlink(7), <linux/if_link.h>."""

from __future__ import annotations

import errno
import struct
from typing import TYPE_CHECKING

from attrs import frozen

from userspace_cni.cni.errors import DataplaneError
from userspace_cni.kernel.netlink import (
    CREATE,
    DUMP,
    EXCLUSIVE,
    Netlink,
    Refused,
    attribute,
    attributes,
    number,
    text,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

NEWLINK, DELLINK, GETLINK, SETLINK = 16, 17, 18, 19  # RTM_
HEADER = struct.Struct("=BxxxiII")  # struct ifinfomsg: family, index, flags, change

_IFF_UP = 0x1
_IFF_PROMISC = 0x100
_IF_OPER_UP = 6
_RTEXT_FILTER_SKIP_STATS = 0x8
_INFO_KIND, _INFO_DATA, _INFO_SLAVE_DATA = 1, 2, 5  # IFLA_INFO_, in IFLA_LINKINFO
_BR_VLAN_FILTERING, _VLAN_ID = 7, 1  # IFLA_, in IFLA_INFO_DATA of a bridge, of a VLAN
_BRPORT_MODE, _BRPORT_ISOLATED = 4, 33  # IFLA_, in IFLA_INFO_SLAVE_DATA
#: IFLA_ attributes that :meth:`Links.create` and :meth:`Links.change` accept as options.
_IFLA = {
    "address": 1,
    "ifname": 3,
    "mtu": 4,
    "link": 5,
    "master": 10,
    "ifalias": 20,
    "net_ns_fd": 28,
    "ext_mask": 29,
    "target_netnsid": 46,
}
_OPERSTATE, _LINKINFO, _LINK_NETNSID = 16, 18, 37  # IFLA_


@frozen(kw_only=True)
class Link:
    """An interface as the kernel describes it."""

    index: int
    name: str
    #: ``bridge``, ``veth``, ``tun`` (also a tap), ``macvlan``, ``vlan``; empty for hardware.
    kind: str
    #: Ownership tag, see :mod:`.tags`.
    alias: str
    mac: str
    #: In bytes.
    mtu: int
    up: bool
    #: The operational state is up: the interface has a carrier, and its bridge forwards to it.
    operational: bool
    promiscuous: bool
    #: Index of the bridge that this interface is a port of; 0 for none.
    master: int
    #: Index of the interface below this one; 0 if there is none or it is in another namespace.
    parent: int
    #: For a veth whose peer is in another namespace: the peer's index and that namespace's ID.
    far_end: tuple[int, int] | None
    #: Bridges only.
    vlan_filtering: bool
    #: VLAN sub-interfaces only; 0 for all others.
    vlan_id: int
    #: Bridge ports only, like :attr:`isolated`.
    hairpin: bool
    isolated: bool


class Links(Netlink):
    """The interfaces of one network namespace. Each method sends one request.

    Interface options are named after the kernel's attributes, without ``IFLA_`` and in lower case:
    ``mtu``, ``ifalias``. Every method raises :class:`.Refused` when the kernel refuses, and
    :class:`.DataplaneUnavailable` when the socket fails.
    """

    def find(self, name: str) -> Link | None:
        """Return the interface *name*, or None if it does not exist."""
        return self._get(f"look up the interface {name}", 0, ifname=name)

    def at(self, index: int) -> Link | None:
        """Return the interface with *index*, or None if it does not exist."""
        return self._get(f"look up the interface of index {index}", index)

    def at_far_end(self, link: Link) -> Link | None:
        """Return the peer of the veth *link*; None unless it is in another namespace."""
        if link.far_end is None:
            return None
        index, netns = link.far_end
        return self._get(f"look up the other end of {link.name}", index, target_netnsid=netns)

    def require(self, name: str) -> Link:
        """Return the interface *name*; raise DataplaneError if it does not exist."""
        link = self.find(name)
        if link is None:
            raise DataplaneError(
                f"the interface {name} does not exist",
                "make it, or correct its name in the network",
            )
        return link

    def all(self) -> list[Link]:
        """Return every interface of the namespace; slow if there are many."""
        body = link_body(0, {"ext_mask": _RTEXT_FILTER_SKIP_STATS})
        return [
            decode(answer) for answer in self.request("list the interfaces", GETLINK, body, DUMP)
        ]

    def create(self, name: str, kind: str, data: bytes = b"", **options: str | int) -> None:
        """Create an interface.

        Args:
            name: the interface's name.
            kind: the kernel's name for the kind of interface, such as ``veth``.
            data: the kind's own attributes, encoded; see :func:`.veth.peer_data`.
            options: see the class; with ``net_ns_fd`` the interface is created in that namespace.

        Raises:
            Refused: with errno EEXIST if the name is taken.

        """
        body = link_body(0, {"ifname": name, **options}) + info(kind, data)
        self.request(f"create the {kind} interface {name}", NEWLINK, body, CREATE | EXCLUSIVE)

    def change(
        self,
        link: Link | str,
        *,
        up: bool | None = None,
        promiscuous: bool = False,
        **options: str | int,
    ) -> None:
        """Change an interface.

        Args:
            link: the interface or its name.
            up: set the interface up (True) or down (False); None leaves its state.
            promiscuous: enable promiscuous mode.
            options: the options to change, see the class.

        """
        name, index = (link, 0) if isinstance(link, str) else (link.name, link.index)
        named = {"ifname": name} if isinstance(link, str) else {}
        body = link_body(index, {**named, **options}, up=up, promiscuous=promiscuous)
        what = ", ".join(f"{key} to {value}" for key, value in options.items()) or "the state"
        self.request(f"change {what} of the interface {name}", SETLINK, body)

    def remove(self, link: Link) -> None:
        """Remove *link*; do nothing if it no longer exists."""
        try:
            self.request(f"remove the interface {link.name}", DELLINK, link_body(link.index))
        except Refused as error:
            if error.errno != errno.ENODEV:
                raise

    def _get(self, action: str, index: int, **options: str | int) -> Link | None:
        body = link_body(index, {"ext_mask": _RTEXT_FILTER_SKIP_STATS, **options})
        try:
            (answer,) = self.request(action, GETLINK, body)
        except Refused as error:
            if error.errno == errno.ENODEV:
                return None
            raise
        return decode(answer)


def link_body(
    index: int,
    options: Mapping[str, str | int] | None = None,
    *,
    up: bool | None = None,
    promiscuous: bool = False,
) -> bytes:
    """Encode a message body for interface *index*, with *options* as in :class:`Links`."""
    change = (0 if up is None else _IFF_UP) | (_IFF_PROMISC if promiscuous else 0)
    flags = (_IFF_UP if up else 0) | (_IFF_PROMISC if promiscuous else 0)
    parts = [HEADER.pack(0, index, flags, change)]
    for name, value in (options or {}).items():
        raw = bytes.fromhex(str(value).replace(":", "")) if name == "address" else value
        parts.append(attribute(_IFLA[name], raw))
    return b"".join(parts)


def info(kind: str, data: bytes = b"") -> bytes:
    """Encode IFLA_LINKINFO: the interface's *kind* and the kind's own *data*."""
    described = attribute(_INFO_KIND, kind) + (attribute(_INFO_DATA, data) if data else b"")
    return attribute(_LINKINFO, described)


def decode(answer: bytes) -> Link:
    """Return the interface that the body of an RTM_NEWLINK message describes."""
    _, index, flags, _ = HEADER.unpack_from(answer)
    found = attributes(answer, HEADER.size)
    about = attributes(found.get(_LINKINFO, b""))
    kind = text(about.get(_INFO_KIND))
    data = attributes(about.get(_INFO_DATA, b""))
    port = attributes(about.get(_INFO_SLAVE_DATA, b""))
    parent = number(found.get(_IFLA["link"]))
    # With IFLA_LINK_NETNSID the index counts in another namespace.
    elsewhere = _LINK_NETNSID in found
    far_end = (parent, number(found.get(_LINK_NETNSID))) if elsewhere and kind == "veth" else None
    return Link(
        index=index,
        name=text(found.get(_IFLA["ifname"])),
        kind=kind,
        alias=text(found.get(_IFLA["ifalias"])),
        mac=found.get(_IFLA["address"], b"").hex(":"),
        mtu=number(found.get(_IFLA["mtu"])),
        up=bool(flags & _IFF_UP),
        operational=number(found.get(_OPERSTATE)) == _IF_OPER_UP,
        promiscuous=bool(flags & _IFF_PROMISC),
        master=number(found.get(_IFLA["master"])),
        parent=0 if elsewhere else parent,
        far_end=far_end,
        vlan_filtering=kind == "bridge" and bool(number(data.get(_BR_VLAN_FILTERING))),
        vlan_id=number(data.get(_VLAN_ID)) if kind == "vlan" else 0,
        hairpin=bool(number(port.get(_BRPORT_MODE))),
        isolated=bool(number(port.get(_BRPORT_ISOLATED))),
    )
