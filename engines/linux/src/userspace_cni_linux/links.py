"""The kernel's interfaces, addresses and routes: rtnetlink(7), <linux/if_link.h>.

:class:`Links` is one netlink socket. It works in the network namespace of the thread that made it.
Each method is one request, unless it says otherwise, and an error names the interface.
"""

from __future__ import annotations

import errno
import os
import struct
import sys
from contextlib import contextmanager
from ipaddress import ip_address
from socket import AF_INET, AF_INET6
from typing import TYPE_CHECKING, Self

from attrs import frozen

from userspace_cni.cni.errors import CniError, Code, DataplaneError, DataplaneUnavailable
from userspace_cni_linux.netlink import (
    CREATE,
    DUMP,
    EXCLUSIVE,
    Netlink,
    attribute,
    attributes,
    listed,
    number,
    text,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from userspace_cni.engine import IPAddress, IPInterface, IPNetwork

MAIN_TABLE = 254  # RT_TABLE_MAIN
SCOPE_UNIVERSE = 0  # RT_SCOPE_UNIVERSE
SCOPE_LINK = 253  # RT_SCOPE_LINK

_IFA_F_NODAD = 0x02
_IFA_F_NOPREFIXROUTE = 0x200
_IFF_UP = 0x1
_IFF_PROMISC = 0x100
_RTEXT_FILTER_BRVLAN = 0x2
_RTEXT_FILTER_SKIP_STATS = 0x8
_BRIDGE_FLAGS_SELF = 0x2
_BRIDGE_VLAN_PVID = 0x2
_BRIDGE_VLAN_UNTAGGED = 0x4
_BRIDGE_VLAN_RANGE_BEGIN = 0x8
_BRIDGE_VLAN_RANGE_END = 0x10
_AF_BRIDGE = 7
_IP_V6 = 6
_NLA_F_NESTED = 0x8000
_RTN_UNICAST = 1
_RTPROT_STATIC = 4
_RTM_NEWLINK = 16
_RTM_DELLINK = 17
_RTM_GETLINK = 18
_RTM_SETLINK = 19
_RTM_NEWADDR = 20
_RTM_GETADDR = 22
_RTM_NEWROUTE = 24
_RTM_GETROUTE = 26
_LINK = struct.Struct("=BxxxiII")  # struct ifinfomsg: family, index, flags, change
_ADDRESS = struct.Struct("=BBBBI")  # struct ifaddrmsg: family, length, flags, scope, index
#: struct rtmsg: family, lengths of destination and source, TOS, table, protocol, scope, type, flags
_ROUTE = struct.Struct("=BBBBBBBBI")
_VLAN_INFO = struct.Struct("=HH")  # struct bridge_vlan_info: flags, VLAN
_IF_OPER_UP = 6
_IFLA_ADDRESS = 1
_IFLA_IFNAME = 3
_IFLA_MTU = 4
_IFLA_LINK = 5
_IFLA_MASTER = 10
_IFLA_OPERSTATE = 16
_IFLA_LINKINFO = 18
_IFLA_IFALIAS = 20
_IFLA_LINK_NETNSID = 37
_IFLA_INFO_KIND = 1
_IFLA_INFO_DATA = 2
_IFLA_INFO_SLAVE_DATA = 5
_IFLA_BR_VLAN_FILTERING = 7
_IFLA_BRPORT_MODE = 4
_IFLA_BRPORT_ISOLATED = 33
_IFLA_BR_STP_STATE = 5
_IFLA_VLAN_ID = 1
_IFLA_MACVLAN_MODE = 1
_VETH_INFO_PEER = 1
_IFLA_PROTINFO = 12
_IFLA_AF_SPEC = 26
_IFLA_EXT_MASK = 29
_IFLA_BRIDGE_FLAGS = 0
_IFLA_BRIDGE_VLAN_INFO = 2
_IFA_ADDRESS = 1
_IFA_LOCAL = 2
_IFA_FLAGS = 8
_RTA_DST = 1
_RTA_OIF = 4
_RTA_GATEWAY = 5
_RTA_PRIORITY = 6
_RTA_PREFSRC = 7
_RTA_METRICS = 8
_RTA_TABLE = 15
RTAX_MTU = 2
RTAX_ADVMSS = 8
MACVLAN_MODES = {"private": 1, "vepa": 2, "bridge": 4, "passthru": 8}
#: The options of an interface; its MAC address is no number and no text.
_OPTIONS = {
    "ext_mask": _IFLA_EXT_MASK,
    "ifalias": _IFLA_IFALIAS,
    "ifname": _IFLA_IFNAME,
    "link": _IFLA_LINK,
    "master": _IFLA_MASTER,
    "mtu": _IFLA_MTU,
    "net_ns_fd": 28,
    "target_netnsid": 46,
}


class Refused(DataplaneError):
    """The kernel refused a netlink request; :attr:`errno` says why."""

    def __init__(self, action: str, number: int, words: str) -> None:
        name = errno.errorcode.get(number, str(number))
        super().__init__(f"cannot {action}", f"the kernel says: {words} ({name})")
        self.errno = number


@frozen(kw_only=True)
class Link:
    """An interface as the kernel tells it."""

    index: int
    name: str
    #: ``bridge``, ``veth``, ``tun`` (a tap, too), ``macvlan``, ``vlan``; empty for hardware.
    kind: str
    #: See :mod:`.tags`.
    alias: str
    mac: str
    mtu: int
    up: bool
    #: Up, with a carrier, and what is upon it knows: a bridge forwards to and from its port.
    operational: bool
    promiscuous: bool
    #: Index of the bridge that it is a port of, 0 without.
    master: int
    #: Index of the interface that it sits upon; 0 without, or in another namespace.
    parent: int
    #: Of a veth whose other end is in another namespace: that end's index, and the id by which this
    #: namespace knows that other.
    far_end: tuple[int, int] | None
    #: Of a bridge.
    vlan_filtering: bool
    #: Of a VLAN sub-interface, else 0.
    vlan_id: int
    #: Of a bridge's port.
    hairpin: bool
    isolated: bool


@frozen(kw_only=True)
class KernelRoute:
    """A route of the main or another table, as the kernel tells it."""

    dst: str
    gw: str | None
    table: int
    priority: int
    #: The address that it prefers as the source, None without.
    src: str | None
    scope: int
    #: Index of the interface that it goes through, 0 for a route with several.
    oif: int


class Links:
    """One netlink socket; a context manager that closes it.

    Options of an interface are called as the kernel's attributes are, without ``IFLA_`` and in
    lower case: ``mtu``, ``ifalias``.
    """

    def __init__(self) -> None:
        try:
            self._netlink = Netlink()
        except OSError as error:
            raise DataplaneUnavailable(
                "cannot open a netlink socket", error.strerror or str(error)
            ) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._netlink.close()

    # -- interfaces --------------------------------------------------------------------------------

    def find(self, name: str) -> Link | None:
        """Return the interface called *name*, None where there is none."""
        return self._get(f"look up the interface {name}", 0, ifname=name)

    def at(self, index: int) -> Link | None:
        """Return the interface of number *index*, None where there is none."""
        return self._get(f"look up the interface of index {index}", index)

    def at_far_end(self, link: Link) -> Link | None:
        """Return the other end of the veth *link*, which is in another namespace."""
        if link.far_end is None:
            return None
        index, netns = link.far_end
        return self._get(f"look up the other end of {link.name}", index, target_netnsid=netns)

    def require(self, name: str) -> Link:
        """Return the interface called *name*.

        Raises:
            DataplaneError: when there is none.

        """
        link = self.find(name)
        if link is None:
            raise DataplaneError(
                f"the interface {name} does not exist",
                "make it, or correct its name in the network",
            )
        return link

    def all(self) -> list[Link]:
        """Return every interface of the namespace; slow where there are many."""
        with _refusals("list the interfaces"):
            body = _link_body(0, {"ext_mask": _RTEXT_FILTER_SKIP_STATS})
            return [_link(found) for found in self._netlink.request(_RTM_GETLINK, body, DUMP)]

    def create(self, name: str, kind: str, data: bytes = b"", **options: str | int) -> None:
        """Make the interface *name*; EEXIST when a name is taken.

        Args:
            name: in the host, or with the option ``net_ns_fd`` in that namespace.
            kind: as in :attr:`Link.kind`.
            data: the kind's own attributes: see :func:`bridge_data` and its neighbours.
            options: see the class.

        """
        with _refusals(f"create the {kind} interface {name}"):
            body = _link_body(0, {"ifname": name, **options}) + _info(kind, data)
            self._netlink.request(_RTM_NEWLINK, body, CREATE | EXCLUSIVE)

    def change(self, link: Link, *, up: bool | None = None, **options: str | int) -> None:
        """Change *options* of *link*, and set it *up* or down."""
        self._change(link.name, _link_body(link.index, options, up=up), options)

    def change_named(self, name: str, *, up: bool | None = None, **options: str | int) -> None:
        """Do as :meth:`change`, for the interface *name* that nobody has looked up."""
        self._change(name, _link_body(0, {"ifname": name, **options}, up=up), options)

    def filter_vlans(self, bridge: Link) -> None:
        """Let *bridge* tell VLANs apart."""
        body = _link_body(bridge.index) + _info("bridge", bridge_data(vlan_filtering=True))
        self._change(bridge.name, body, ("vlan_filtering",), _RTM_NEWLINK)

    def set_promiscuous(self, link: Link) -> None:
        """Let *link* receive what is meant for others."""
        body = _LINK.pack(0, link.index, _IFF_PROMISC, _IFF_PROMISC)
        self._change(link.name, body, ("promiscuous mode",))

    def remove(self, link: Link) -> None:
        """Remove *link*; that it is gone is fine."""
        with _refusals(f"remove the interface {link.name}", but=errno.ENODEV):
            self._netlink.request(_RTM_DELLINK, _link_body(link.index))

    # -- bridges -----------------------------------------------------------------------------------

    def set_port(self, link: Link, *, hairpin: bool = False, isolated: bool = False) -> None:
        """Let the bridge port *link* send frames back where they came from, or isolate it."""
        asked = ((_IFLA_BRPORT_MODE, hairpin), (_IFLA_BRPORT_ISOLATED, isolated))
        settings = b"".join(attribute(kind, b"\1") for kind, wanted in asked if wanted)
        body = _LINK.pack(_AF_BRIDGE, link.index, 0, 0)
        body += attribute(_IFLA_PROTINFO | _NLA_F_NESTED, settings)
        with _refusals(f"set the bridge port {link.name} to hairpin or isolated"):
            self._netlink.request(_RTM_SETLINK, body)

    def add_vlans(
        self, link: Link, vlans: range, *, own: bool = False, itself: bool = False
    ) -> None:
        """Make *link* a member of *vlans*.

        Args:
            link: a bridge's port, or with *itself* a bridge.
            vlans: without gaps.
            own: what comes untagged belongs to the one VLAN, and leaves it untagged.
            itself: the bridge's own port, that its host uses.

        """
        if len(vlans) > 1:
            infos = [(vlans[0], _BRIDGE_VLAN_RANGE_BEGIN), (vlans[-1], _BRIDGE_VLAN_RANGE_END)]
        else:
            infos = [(vlans[0], _BRIDGE_VLAN_PVID | _BRIDGE_VLAN_UNTAGGED if own else 0)]
        with _refusals(f"put {link.name} into the VLANs {vlans[0]} to {vlans[-1]}"):
            self._netlink.request(_RTM_SETLINK, _vlan_body(link, infos, itself=itself))

    def remove_vlan(self, link: Link, vlan: int) -> None:
        """End the membership of the bridge port *link* in *vlan*; that there is none is fine."""
        with _refusals(f"take {link.name} out of the VLAN {vlan}", but=errno.ENOENT):
            self._netlink.request(_RTM_DELLINK, _vlan_body(link, [(vlan, 0)]))

    def vlans(self, link: Link) -> tuple[int, set[int]]:
        """Return the VLAN of untagged traffic of a port (0: none), and those it carries tagged."""
        body = _LINK.pack(_AF_BRIDGE, 0, 0, 0)
        body += attribute(_IFLA_EXT_MASK, _RTEXT_FILTER_BRVLAN)
        with _refusals(f"read the VLANs of {link.name}"):
            answers = self._netlink.request(_RTM_GETLINK, body, DUMP)
        own, tagged = 0, set()
        for answer in answers:
            _, index, _, _ = _LINK.unpack_from(answer)
            spec = attributes(answer, _LINK.size).get(_IFLA_AF_SPEC)
            if index != link.index or spec is None:
                continue
            for kind, info in listed(spec):
                if kind != _IFLA_BRIDGE_VLAN_INFO:
                    continue
                flags, vid = _VLAN_INFO.unpack(info)
                if flags & _BRIDGE_VLAN_PVID:
                    own = vid
                elif not flags & _BRIDGE_VLAN_UNTAGGED:
                    tagged.add(vid)
        return own, tagged

    # -- addresses ---------------------------------------------------------------------------------

    def add_address(self, link: Link, address: IPInterface, *, prefix_route: bool = True) -> None:
        """Give *link* an *address*. IPv6's is usable at once (no duplicate address detection).

        Without *prefix_route* the kernel adds no route to the address's subnet. EEXIST when it has
        the address already.
        """
        flags = 0 if prefix_route else _IFA_F_NOPREFIXROUTE
        if address.version == _IP_V6:
            flags |= _IFA_F_NODAD
        body = (
            _ADDRESS.pack(_family(address), address.network.prefixlen, 0, 0, link.index)
            + attribute(_IFA_LOCAL, address.packed)
            + attribute(_IFA_ADDRESS, address.packed)
            + attribute(_IFA_FLAGS, flags)
        )
        with _refusals(f"give the interface {link.name} the address {address}"):
            self._netlink.request(_RTM_NEWADDR, body, CREATE | EXCLUSIVE)

    def ensure_address(self, link: Link, address: IPInterface) -> bool:
        """Do as :meth:`add_address`; return False if *link* has the address already."""
        try:
            self.add_address(link, address)
        except Refused as error:
            if error.errno != errno.EEXIST:
                raise
            return False
        return True

    def addresses(self, link: Link) -> set[str]:
        """Return the addresses of *link*, each with its prefix length."""
        with _refusals(f"read the addresses of {link.name}"):
            body = _ADDRESS.pack(0, 0, 0, 0, link.index)
            answers = self._netlink.request(_RTM_GETADDR, body, DUMP)
        found = set()
        for answer in answers:
            _, length, _, _, _ = _ADDRESS.unpack_from(answer)
            told = attributes(answer, _ADDRESS.size)
            # IFA_ADDRESS is the other end's where there is one; IFA_LOCAL is ours.
            address = _address(told.get(_IFA_LOCAL) or told.get(_IFA_ADDRESS))
            found.add(f"{address}/{length}")
        return found

    # -- routes ------------------------------------------------------------------------------------

    def add_route(
        self,
        link: Link,
        dst: IPNetwork,
        gw: IPAddress | None = None,
        *,
        scope: int = SCOPE_UNIVERSE,
        table: int = MAIN_TABLE,
        src: IPAddress | None = None,
        priority: int | None = None,
        metrics: Mapping[int, int] | None = None,
    ) -> None:
        """Add a route to *dst* through *link*. EEXIST: there is one.

        *metrics* are the kernel's: :data:`RTAX_MTU`, :data:`RTAX_ADVMSS`.
        """
        body = _ROUTE.pack(
            _family(dst), dst.prefixlen, 0, 0, 0, _RTPROT_STATIC, scope, _RTN_UNICAST, 0
        )
        body += attribute(_RTA_OIF, link.index) + attribute(_RTA_TABLE, table)
        if dst.prefixlen:
            body += attribute(_RTA_DST, dst.network_address.packed)
        for kind, address in ((_RTA_GATEWAY, gw), (_RTA_PREFSRC, src)):
            if address is not None:
                body += attribute(kind, address.packed)
        if priority is not None:
            body += attribute(_RTA_PRIORITY, priority)
        if metrics:
            values = b"".join(attribute(kind, value) for kind, value in metrics.items())
            body += attribute(_RTA_METRICS, values)
        through = f"{gw} on {link.name}" if gw else link.name
        with _refusals(f"add a route to {dst} through {through}"):
            self._netlink.request(_RTM_NEWROUTE, body, CREATE | EXCLUSIVE)

    def routes(self, link: Link | None = None) -> list[KernelRoute]:
        """Return the unicast routes through *link*, or all, of all tables. Two requests."""
        return [*self._routes(AF_INET, link), *self._routes(AF_INET6, link)]

    def default_interface(self) -> Link | None:
        """Return the interface of the default route, IPv4's first; None without. Slow."""
        for family in (AF_INET, AF_INET6):
            defaults = [
                route
                for route in self._routes(family)
                if route.dst.endswith("/0") and route.oif and route.table == MAIN_TABLE
            ]
            if defaults:
                return self.at(min(defaults, key=lambda route: route.priority).oif)
        return None

    def _routes(self, family: int, link: Link | None = None) -> list[KernelRoute]:
        body = _ROUTE.pack(family, 0, 0, 0, 0, 0, 0, 0, 0)
        if link is not None:
            body += attribute(_RTA_OIF, link.index)
        with _refusals(f"read the routes{f' of {link.name}' if link else ''}"):
            answers = self._netlink.request(_RTM_GETROUTE, body, DUMP)
        routes = []
        for answer in answers:
            _, length, _, _, table, _, scope, kind, _ = _ROUTE.unpack_from(answer)
            # Each family has a route of its own for multicast.
            if kind != _RTN_UNICAST:
                continue
            told = attributes(answer, _ROUTE.size)
            everything = bytes(16 if family == AF_INET6 else 4)
            routes.append(
                KernelRoute(
                    dst=f"{_address(told.get(_RTA_DST, everything))}/{length}",
                    gw=_address(told.get(_RTA_GATEWAY)),
                    table=number(told.get(_RTA_TABLE)) or table,
                    priority=number(told.get(_RTA_PRIORITY)),
                    src=_address(told.get(_RTA_PREFSRC)),
                    scope=scope,
                    oif=number(told.get(_RTA_OIF)),
                )
            )
        return routes

    def _change(
        self, name: str, body: bytes, what: Iterable[str], type_: int = _RTM_SETLINK
    ) -> None:
        with _refusals(f"change {_told(what) or 'the state'} of the interface {name}"):
            self._netlink.request(type_, body)

    def _get(self, action: str, index: int, **options: str | int) -> Link | None:
        body = _link_body(index, {"ext_mask": _RTEXT_FILTER_SKIP_STATS, **options})
        try:
            with _refusals(action):
                (answer,) = self._netlink.request(_RTM_GETLINK, body)
        except Refused as error:
            if error.errno == errno.ENODEV:
                return None
            raise
        return _link(answer)


@contextmanager
def namespace(path: str) -> Iterator[int]:
    """Hold the network namespace *path* open as a file descriptor, for netlink's IFLA_NET_NS_FD.

    Raises:
        CniError: code 4 when it is gone.

    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise CniError(
            Code.INVALID_ENVIRONMENT,
            f"the container's network namespace {path} cannot be opened",
            f"{error.strerror}; has the container ended?",
        ) from error
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def _refusals(action: str, but: int | None = None) -> Iterator[None]:
    """Turn the kernel's errors into ours: cannot *action*; swallow the errno *but*."""
    try:
        yield
    except OSError as error:
        if error.errno != but:
            raise Refused(action, error.errno or 0, error.strerror or str(error)) from error


def _told(options: Iterable[str]) -> str:
    return ", ".join(options)


def _family(address: IPInterface | IPAddress | IPNetwork) -> int:
    return AF_INET6 if address.version == _IP_V6 else AF_INET


def bridge_data(*, vlan_filtering: bool = False) -> bytes:
    """Return what makes a bridge tell VLANs apart; it never runs the spanning tree protocol."""
    data = attribute(_IFLA_BR_STP_STATE, 0)
    return data + attribute(_IFLA_BR_VLAN_FILTERING, b"\1") if vlan_filtering else data


def vlan_data(vlan: int) -> bytes:
    """Return what makes an interface that of *vlan*."""
    return attribute(_IFLA_VLAN_ID, vlan.to_bytes(2, sys.byteorder))


def macvlan_data(mode: str) -> bytes:
    """Return what gives a macvlan its *mode*, one of :data:`MACVLAN_MODES`."""
    return attribute(_IFLA_MACVLAN_MODE, MACVLAN_MODES[mode])


def veth_data(**options: str | int) -> bytes:
    """Return what tells a veth's other end by its *options*, see :class:`Links`."""
    return attribute(_VETH_INFO_PEER, _link_body(0, options))


def _link_body(
    index: int, options: Mapping[str, str | int] | None = None, *, up: bool | None = None
) -> bytes:
    change = 0 if up is None else _IFF_UP
    parts = [_LINK.pack(0, index, _IFF_UP if up else 0, change)]
    for name, value in (options or {}).items():
        if name == "address":
            parts.append(attribute(_IFLA_ADDRESS, bytes.fromhex(str(value).replace(":", ""))))
        else:
            parts.append(attribute(_OPTIONS[name], value))
    return b"".join(parts)


def _info(kind: str, data: bytes) -> bytes:
    info = attribute(_IFLA_INFO_KIND, kind)
    if data:
        info += attribute(_IFLA_INFO_DATA, data)
    return attribute(_IFLA_LINKINFO, info)


def _vlan_body(link: Link, infos: list[tuple[int, int]], *, itself: bool = False) -> bytes:
    spec = b"".join(
        attribute(_IFLA_BRIDGE_VLAN_INFO, _VLAN_INFO.pack(flags, vid)) for vid, flags in infos
    )
    if itself:
        spec = attribute(_IFLA_BRIDGE_FLAGS, _BRIDGE_FLAGS_SELF.to_bytes(2, sys.byteorder)) + spec
    return _LINK.pack(_AF_BRIDGE, link.index, 0, 0) + attribute(_IFLA_AF_SPEC, spec)


def _address(value: bytes | None) -> str | None:
    return None if value is None else str(ip_address(value))


def _link(answer: bytes) -> Link:
    _, index, flags, _ = _LINK.unpack_from(answer)
    found = attributes(answer, _LINK.size)
    info = attributes(found.get(_IFLA_LINKINFO, b""))
    kind = text(info.get(_IFLA_INFO_KIND))
    data = attributes(info.get(_IFLA_INFO_DATA, b""))
    port = attributes(info.get(_IFLA_INFO_SLAVE_DATA, b""))
    parent = number(found.get(_IFLA_LINK))
    elsewhere = _IFLA_LINK_NETNSID in found
    return Link(
        index=index,
        name=text(found.get(_IFLA_IFNAME)),
        kind=kind,
        alias=text(found.get(_IFLA_IFALIAS)),
        mac=found.get(_IFLA_ADDRESS, b"").hex(":"),
        mtu=number(found.get(_IFLA_MTU)),
        up=bool(flags & _IFF_UP),
        operational=number(found.get(_IFLA_OPERSTATE)) == _IF_OPER_UP,
        promiscuous=bool(flags & _IFF_PROMISC),
        master=number(found.get(_IFLA_MASTER)),
        # In another namespace the number means another interface.
        parent=0 if elsewhere else parent,
        far_end=(parent, number(found.get(_IFLA_LINK_NETNSID)))
        if kind == "veth" and elsewhere
        else None,
        vlan_filtering=kind == "bridge" and bool(number(data.get(_IFLA_BR_VLAN_FILTERING))),
        vlan_id=number(data.get(_IFLA_VLAN_ID)) if kind == "vlan" else 0,
        hairpin=bool(number(port.get(_IFLA_BRPORT_MODE))),
        isolated=bool(number(port.get(_IFLA_BRPORT_ISOLATED))),
    )
