"""The kernel's interfaces, addresses and routes over rtnetlink: a thin layer on its messages.

:class:`Links` is one netlink socket. It works in the network namespace of the thread that made it.
Each method is one request, unless it says otherwise, and an error names the interface.
"""

from __future__ import annotations

import errno
import os
import struct
import sys
from contextlib import contextmanager
from socket import AF_INET, AF_INET6
from typing import TYPE_CHECKING, Any, Self

from attrs import frozen

from userspace_cni.cni.errors import CniError, Code, DataplaneError, DataplaneUnavailable
from userspace_cni_linux.netlink import CREATE, DUMP, EXCLUSIVE, Netlink, attributes

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
# struct nlmsghdr, and of struct ifinfomsg the index and the flags
_LINK_HEADER = struct.Struct("=16x4xiI4x")
_LINK_ATTRIBUTES = _LINK_HEADER.size
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
_IFLA_VLAN_ID = 1


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
            raise DataplaneError(f"the interface {name} does not exist")
        return link

    def all(self) -> list[Link]:
        """Return every interface of the namespace; slow where there are many."""
        with _refusals("list the interfaces"):
            message = _link_message(0, ext_mask=_RTEXT_FILTER_SKIP_STATS)
            return [_link(found) for found in self._netlink.request(_RTM_GETLINK, message, DUMP)]

    def create(
        self, name: str, kind: str, data: Mapping[str, object] | None = None, **options: Any
    ) -> None:
        """Make the interface *name*; EEXIST when a name is taken.

        Args:
            name: in the host, or with the option ``net_ns_fd`` in that namespace.
            kind: as in :attr:`Link.kind`.
            data: the kind's own attributes, such as ``IFLA_VLAN_ID``.
            options: see the class.

        """
        with _refusals(f"create the {kind} interface {name}"):
            message = _link_message(0, ifname=name, **options, linkinfo=_info(kind, data or {}))
            self._netlink.request(_RTM_NEWLINK, message, CREATE | EXCLUSIVE)

    def change(self, link: Link, *, up: bool = False, **options: Any) -> None:
        """Change *options* of *link*, and set it *up*."""
        self._change(link.name, _link_message(link.index, up=up, **options), options)

    def change_named(self, name: str, *, up: bool = False, **options: Any) -> None:
        """Do as :meth:`change`, for the interface *name* that nobody has looked up."""
        self._change(name, _link_message(0, up=up, ifname=name, **options), options)

    def filter_vlans(self, bridge: Link) -> None:
        """Let *bridge* tell VLANs apart."""
        linkinfo = _info("bridge", {"IFLA_BR_VLAN_FILTERING": 1})
        message = _link_message(bridge.index, linkinfo=linkinfo)
        self._change(bridge.name, message, ("vlan_filtering",), _RTM_NEWLINK)

    def set_promiscuous(self, link: Link) -> None:
        """Let *link* receive what is meant for others."""
        message = _link_message(link.index)
        message["flags"] = message["change"] = _IFF_PROMISC
        self._change(link.name, message, ("promiscuous mode",))

    def remove(self, link: Link) -> None:
        """Remove *link*; that it is gone is fine."""
        with _refusals(f"remove the interface {link.name}", but=errno.ENODEV):
            self._netlink.request(_RTM_DELLINK, _link_message(link.index))

    # -- bridges -----------------------------------------------------------------------------------

    def set_port(self, link: Link, **options: int) -> None:
        """Change settings of the bridge port *link* (``mode`` is hairpin, ``isolated``)."""
        attributes = [(f"IFLA_BRPORT_{name.upper()}", value) for name, value in options.items()]
        message = _link_message(link.index)
        message["family"] = _AF_BRIDGE
        message["attrs"] = [("IFLA_PROTINFO", {"attrs": attributes}, _NLA_F_NESTED)]
        with _refusals(f"change {_told(options)} of the bridge port {link.name}"):
            self._netlink.request(_RTM_SETLINK, message)

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
            self._netlink.request(_RTM_SETLINK, _vlan_message(link, infos, itself=itself))

    def remove_vlan(self, link: Link, vlan: int) -> None:
        """End the membership of the bridge port *link* in *vlan*; that there is none is fine."""
        with _refusals(f"take {link.name} out of the VLAN {vlan}", but=errno.ENOENT):
            self._netlink.request(_RTM_DELLINK, _vlan_message(link, [(vlan, 0)]))

    def vlans(self, link: Link) -> tuple[int, set[int]]:
        """Return the VLAN of untagged traffic of a port (0: none), and those it carries tagged."""
        message = _link_message(0, ext_mask=_RTEXT_FILTER_BRVLAN)
        message["family"] = _AF_BRIDGE
        with _refusals(f"read the VLANs of {link.name}"):
            answers = _decoded(message, self._netlink.request(_RTM_GETLINK, message, DUMP))
        own, tagged = 0, set()
        for answer in answers:
            spec = answer.get_attr("IFLA_AF_SPEC")
            if answer["index"] != link.index or spec is None:
                continue
            for info in spec.get_attrs("IFLA_BRIDGE_VLAN_INFO"):
                if info["flags"] & _BRIDGE_VLAN_PVID:
                    own = info["vid"]
                elif not info["flags"] & _BRIDGE_VLAN_UNTAGGED:
                    tagged.add(info["vid"])
        return own, tagged

    # -- addresses ---------------------------------------------------------------------------------

    def add_address(self, link: Link, address: IPInterface, *, prefix_route: bool = True) -> None:
        """Give *link* an *address*. IPv6's is usable at once (no duplicate address detection).

        Without *prefix_route* the kernel adds no route to the address's subnet. EEXIST when it has
        the address already.
        """
        from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg

        flags = 0 if prefix_route else _IFA_F_NOPREFIXROUTE
        if address.version == _IP_V6:
            flags |= _IFA_F_NODAD
        message = ifaddrmsg()
        message["index"] = link.index
        message["family"] = _family(address)
        message["prefixlen"] = address.network.prefixlen
        message["attrs"] = [
            ("IFA_LOCAL", str(address.ip)),
            ("IFA_ADDRESS", str(address.ip)),
            ("IFA_FLAGS", flags),
        ]
        with _refusals(f"give the interface {link.name} the address {address}"):
            self._netlink.request(_RTM_NEWADDR, message, CREATE | EXCLUSIVE)

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
        from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg

        message = ifaddrmsg()
        message["index"] = link.index
        with _refusals(f"read the addresses of {link.name}"):
            return {
                # IFA_ADDRESS is the other end's where there is one; IFA_LOCAL is ours.
                f"{answer.get_attr('IFA_LOCAL') or answer.get_attr('IFA_ADDRESS')}"
                f"/{answer['prefixlen']}"
                for answer in _decoded(message, self._netlink.request(_RTM_GETADDR, message, DUMP))
            }

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
        metrics: Mapping[str, int] | None = None,
    ) -> None:
        """Add a route to *dst* through *link*. EEXIST: there is one.

        *metrics* are the kernel's, such as ``RTAX_MTU``.
        """
        from pyroute2.netlink.rtnl.rtmsg import rtmsg

        message = rtmsg()
        message["family"] = _family(dst)
        message["dst_len"] = dst.prefixlen
        message["scope"] = scope
        message["type"] = _RTN_UNICAST
        message["proto"] = _RTPROT_STATIC
        attributes: list[tuple[str, Any]] = [("RTA_OIF", link.index), ("RTA_TABLE", table)]
        if dst.prefixlen:
            attributes.append(("RTA_DST", str(dst.network_address)))
        for name, address in (("RTA_GATEWAY", gw), ("RTA_PREFSRC", src)):
            if address is not None:
                attributes.append((name, str(address)))
        if priority is not None:
            attributes.append(("RTA_PRIORITY", priority))
        if metrics:
            attributes.append(("RTA_METRICS", {"attrs": list(metrics.items())}))
        message["attrs"] = attributes
        through = f"{gw} on {link.name}" if gw else link.name
        with _refusals(f"add a route to {dst} through {through}"):
            self._netlink.request(_RTM_NEWROUTE, message, CREATE | EXCLUSIVE)

    def routes(self, link: Link | None = None) -> list[KernelRoute]:
        """Return the unicast routes through *link*, or all, of all tables. Two requests."""
        found = []
        for family, everything in ((AF_INET, "0.0.0.0/0"), (AF_INET6, "::/0")):
            for message in self._routes(family, link):
                # Each family has a route of its own for multicast.
                if message["type"] != _RTN_UNICAST:
                    continue
                dst = message.get_attr("RTA_DST")
                found.append(
                    KernelRoute(
                        dst=f"{dst}/{message['dst_len']}" if dst else everything,
                        gw=message.get_attr("RTA_GATEWAY"),
                        table=message.get_attr("RTA_TABLE") or message["table"],
                        priority=message.get_attr("RTA_PRIORITY") or 0,
                        src=message.get_attr("RTA_PREFSRC"),
                        scope=message["scope"],
                        oif=message.get_attr("RTA_OIF") or 0,
                    )
                )
        return found

    def default_interface(self) -> Link | None:
        """Return the interface of the default route, IPv4's first; None without. Slow."""
        for family in (AF_INET, AF_INET6):
            defaults = [
                message
                for message in self._routes(family)
                if message["dst_len"] == 0
                and message.get_attr("RTA_OIF")
                and (message.get_attr("RTA_TABLE") or message["table"]) == MAIN_TABLE
            ]
            if defaults:
                best = min(defaults, key=lambda message: message.get_attr("RTA_PRIORITY") or 0)
                return self.at(best.get_attr("RTA_OIF"))
        return None

    def _routes(self, family: int, link: Link | None = None) -> list[Any]:
        from pyroute2.netlink.rtnl.rtmsg import rtmsg

        message = rtmsg()
        message["family"] = family
        if link is not None:
            message["attrs"] = [("RTA_OIF", link.index)]
        with _refusals(f"read the routes{f' of {link.name}' if link else ''}"):
            return _decoded(message, self._netlink.request(_RTM_GETROUTE, message, DUMP))

    def _change(
        self, name: str, message: Any, what: Iterable[str], type_: int = _RTM_SETLINK
    ) -> None:
        with _refusals(f"change {_told(what) or 'the state'} of the interface {name}"):
            self._netlink.request(type_, message)

    def _get(self, action: str, index: int, **options: Any) -> Link | None:
        message = _link_message(index, ext_mask=_RTEXT_FILTER_SKIP_STATS, **options)
        try:
            with _refusals(action):
                (answer,) = self._netlink.request(_RTM_GETLINK, message)
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


