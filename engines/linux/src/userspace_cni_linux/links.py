"""The kernel's interfaces, addresses and routes over rtnetlink: a thin layer on pyroute2.

:class:`Links` is one netlink socket. It works in the network namespace of the thread that made it.
Each method is one request, unless it says otherwise, and an error names the interface.
"""

from __future__ import annotations

import errno
import os
from contextlib import contextmanager
from socket import AF_INET, AF_INET6
from typing import TYPE_CHECKING, Any, Self

from attrs import frozen

from userspace_cni.cni.errors import CniError, Code, DataplaneError, DataplaneUnavailable

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

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
_BRIDGE_VLAN_PVID = 0x2
_BRIDGE_VLAN_UNTAGGED = 0x4
_AF_BRIDGE = 7
_IP_V6 = 6


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
    """One netlink socket; a context manager that closes it."""

    def __init__(self) -> None:
        # Slow to import, and many a request of the program never comes here.
        from pyroute2.iproute.linux import IPRoute

        try:
            self._socket: Any = IPRoute(ext_ack=True, strict_check=True)
        except OSError as error:
            raise DataplaneUnavailable(
                "cannot open a netlink socket", error.strerror or str(error)
            ) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    # -- interfaces --------------------------------------------------------------------------------

    def find(self, name: str) -> Link | None:
        """Return the interface called *name*, None where there is none."""
        return self._get(f"look up the interface {name}", ifname=name)

    def at(self, index: int) -> Link | None:
        """Return the interface of number *index*, None where there is none."""
        return self._get(f"look up the interface of index {index}", index=index)

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
            return [
                _link(message)
                for message in self._socket.link("dump", ext_mask=_RTEXT_FILTER_SKIP_STATS)
            ]

    def create(self, name: str, kind: str, **options: Any) -> None:
        """Make the interface *name*; *options* are pyroute2's. EEXIST when a name is taken."""
        with _refusals(f"create the {kind} interface {name}"):
            self._socket.link("add", ifname=name, kind=kind, **options)

    def change(self, link: Link, **options: Any) -> None:
        """Change settings of *link*; *options* are pyroute2's."""
        with _refusals(f"change {_told(options)} of the interface {link.name}"):
            self._socket.link("set", index=link.index, **options)

    def change_named(self, name: str, **options: Any) -> None:
        """Do as :meth:`change`, for the interface *name* that nobody has looked up."""
        with _refusals(f"change {_told(options)} of the interface {name}"):
            self._socket.link("set", ifname=name, **options)

    def set_promiscuous(self, link: Link) -> None:
        """Let *link* receive what is meant for others."""
        with _refusals(f"make the interface {link.name} promiscuous"):
            self._socket.link("set", index=link.index, flags=_IFF_PROMISC, change=_IFF_PROMISC)

    def remove(self, link: Link) -> None:
        """Remove *link*; that it is gone is fine."""
        with _refusals(f"remove the interface {link.name}", but=errno.ENODEV):
            self._socket.link("del", index=link.index)

    # -- bridges -----------------------------------------------------------------------------------

    def set_port(self, link: Link, **options: int) -> None:
        """Change settings of the bridge port *link* (``mode`` is hairpin, ``isolated``)."""
        with _refusals(f"change {_told(options)} of the bridge port {link.name}"):
            self._socket.brport("set", index=link.index, **options)

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
        info: dict[str, Any]
        if len(vlans) > 1:
            info = {"vid": f"{vlans[0]}-{vlans[-1]}"}
        else:
            flags = _BRIDGE_VLAN_PVID | _BRIDGE_VLAN_UNTAGGED if own else 0
            info = {"vid": vlans[0], "flags": flags}
        more = {"vlan_flags": "self"} if itself else {}
        with _refusals(f"put {link.name} into the VLANs {vlans[0]} to {vlans[-1]}"):
            self._socket.vlan_filter("add", index=link.index, vlan_info=info, **more)

    def remove_vlan(self, link: Link, vlan: int) -> None:
        """End the membership of the bridge port *link* in *vlan*; that there is none is fine."""
        with _refusals(f"take {link.name} out of the VLAN {vlan}", but=errno.ENOENT):
            self._socket.vlan_filter("del", index=link.index, vlan_info={"vid": vlan})

    def vlans(self, link: Link) -> tuple[int, set[int]]:
        """Return the VLAN of untagged traffic of a port (0: none), and those it carries tagged."""
        with _refusals(f"read the VLANs of {link.name}"):
            messages = list(
                self._socket.link("dump", family=_AF_BRIDGE, ext_mask=_RTEXT_FILTER_BRVLAN)
            )
        own, tagged = 0, set()
        for message in messages:
            spec = message.get_attr("IFLA_AF_SPEC")
            if message["index"] != link.index or spec is None:
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
        flags = 0 if prefix_route else _IFA_F_NOPREFIXROUTE
        if address.version == _IP_V6:
            flags |= _IFA_F_NODAD
        with _refusals(f"give the interface {link.name} the address {address}"):
            self._socket.addr(
                "add",
                index=link.index,
                family=_family(address),
                address=str(address.ip),
                prefixlen=address.network.prefixlen,
                flags=flags,
            )

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
            return {
                # IFA_ADDRESS is the other end's where there is one; IFA_LOCAL is ours.
                f"{message.get_attr('IFA_LOCAL') or message.get_attr('IFA_ADDRESS')}"
                f"/{message['prefixlen']}"
                for message in self._socket.addr("dump", index=link.index)
            }

    # -- routes ------------------------------------------------------------------------------------

    def add_route(
        self,
        link: Link,
        dst: IPNetwork,
        gw: IPAddress | None = None,
        **options: Any,
    ) -> None:
        """Add a route to *dst* through *link*; *options* are pyroute2's. EEXIST: there is one."""
        through = f"{gw} on {link.name}" if gw else link.name
        if gw:
            options["gateway"] = str(gw)
        with _refusals(f"add a route to {dst} through {through}"):
            self._socket.route("add", family=_family(dst), dst=str(dst), oif=link.index, **options)

    def routes(self, link: Link | None = None) -> list[KernelRoute]:
        """Return the unicast routes through *link*, or all, of all tables. Two requests."""
        found = []
        through = {"oif": link.index} if link else {}
        for family, everything in ((AF_INET, "0.0.0.0/0"), (AF_INET6, "::/0")):
            with _refusals(f"read the routes{f' of {link.name}' if link else ''}"):
                messages = list(self._socket.route("dump", family=family, **through))
            for message in messages:
                dst = message.get_attr("RTA_DST")
                # Each family has a route of its own for multicast; RTN_UNICAST is 1.
                if message["type"] != 1:
                    continue
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
            with _refusals("read the default route"):
                messages = list(self._socket.route("dump", family=family, table=MAIN_TABLE))
            defaults = [
                message
                for message in messages
                if message["dst_len"] == 0 and message.get_attr("RTA_OIF")
            ]
            if defaults:
                best = min(defaults, key=lambda message: message.get_attr("RTA_PRIORITY") or 0)
                return self.at(best.get_attr("RTA_OIF"))
        return None

    def _get(self, action: str, **query: Any) -> Link | None:
        try:
            with _refusals(action):
                messages = self._socket.link("get", ext_mask=_RTEXT_FILTER_SKIP_STATS, **query)
        except Refused as error:
            if error.errno == errno.ENODEV:
                return None
            raise
        return next((_link(message) for message in messages), None)


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
    """Turn pyroute2's errors into ours: cannot *action*; swallow the errno *but*."""
    from pyroute2.netlink.exceptions import NetlinkError

    try:
        yield
    except NetlinkError as error:
        if error.code != but:
            raise Refused(action, error.code, str(error.args[1])) from error
    except OSError as error:
        raise Refused(action, error.errno or 0, error.strerror or str(error)) from error


