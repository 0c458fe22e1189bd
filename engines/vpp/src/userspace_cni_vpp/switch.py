"""VPP operations on interfaces, bridge domains, addresses and routes."""

from __future__ import annotations

import struct
from ipaddress import ip_address, ip_interface, ip_network
from typing import TYPE_CHECKING, Any

from attrs import frozen

from userspace_cni.api import DataplaneError
from userspace_cni_vpp.connection import Refused
from userspace_cni_vpp.retvals import Retval

if TYPE_CHECKING:
    from collections.abc import Sequence

    from userspace_cni.api import IPAddress, IPInterface, IPNetwork
    from userspace_cni_vpp.connection import Connection

NONE = 0xFFFFFFFF
"""~0, which VPP uses for "none", "any" or "choose one"."""
_ADMIN_UP = 1
_LINK_UP = 2
_PUSH_1 = 1  # L2_VTR_PUSH_1: add the tag on input, remove it on output
#: Features of the engine's bridge domains: VPP's field names and flags (BRIDGE_API_FLAG_*).
FORWARDING = {"learn": 1, "forward": 2, "flood": 4, "uu_flood": 8}
_NORMAL_PORT = 0
_BVI_PORT = 1
_DROP = 2  # FIB_API_PATH_TYPE_DROP
_LINK_LOCAL = "fe80::/10"
_STATIC = 1  # IP_API_NEIGHBOR_FLAG_STATIC
#: Errors for an interface that does not exist; the last one is af_packet's.
_GONE = (Retval.INVALID_SW_IF_INDEX, Retval.INVALID_INTERFACE, Retval.SYSCALL_ERROR_1)
#: MPLS labels of a path; vpp-papi does not pad lists of fixed length.
_NO_LABELS: list[dict[str, int]] = [{}] * 16
MODES = ("ethernet", "ip", "inject-punt")
"""Memif modes, indexed by VPP's number."""


@frozen(kw_only=True)
class Port:
    """An interface of VPP."""

    #: VPP's ``sw_if_index``, which changes with a restart.
    index: int
    name: str
    tag: str
    #: Empty if the interface has none (a memif in mode ip).
    mac: str
    up: bool
    #: Whether the peer is connected.
    link: bool
    #: MTU of IP packets, in bytes.
    mtu: int
    #: VLAN tag that frames get in the bridge domain.
    vlan: int | None


@frozen(kw_only=True)
class MemifPort:
    """A memif as VPP describes it."""

    index: int
    id: int
    server: bool
    mode: str


@frozen(kw_only=True)
class Domain:
    """A bridge domain."""

    tag: str
    #: Index of its BVI.
    bvi: int | None
    #: Indices of all its interfaces, including the BVI.
    members: frozenset[int]
    #: Features of FORWARDING that are switched off.
    off: tuple[str, ...]