def _link_message(index: int, *, up: bool = False, **options: Any) -> Any:
    # Slow to import, and many a request of the program never comes here.
    from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg

    message = ifinfmsg()
    message["index"] = index
    if up:
        message["flags"] = message["change"] = _IFF_UP
    message["attrs"] = _named(options)
    return message


def _named(options: Mapping[str, Any]) -> list[tuple[str, Any]]:
    return [(f"IFLA_{name.upper()}", value) for name, value in options.items()]


def _info(kind: str, data: Mapping[str, object]) -> dict[str, Any]:
    return {
        "attrs": [
            ("IFLA_INFO_KIND", kind),
            ("IFLA_INFO_DATA", {"attrs": list(data.items())}),
        ]
    }


def veth_peer(**options: Any) -> dict[str, Any]:
    """Return the data of a veth interface that tells its other end by its options."""
    return {"VETH_INFO_PEER": {"attrs": _named(options)}}


def _vlan_message(link: Link, infos: list[tuple[int, int]], *, itself: bool = False) -> Any:
    attributes: list[tuple[str, Any]] = [
        ("IFLA_BRIDGE_VLAN_INFO", {"vid": vid, "flags": flags}) for vid, flags in infos
    ]
    if itself:
        attributes.insert(0, ("IFLA_BRIDGE_FLAGS", _BRIDGE_FLAGS_SELF))
    message = _link_message(link.index, af_spec={"attrs": attributes})
    message["family"] = _AF_BRIDGE
    return message