def _told(options: Iterable[str]) -> str:
    return ", ".join(options)


def _family(address: IPInterface | IPAddress | IPNetwork) -> int:
    return AF_INET6 if address.version == _IP_V6 else AF_INET


def _link(message: Any) -> Link:
    def nested(*path: str) -> Any:
        return message.get_nested("IFLA_LINKINFO", *path)

    elsewhere = message.get_attr("IFLA_LINK_NETNSID") is not None
    return Link(
        index=message["index"],
        name=message.get_attr("IFLA_IFNAME"),
        kind=nested("IFLA_INFO_KIND") or "",
        alias=message.get_attr("IFLA_IFALIAS") or "",
        mac=message.get_attr("IFLA_ADDRESS") or "",
        mtu=message.get_attr("IFLA_MTU") or 0,
        up=bool(message["flags"] & _IFF_UP),
        operational=message.get_attr("IFLA_OPERSTATE") == "UP",
        promiscuous=bool(message["flags"] & _IFF_PROMISC),
        master=message.get_attr("IFLA_MASTER") or 0,
        # In another namespace the number means another interface.
        parent=0 if elsewhere else message.get_attr("IFLA_LINK") or 0,
        vlan_filtering=bool(nested("IFLA_INFO_DATA", "IFLA_BR_VLAN_FILTERING")),
        vlan_id=nested("IFLA_INFO_DATA", "IFLA_VLAN_ID") or 0,
        hairpin=bool(nested("IFLA_INFO_SLAVE_DATA", "IFLA_BRPORT_MODE")),
        isolated=bool(nested("IFLA_INFO_SLAVE_DATA", "IFLA_BRPORT_ISOLATED")),
    )