class Switch:
    """Operations on one VPP.

    Every method raises :class:`.Refused` when VPP refuses a request, and
    :class:`.DataplaneUnavailable` when it does not answer.
    """

    def __init__(self, api: Connection) -> None:
        """Use the connection *api*."""
        self.api = api

    # -- interfaces

    def ports(self, *, containing: Sequence[bytes] | None = None, name: str = "") -> list[Port]:
        """Return interfaces, by default all.

        Args:
            containing: only interfaces whose encoded description contains one of these strings.
            name: only interfaces whose name contains this text; VPP itself filters by it.

        """
        found = self.api.dump(
            "sw_interface_dump",
            containing=containing,
            sw_if_index=NONE,
            name_filter_valid=bool(name),
            name_filter=name,
        )
        return [_port(details) for details in found]

    def port(self, index: int) -> Port:
        """Return the interface *index*, which must exist."""
        found = self.find(index)
        assert found is not None, index  # noqa: S101  it has just been created
        return found

    def find(self, index: int) -> Port | None:
        """Return the interface *index*, or None if it does not exist."""
        found = self.api.dump("sw_interface_dump", sw_if_index=index)
        return next((_port(details) for details in found if details.sw_if_index == index), None)

    def named(self, name: str) -> Port | None:
        """Return the interface *name*, or None; fast even if there are many interfaces."""
        return next((port for port in self.ports(name=name) if port.name == name), None)

    def tagged(self, tag: str) -> Port | None:
        """Return the interface with exactly this *tag*, or None."""
        ports = self.ports(containing=[tag.encode()])
        return next((port for port in ports if port.tag == tag), None)

    def loopback(self, tag: str, mac: bytes) -> Port | None:
        """Return the loopback with this *tag*, or without a tag and with this MAC address.

        The latter was created by a request whose connection broke before it could tag it.
        """
        found = self.ports(containing=[tag.encode(), mac], name="loop")
        ours = (p for p in found if p.tag == tag or (not p.tag and p.mac == mac.hex(":")))
        return next(ours, None)

    def tag(self, index: int, tag: str) -> None:
        """Tag an interface."""
        self.api.call("sw_interface_tag_add_del", is_add=True, sw_if_index=index, tag=tag)

    def up(self, index: int) -> None:
        """Set an interface administratively up."""
        self.api.call("sw_interface_set_flags", sw_if_index=index, flags=_ADMIN_UP)

    def set_mtu(self, index: int, mtu: int) -> None:
        """Set the MTU of IP packets, in bytes."""
        # L3, IP4, IP6, MPLS; 0 means the value of L3.
        self.api.call("sw_interface_set_mtu", sw_if_index=index, mtu=[mtu, 0, 0, 0])

    def set_mac(self, index: int, mac: bytes) -> None:
        """Set the MAC address of an interface."""
        self.api.call("sw_interface_set_mac_address", sw_if_index=index, mac_address=mac)

    def remove(self, port: Port) -> None:
        """Remove an interface of any kind; do nothing if it no longer exists."""
        name, index = port.name, port.index
        try:
            if name.startswith("memif"):
                self.api.call("memif_delete", subject=name, sw_if_index=index)
                # The name is memif<socket>/<id>.
                self.remove_memif_socket(int(name.removeprefix("memif").partition("/")[0]))
            elif name.startswith("VirtualEthernet"):
                self.api.call("delete_vhost_user_if", subject=name, sw_if_index=index)
            elif name.startswith("tap"):
                self.api.call("tap_delete_v2", subject=name, sw_if_index=index)
            elif name.startswith("host-"):
                host = name.removeprefix("host-")
                self.api.call("af_packet_delete", subject=name, host_if_name=host)
            elif name.startswith("loop"):
                self.api.call("delete_loopback", subject=name, sw_if_index=index)
        except Refused as error:
            if error.retval not in _GONE:
                raise

    # -- memif

    def create_memif(
        self,
        socket: str,
        *,
        number: int,
        server: bool,
        mode: str,
        id: int,  # noqa: A002  VPP's name of the field
        secret: str,
        ring_size: int,
        buffer_size: int,
        rx_queues: int,
        tx_queues: int,
        zero_copy: bool,
        mac: bytes,
    ) -> int:
        """Create a memif and return its index.

        Args:
            socket: in VPP's notation, see :func:`.ports.vpp_socket`.
            number: preferred number of the socket; if it is taken, VPP chooses another.
            server: whether this end creates the socket.
            mode: one of :data:`MODES`.
            id: number of the memif on its socket.
            secret: shared secret, or empty.
            ring_size: number of descriptors of each ring.
            buffer_size: in bytes.
            rx_queues: number of receive queues.
            tx_queues: number of transmit queues.
            zero_copy: whether VPP may use the peer's buffers without copying.
            mac: MAC address; zero bytes let VPP choose one.

        Raises:
            DataplaneError: if another memif uses the socket, or VPP refuses.

        """
        try:
            socket_id = self._add_memif_socket(socket, number)
        except Refused as error:
            if error.retval != Retval.ENTRY_ALREADY_EXISTS:
                raise
            socket_id = self._add_memif_socket(socket, NONE)
        try:
            reply = self.api.call(
                "memif_create_v2",
                subject=f"the memif on {socket}",
                role=0 if server else 1,
                mode=MODES.index(mode),
                id=id,
                socket_id=socket_id,
                secret=secret,
                ring_size=ring_size,
                buffer_size=buffer_size,
                rx_queues=rx_queues,
                tx_queues=tx_queues,
                no_zero_copy=not zero_copy,
                hw_addr=mac,
            )
        except Refused as error:
            if error.retval == Retval.SUBIF_ALREADY_EXISTS:
                raise self._taken(socket, socket_id) from error
            self._clean_up_socket(socket_id, id)
            raise
        return int(reply.sw_if_index)

    def memif(self, index: int) -> MemifPort | None:
        """Return the memif *index*, or None if that interface is not a memif."""
        # Search for the index, because the name contains only the socket's number and the ID.
        for found in self.api.dump("memif_dump", containing=[struct.pack(">I", index)]):
            if found.sw_if_index == index:
                return MemifPort(
                    index=index,
                    id=found.id,
                    server=not found.role,
                    mode=MODES[found.mode] if found.mode < len(MODES) else str(found.mode),
                )
        return None

    def _add_memif_socket(self, socket: str, number: int) -> int:
        reply = self.api.call(
            "memif_socket_filename_add_del_v2",
            subject=socket,
            is_add=True,
            socket_id=number,
            socket_filename=socket,
        )
        return int(reply.socket_id)

    def remove_memif_socket(self, socket_id: int) -> None:
        """Remove a memif socket unless it is in use or no longer exists."""
        request = "memif_socket_filename_add_del_v2"
        if not self.api.has(request):
            return
        try:
            self.api.call(
                request,
                is_add=False,
                socket_id=socket_id,
                socket_filename="",
            )
        except Refused as error:
            # The socket is used by an interface that is not ours, or it no longer exists.
            if error.retval not in (Retval.UNEXPECTED_INTF_STATE, Retval.INVALID_ARGUMENT):
                raise

    def _clean_up_socket(self, socket_id: int, id_: int) -> None:
        """Remove what VPP keeps of the memif *id_* whose creation it refused.

        An interface with a tag is kept: it is not the one whose creation was refused.
        """
        for port in self._on_socket(socket_id):
            if port.name == f"memif{socket_id}/{id_}" and not port.tag:
                self.api.call("memif_delete", subject=port.name, sw_if_index=port.index)
        self.remove_memif_socket(socket_id)

    def _taken(self, socket: str, socket_id: int) -> DataplaneError:
        """Return an error that names the memif that already uses *socket*."""
        whose = ", ".join(
            f"{port.name}, tagged {port.tag!r}" if port.tag else f"{port.name}, without a tag"
            for port in self._on_socket(socket_id)
        )
        return DataplaneError(
            f"VPP already has a memif on the socket {socket}: {whose}",
            "choose another socketfile, or remove that interface if nobody needs it: "
            "vppctl delete interface memif NAME",
        )

    def _on_socket(self, socket_id: int) -> list[Port]:
        """Return the memifs on a socket; their names are memif<socket>/<id>."""
        return self.ports(name=f"memif{socket_id}/")

    # -- bridge domains

    def create_domain(self, domain: int, tag: str) -> bool:
        """Create a bridge domain that learns and floods; return False if it already exists."""
        try:
            self.api.call(
                "bridge_domain_add_del_v2",
                subject=f"bridge domain {domain}",
                bd_id=domain,
                **dict.fromkeys(FORWARDING, True),
                bd_tag=tag,
                is_add=True,
            )
        except Refused as error:
            if error.retval != Retval.BD_ALREADY_EXISTS:
                raise
            return False
        return True

    def domain(self, domain: int) -> Domain | None:
        """Return a bridge domain, or None if it does not exist."""
        for found in self.api.dump("bridge_domain_dump", bd_id=domain, sw_if_index=NONE):
            if found.bd_id == domain:
                bvi = found.bvi_sw_if_index
                return Domain(
                    tag=found.bd_tag,
                    bvi=None if bvi == NONE else bvi,
                    members=frozenset(member.sw_if_index for member in found.sw_if_details),
                    off=tuple(name for name in FORWARDING if not getattr(found, name)),
                )
        return None

    def set_forwarding(self, domain: int) -> None:
        """Switch on learning, forwarding and flooding in a bridge domain."""
        self.api.call(
            "bridge_flags",
            subject=f"bridge domain {domain}",
            bd_id=domain,
            is_set=True,
            flags=sum(FORWARDING.values()),
        )

    def remove_domain(self, domain: int) -> None:
        """Remove a bridge domain unless it is in use or no longer exists."""
        try:
            self.api.call("bridge_domain_add_del_v2", bd_id=domain, is_add=False)
        except Refused as error:
            if error.retval not in (Retval.BD_IN_USE, Retval.NO_SUCH_ENTRY):
                raise

    def join(self, index: int, domain: int, *, bvi: bool = False) -> None:
        """Add an interface to a bridge domain, optionally as its BVI."""
        self.api.call(
            "sw_interface_set_l2_bridge",
            subject=f"bridge domain {domain}",
            rx_sw_if_index=index,
            bd_id=domain,
            port_type=_BVI_PORT if bvi else _NORMAL_PORT,
            enable=True,
        )

    def set_vlan(self, index: int, vlan: int) -> None:
        """Make an interface an access port of *vlan*.

        The tag rewrite alone would strip the tag of any VLAN on output; the filter drops frames of
        other VLANs.
        """
        self.api.call(
            "l2_interface_vlan_tag_rewrite",
            sw_if_index=index,
            vtr_op=_PUSH_1,
            push_dot1q=1,
            tag1=vlan,
        )
        try:
            self.api.call("l2_interface_efp_filter", sw_if_index=index, enable_disable=True)
        except Refused as error:
            # The retval may be the last error of an unrelated request (VPP 26.10-rc0,
            # vnet_main.api_errno). Only a wrong interface is an error of this request.
            if error.retval == Retval.INVALID_SW_IF_INDEX:
                raise

    def filters_vlan(self, name: str) -> bool:
        """Return whether the interface *name* has the filter of :meth:`set_vlan`.

        The API has no message for this, so CLI output is parsed. If it has an unexpected format,
        the filter is assumed to be set.
        """
        shown = self.api.call("cli_inband", cmd=f"show interface {name} features").reply
        _, told, features = shown.partition("l2-output:")
        return not told or "EFP_FILTER" in features

    # -- addresses and routes

    def create_loopback(self, mac: bytes) -> int:
        """Create a loopback interface and return its index."""
        reply = self.api.call(
            "create_loopback_instance", mac_address=mac, is_specified=False, user_instance=NONE
        )
        return int(reply.sw_if_index)

    def add_address(self, index: int, address: IPInterface) -> None:
        """Add an address to an interface; do nothing if it already has the address."""
        try:
            self.api.call(
                "sw_interface_add_del_address",
                subject=str(address),
                sw_if_index=index,
                is_add=True,
                prefix=_prefix(address.ip, address.network.prefixlen),
            )
        except Refused as error:
            # For IPv4 the error is the same whether this interface or another one has the address.
            taken = error.retval in (Retval.ADDRESS_IN_USE, Retval.DUPLICATE_IF_ADDRESS)
            if not taken or address not in self.addresses(index):
                raise

    def addresses(self, index: int) -> set[IPInterface]:
        """Return the addresses of an interface."""
        return {
            ip_interface(_parse_prefix(found.prefix))
            for is_ipv6 in (False, True)
            for found in self.api.dump("ip_address_dump", sw_if_index=index, is_ipv6=is_ipv6)
        }

    def enable_ipv6(self, index: int) -> None:
        """Enable IPv6 on an interface without an IPv6 address of its own."""
        try:
            self.api.call("sw_interface_ip6_enable_disable", sw_if_index=index, enable=True)
        except Refused as error:
            if error.retval != Retval.VALUE_EXIST:
                raise

    def borrow_addresses(self, index: int, lender: int) -> None:
        """Make an interface unnumbered: it uses the addresses of *lender*."""
        self.api.call(
            "sw_interface_set_unnumbered",
            sw_if_index=lender,
            unnumbered_sw_if_index=index,
            is_add=True,
        )

    def borrowers(self) -> dict[int, int]:
        """Return the lender of each unnumbered interface."""
        found = self.api.dump("ip_unnumbered_dump", sw_if_index=NONE)
        return {details.sw_if_index: details.ip_sw_if_index for details in found}

    def create_table(self, vrf: int, version: int, name: str) -> None:
        """Create a routing table; do nothing if it exists."""
        self.api.call(
            "ip_table_add_del",
            is_add=True,
            table={"table_id": vrf, "is_ip6": version == 6, "name": name},
        )

    def tables(self) -> dict[tuple[int, int], str]:
        """Return the names of all routing tables by table number and IP version."""
        return {
            (found.table.table_id, 6 if found.table.is_ip6 else 4): found.table.name
            for found in self.api.dump("ip_table_dump")
        }

    def remove_table(self, vrf: int, version: int) -> None:
        """Remove a routing table; VPP keeps it as long as an interface uses it."""
        self.api.call(
            "ip_table_add_del", is_add=False, table={"table_id": vrf, "is_ip6": version == 6}
        )

    def set_table(self, index: int, vrf: int, version: int) -> None:
        """Bind an interface to a routing table."""
        self.api.call(
            "sw_interface_set_table",
            subject=f"table {vrf}",
            sw_if_index=index,
            is_ipv6=version == 6,
            vrf_id=vrf,
        )

    def is_routed(self, vrf: int, version: int) -> bool:
        """Return whether a table has routes besides VPP's own, which are drops and fe80::/10."""
        found = self.api.dump("ip_route_dump", table={"table_id": vrf, "is_ip6": version == 6})
        return any(
            path.type != _DROP
            for details in found
            if _parse_prefix(details.route.prefix) != _LINK_LOCAL
            for path in details.route.paths
        )

    def table_of(self, index: int, version: int) -> int:
        """Return the number of an interface's routing table."""
        reply = self.api.call(
            "sw_interface_get_table",
            sw_if_index=index,
            is_ipv6=version == 6,
        )
        return int(reply.vrf_id)

    def add_route(
        self, dst: IPNetwork, index: int, vrf: int, gateway: IPAddress | None = None
    ) -> None:
        """Route *dst* through an interface, via *gateway* if given; replace an existing route."""
        self._route(dst, index, vrf, gateway, is_add=True)

    def remove_route(self, dst: IPNetwork, index: int, vrf: int) -> None:
        """Remove the route to *dst* through an interface."""
        self._route(dst, index, vrf, None, is_add=False)

    def remove_routes(self, index: int, vrf: int, version: int) -> None:
        """Remove all host routes (/32 or /128) through an interface."""
        bits = 32 if version == 4 else 128
        found = self.api.dump(
            "ip_route_dump",
            containing=[struct.pack(">I", index)],
            table={"table_id": vrf, "is_ip6": version == 6},
        )
        for details in found:
            route = details.route
            if route.prefix.len == bits and any(p.sw_if_index == index for p in route.paths):
                dst = ip_network(_parse_prefix(route.prefix))
                self.remove_route(dst, index, vrf)

    def route_to(self, dst: IPNetwork, vrf: int) -> int | None:
        """Return the interface of the route to exactly *dst*, or None without such a route."""
        try:
            reply = self.api.call(
                "ip_route_lookup",
                table_id=vrf,
                exact=1,
                prefix=_prefix(dst.network_address, dst.prefixlen),
            )
        except Refused as error:
            if error.retval in (Retval.NO_SUCH_ENTRY, Retval.NO_SUCH_FIB):
                return None
            raise
        paths = reply.route.paths
        return int(paths[0].sw_if_index) if paths else None

    def add_neighbour(self, index: int, address: IPAddress, mac: bytes) -> None:
        """Add a static neighbour entry."""
        self.api.call(
            "ip_neighbor_add_del",
            is_add=True,
            neighbor={
                "sw_if_index": index,
                "flags": _STATIC,
                "mac_address": mac,
                "ip_address": _address(address),
            },
        )

    def _route(
        self, dst: IPNetwork, index: int, vrf: int, gateway: IPAddress | None, *, is_add: bool
    ) -> None:
        v6 = dst.version == 6
        path: dict[str, Any] = {
            "sw_if_index": index,
            "table_id": vrf,
            "weight": 1,
            "proto": 1 if v6 else 0,
            "label_stack": _NO_LABELS,
        }
        if gateway is not None:
            path["nh"] = {"address": _address(gateway)["un"]}
        self.api.call(
            "ip_route_add_del",
            subject=f"the route to {dst}",
            is_add=is_add,
            is_multipath=False,
            route={
                "table_id": vrf,
                "prefix": _prefix(dst.network_address, dst.prefixlen),
                "n_paths": 1 if is_add else 0,
                "paths": [path] if is_add else [],
            },
        )


def mac_bytes(mac: str) -> bytes:
    """Return the six bytes of a MAC address."""
    return bytes.fromhex(mac.replace(":", ""))


def _port(details: Any) -> Port:
    mac = bytes(details.l2_address)
    return Port(
        index=details.sw_if_index,
        name=details.interface_name,
        tag=details.tag,
        mac=mac.hex(":") if any(mac) else "",
        up=bool(details.flags & _ADMIN_UP),
        link=bool(details.flags & _LINK_UP),
        mtu=details.mtu[0],
        vlan=details.vtr_tag1 if details.vtr_op == _PUSH_1 else None,
    )


def _address(address: IPAddress) -> dict[str, Any]:
    if address.version == 4:
        return {"af": 0, "un": {"ip4": address.packed}}
    return {"af": 1, "un": {"ip6": address.packed}}


def _prefix(address: IPAddress, length: int) -> dict[str, Any]:
    return {"address": _address(address), "len": length}


def _parse_prefix(prefix: Any) -> str:
    address = prefix.address
    raw = bytes(address.un.ip6 if address.af else address.un.ip4)
    return f"{ip_address(raw)}/{prefix.len}"