def _decoded(question: Any, answers: Iterable[bytes]) -> list[Any]:
    """Return *answers* as pyroute2's messages, of the class of the *question*."""
    messages = []
    for answer in answers:
        message = type(question)(answer)
        message.decode()
        messages.append(message)
    return messages


def _link(message: bytes) -> Link:
    # By hand: pyroute2 takes longer to decode one interface than the kernel to make it.
    index, flags = _LINK_HEADER.unpack_from(message)
    found = attributes(message, _LINK_ATTRIBUTES)
    info = attributes(found.get(_IFLA_LINKINFO, b""))
    kind = _text(info.get(_IFLA_INFO_KIND))
    data = attributes(info.get(_IFLA_INFO_DATA, b""))
    port = attributes(info.get(_IFLA_INFO_SLAVE_DATA, b""))
    parent = _number(found.get(_IFLA_LINK))
    elsewhere = _IFLA_LINK_NETNSID in found
    return Link(
        index=index,
        name=_text(found.get(_IFLA_IFNAME)),
        kind=kind,
        alias=_text(found.get(_IFLA_IFALIAS)),
        mac=found.get(_IFLA_ADDRESS, b"").hex(":"),
        mtu=_number(found.get(_IFLA_MTU)),
        up=bool(flags & _IFF_UP),
        operational=_number(found.get(_IFLA_OPERSTATE)) == _IF_OPER_UP,
        promiscuous=bool(flags & _IFF_PROMISC),
        master=_number(found.get(_IFLA_MASTER)),
        # In another namespace the number means another interface.
        parent=0 if elsewhere else parent,
        far_end=(parent, _number(found.get(_IFLA_LINK_NETNSID)))
        if kind == "veth" and elsewhere
        else None,
        vlan_filtering=kind == "bridge" and bool(_number(data.get(_IFLA_BR_VLAN_FILTERING))),
        vlan_id=_number(data.get(_IFLA_VLAN_ID)) if kind == "vlan" else 0,
        hairpin=bool(_number(port.get(_IFLA_BRPORT_MODE))),
        isolated=bool(_number(port.get(_IFLA_BRPORT_ISOLATED))),
    )


def _text(attribute: bytes | None) -> str:
    return (attribute or b"").rstrip(b"\0").decode(errors="surrogateescape")


def _number(attribute: bytes | None) -> int:
    return int.from_bytes(attribute or b"", sys.byteorder)
