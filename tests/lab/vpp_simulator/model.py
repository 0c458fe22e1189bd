"""The state of a simulated VPP, with one method per message, named like the message."""

from __future__ import annotations

import contextlib
import os
import random
import socket
from ipaddress import IPv4Interface, IPv6Interface, ip_address, ip_interface, ip_network
from pathlib import Path
from typing import Any

from attrs import define, field

NONE = 0xFFFFFFFF
_LOCAL0 = 0
_SOCKET_PATH_MAX = 107
_L2_BD_ID_MAX = (1 << 24) - 1
_ADMIN_UP = 1
_BVI = 1
_DROP = 2

Fields = dict[str, Any]
Address = IPv4Interface | IPv6Interface


class Refusal(Exception):
    """A reply whose retval is an error."""

    def __init__(self, retval: int) -> None:
        super().__init__(retval)
        self.retval = retval


INVALID_SW_IF_INDEX = -2
NO_SUCH_FIB = -3
NO_SUCH_ENTRY = -6
INVALID_VALUE = -7
SYSCALL_ERROR_1 = -11
SYSCALL_ERROR_2 = -12
SYSCALL_ERROR_4 = -14
SUBIF_ALREADY_EXISTS = -68
INVALID_INTERFACE = -71
INVALID_ARGUMENT = -73
UNEXPECTED_INTF_STATE = -74
IF_ALREADY_EXISTS = -79
VALUE_EXIST = -81
ADDRESS_IN_USE = -105
ENTRY_ALREADY_EXISTS = -116
BD_ALREADY_EXISTS = -119
BD_IN_USE = -120
BD_NOT_MODIFIABLE = -121
BD_ID_EXCEED_MAX = -122
DUPLICATE_IF_ADDRESS = -127
BD_ALREADY_HAS_BVI = -152


@define
class Interface:
    index: int
    name: str
    kind: str
    mac: bytes = bytes(6)
    tag: str = ""
    up: bool = False
    mtu: int = 9000
    domain: int | None = None
    is_bvi: bool = False
    vtr: tuple[int, int, int] = (0, 0, 0)
    efp_filter: bool = False
    addresses: list[Address] = field(factory=list)
    tables: dict[int, int] = field(factory=lambda: {4: 0, 6: 0})
    ip6: bool = False
    lender: int | None = None
    more: Fields = field(factory=dict)


@define
class Domain:
    id: int
    tag: str
    #: BRIDGE_API_FLAG_*: learn, forward, flood, uu_flood.
    flags: int = 15


@define
class MemifSocket:
    id: int
    filename: str
    listener: socket.socket | None = None


class Model:
    """The state of a VPP from its start to its end."""

    def __init__(self) -> None:
        self.interfaces: dict[int, Interface] = {}
        self._free: list[int] = []
        self.domains: dict[int, Domain] = {}
        self.memif_sockets = {0: MemifSocket(0, "/run/vpp/memif.sock")}
        self.tables: dict[tuple[int, int], str] = {(0, 4): "", (0, 6): ""}
        #: Interface and next hop by table and prefix.
        self.routes: dict[tuple[int, Any], tuple[int, bytes]] = {}
        self.neighbours: dict[tuple[int, Any], bytes] = {}
        self.free_buffers = 8191
        self._last_error = 0
        self._vhosts: dict[int, socket.socket] = {}
        self._new("local0", "local")

    def close(self) -> None:
        """End like a killed process: files stay."""
        for known in self.memif_sockets.values():
            if known.listener:
                known.listener.close()
        for listener in self._vhosts.values():
            listener.close()

    # -- vpe, vlib

    def control_ping(self, _: Any) -> Fields:
        return {"vpe_pid": os.getpid()}

    def cli_inband(self, request: Any) -> Fields:
        if request.cmd.endswith(" features"):
            port = next(p for p in self.interfaces.values() if p.name in request.cmd.split())
            filters = (
                "EFP_FILTER (l2-efp-filter)" if port.efp_filter else "OUTPUT (interface-output)"
            )
            return {"reply": f"Feature paths configured\n\nl2-output:\n  {filters}\n"}
        if request.cmd != "show buffers":
            return {"reply": f"unknown input `{request.cmd}'\n"}
        return {
            "reply": "Pool Name            Index NUMA  Size  Data Size  Total  Avail  Cached   "
            "Used  \n"
            f"default-numa-0         0     0   2304     2048    8191   {self.free_buffers}      0"
            f"       {8191 - self.free_buffers}\n"
        }

    # -- interface

    def sw_interface_dump(self, request: Any) -> list[Fields]:
        wanted = request.sw_if_index
        return [
            {
                "sw_if_index": port.index,
                "sup_sw_if_index": port.index,
                "l2_address": port.mac,
                "flags": (_ADMIN_UP if port.up else 0),
                "link_mtu": port.mtu,
                "mtu": [port.mtu, 0, 0, 0],
                "vtr_op": port.vtr[0],
                "vtr_push_dot1q": port.vtr[1],
                "vtr_tag1": port.vtr[2],
                "interface_name": port.name,
                "interface_dev_type": port.kind,
                "tag": port.tag,
            }
            for port in self.interfaces.values()
            if (
                request.name_filter in port.name
                if request.name_filter_valid
                else wanted in (0, NONE, port.index)
            )
        ]

    def sw_interface_tag_add_del(self, request: Any) -> Fields:
        self._port(request.sw_if_index).tag = request.tag if request.is_add else ""
        return {}

    def sw_interface_set_flags(self, request: Any) -> Fields:
        self._port(request.sw_if_index).up = bool(request.flags & _ADMIN_UP)
        return {}

    def sw_interface_set_mtu(self, request: Any) -> Fields:
        self._port(request.sw_if_index).mtu = request.mtu[0]
        return {}

    def sw_interface_set_mac_address(self, request: Any) -> Fields:
        self._port(request.sw_if_index).mac = bytes(request.mac_address)
        return {}

    def create_loopback_instance(self, request: Any) -> Fields:
        used = {p.more["instance"] for p in self.interfaces.values() if p.kind == "Loopback"}
        instance = next(n for n in range(16384) if n not in used)
        mac = bytes(request.mac_address)
        port = self._new(f"loop{instance}", "Loopback", mac if any(mac) else _any_mac())
        port.more["instance"] = instance
        return {"sw_if_index": port.index}

    def delete_loopback(self, request: Any) -> Fields:
        self._delete(request.sw_if_index, "Loopback", INVALID_SW_IF_INDEX)
        return {}

    # -- l2

    def bridge_domain_add_del_v2(self, request: Any) -> Fields:
        id_ = request.bd_id
        if not request.is_add:
            if id_ == 0:
                raise Refusal(BD_NOT_MODIFIABLE)
            if id_ not in self.domains:
                raise Refusal(NO_SUCH_ENTRY)
            if self._members(id_):
                raise Refusal(BD_IN_USE)
            del self.domains[id_]
            return {"bd_id": id_}
        if id_ == 0 or id_ in self.domains:
            raise Refusal(BD_ALREADY_EXISTS)
        if id_ > _L2_BD_ID_MAX:
            raise Refusal(BD_ID_EXCEED_MAX)
        self.domains[id_] = Domain(id_, request.bd_tag)
        return {"bd_id": id_}

    def bridge_domain_dump(self, request: Any) -> list[Fields]:
        found = []
        for domain in self.domains.values():
            if request.bd_id not in (NONE, domain.id):
                continue
            members = self._members(domain.id)
            bvi = next((port.index for port in members if port.is_bvi), NONE)
            found.append(
                {
                    "bd_id": domain.id,
                    "learn": bool(domain.flags & 1),
                    "forward": bool(domain.flags & 2),
                    "flood": bool(domain.flags & 4),
                    "uu_flood": bool(domain.flags & 8),
                    "bd_tag": domain.tag,
                    "bvi_sw_if_index": bvi,
                    "uu_fwd_sw_if_index": NONE,
                    "n_sw_ifs": len(members),
                    "sw_if_details": [{"sw_if_index": port.index} for port in members],
                }
            )
        return found

    def bridge_flags(self, request: Any) -> Fields:
        domain = self.domains.get(request.bd_id)
        if domain is None:
            raise Refusal(NO_SUCH_ENTRY)
        if request.is_set:
            domain.flags |= request.flags
        else:
            domain.flags &= ~request.flags
        return {"resulting_feature_bitmap": domain.flags}

    def sw_interface_set_l2_bridge(self, request: Any) -> Fields:
        port = self._port(request.rx_sw_if_index)
        if not request.enable:
            port.domain, port.is_bvi = None, False
            return {}
        is_bvi = request.port_type == _BVI
        if is_bvi and any(p.is_bvi and p is not port for p in self._members(request.bd_id)):
            raise Refusal(BD_ALREADY_HAS_BVI)
        # VPP creates a missing bridge domain without a tag.
        self.domains.setdefault(request.bd_id, Domain(request.bd_id, ""))
        port.domain, port.is_bvi = request.bd_id, is_bvi
        port.vtr = (0, 0, 0)
        port.efp_filter = False
        return {}

    def l2_interface_vlan_tag_rewrite(self, request: Any) -> Fields:
        port = self._port(request.sw_if_index)
        port.vtr = (request.vtr_op, request.push_dot1q, request.tag1)
        return {}

    def l2_interface_efp_filter(self, request: Any) -> Fields:
        self._port(request.sw_if_index).efp_filter = bool(request.enable_disable)
        # VPP returns the last error of any request here.
        if self._last_error:
            raise Refusal(self._last_error)
        return {}

    # -- memif

    def memif_socket_filename_add_del_v2(self, request: Any) -> Fields:
        id_ = request.socket_id
        if id_ == 0:
            raise Refusal(INVALID_ARGUMENT)
        if not request.is_add:
            known = self.memif_sockets.get(id_)
            if known is None:
                raise Refusal(INVALID_ARGUMENT)
            if any(p.more.get("socket_id") == id_ for p in self.interfaces.values()):
                raise Refusal(UNEXPECTED_INTF_STATE)
            del self.memif_sockets[id_]
            return {"socket_id": id_}
        while id_ == NONE or (request.socket_id == NONE and id_ in self.memif_sockets):
            id_ = random.randrange(1, NONE)
        known = self.memif_sockets.get(id_)
        if known is None:
            self.memif_sockets[id_] = MemifSocket(id_, request.socket_filename)
        elif known.filename != request.socket_filename:
            raise Refusal(ENTRY_ALREADY_EXISTS)
        return {"socket_id": id_}

    def memif_socket_filename_dump(self, _: Any) -> list[Fields]:
        return [
            {"socket_id": known.id, "socket_filename": known.filename[:_SOCKET_PATH_MAX]}
            for known in self.memif_sockets.values()
        ]

    def memif_create_v2(self, request: Any) -> Fields:
        known = self.memif_sockets.get(request.socket_id)
        if known is None:
            raise Refusal(INVALID_ARGUMENT)
        on_it = [p for p in self.interfaces.values() if p.more.get("socket_id") == known.id]
        if any(p.more["id"] == request.id for p in on_it):
            raise Refusal(SUBIF_ALREADY_EXISTS)
        if request.role == 0 and known.listener is None:
            known.listener = _listen_for_memif(known.filename)
        mac = bytes(request.hw_addr)
        if request.mode:
            mac = bytes(6)
        elif not any(mac):
            mac = _any_mac()
        port = self._new(f"memif{known.id}/{request.id}", "memif", mac)
        port.more = {
            "id": request.id,
            "socket_id": known.id,
            "role": request.role,
            "mode": request.mode,
            "secret": request.secret,
        }
        return {"sw_if_index": port.index}

    def memif_delete(self, request: Any) -> Fields:
        port = self._delete(request.sw_if_index, "memif", INVALID_SW_IF_INDEX)
        known = self.memif_sockets[port.more["socket_id"]]
        if known.listener and not any(
            p.more.get("socket_id") == known.id for p in self.interfaces.values()
        ):
            # The socket's file stays.
            known.listener.close()
            known.listener = None
        return {}

    def memif_dump(self, _: Any) -> list[Fields]:
        return [
            {
                "sw_if_index": port.index,
                "hw_addr": port.mac,
                "id": port.more["id"],
                "role": port.more["role"],
                "mode": port.more["mode"],
                "socket_id": port.more["socket_id"],
                # The ring size of a connection; there is none.
                "ring_size": 1,
                "buffer_size": 0,
                "flags": _ADMIN_UP if port.up else 0,
                "if_name": port.name,
            }
            for port in self.interfaces.values()
            if port.kind == "memif"
        ]

    # -- vhost-user

    def create_vhost_user_if_v2(self, request: Any) -> Fields:
        path = request.sock_filename
        if any(p.more.get("sock_filename") == path for p in self.interfaces.values()):
            raise Refusal(IF_ALREADY_EXISTS)
        listener = None
        if request.is_server:
            # VPP replaces any existing file.
            with contextlib.suppress(OSError):
                os.unlink(path)
            listener = _bound(path, socket.SOCK_STREAM, SYSCALL_ERROR_2)
        used = {p.name for p in self.interfaces.values()}
        name = next(n for i in range(1 << 16) if (n := f"VirtualEthernet0/0/{i}") not in used)
        if request.renumber:
            name = f"VirtualEthernet0/0/{request.custom_dev_instance}"
        mac = bytes(request.mac_address) if request.use_custom_mac else _any_mac()
        port = self._new(name, "vhost-user", mac)
        port.tag = request.tag
        port.more = {"sock_filename": path, "is_server": bool(request.is_server)}
        if listener:
            self._vhosts[port.index] = listener
        return {"sw_if_index": port.index}

    def delete_vhost_user_if(self, request: Any) -> Fields:
        port = self._delete(request.sw_if_index, "vhost-user", INVALID_SW_IF_INDEX)
        listener = self._vhosts.pop(port.index, None)
        if listener:
            listener.close()
            with contextlib.suppress(OSError):
                os.unlink(port.more["sock_filename"])
        return {}

    # -- kernel ports

    def af_packet_create_v3(self, request: Any) -> Fields:
        name = request.host_if_name
        if name not in {known for _, known in socket.if_nameindex()}:
            raise Refusal(INVALID_INTERFACE)
        if any(p.name == f"host-{name}" for p in self.interfaces.values()):
            raise Refusal(SUBIF_ALREADY_EXISTS)
        mac = _any_mac() if request.use_random_hw_addr else bytes(request.hw_addr)
        return {"sw_if_index": self._new(f"host-{name}", "af-packet", mac).index}

    def af_packet_delete(self, request: Any) -> Fields:
        name = f"host-{request.host_if_name}"
        found = next((p for p in self.interfaces.values() if p.name == name), None)
        if found is None:
            raise Refusal(SYSCALL_ERROR_1)
        self._delete(found.index, "af-packet", SYSCALL_ERROR_1)
        return {}

    def tap_create_v3(self, request: Any) -> Fields:
        if not Path("/dev/vhost-net").exists():
            raise Refusal(SYSCALL_ERROR_1)
        used = {p.more.get("tap") for p in self.interfaces.values()}
        number = request.id if request.id != NONE else next(i for i in range(1024) if i not in used)
        mac = _any_mac() if request.use_random_mac else bytes(request.mac_address)
        port = self._new(f"tap{number}", "virtio", mac)
        port.tag = request.tag
        port.more["tap"] = number
        return {"sw_if_index": port.index}

    def tap_delete_v2(self, request: Any) -> Fields:
        self._delete(request.sw_if_index, "virtio", INVALID_SW_IF_INDEX)
        return {}

    # -- ip

    def sw_interface_add_del_address(self, request: Any) -> Fields:
        port = self._port(request.sw_if_index)
        if request.del_all:
            port.addresses.clear()
            return {}
        address = ip_interface(_parsed(request.prefix))
        if not request.is_add:
            if address not in port.addresses:
                raise Refusal(-60)
            port.addresses.remove(address)
            return {}
        table = port.tables[address.version]
        if address.version == 6 and address in port.addresses:
            return {}
        refusal = ADDRESS_IN_USE if address.version == 4 else DUPLICATE_IF_ADDRESS
        for other in self.interfaces.values():
            if other.tables[address.version] != table:
                continue
            for taken in other.addresses:
                if taken.version != address.version:
                    continue
                if taken.ip == address.ip or (
                    other is not port and taken.network.overlaps(address.network)
                ):
                    self._last_error = refusal
                    raise Refusal(refusal)
        port.addresses.append(address)
        return {}

    def ip_address_dump(self, request: Any) -> list[Fields]:
        port = self.interfaces.get(request.sw_if_index)
        version = 6 if request.is_ipv6 else 4
        return [
            {"sw_if_index": request.sw_if_index, "prefix": _packed(a.ip, a.network.prefixlen)}
            for a in (port.addresses if port else ())
            if a.version == version
        ]

    def ip_unnumbered_dump(self, request: Any) -> list[Fields]:
        return [
            {"sw_if_index": port.index, "ip_sw_if_index": port.lender}
            for port in self.interfaces.values()
            if port.lender is not None and request.sw_if_index in (NONE, port.index)
        ]

    def sw_interface_set_unnumbered(self, request: Any) -> Fields:
        lender = self._port(request.sw_if_index)
        borrower = self._port(request.unnumbered_sw_if_index)
        if lender.tables != borrower.tables:
            raise Refusal(UNEXPECTED_INTF_STATE)
        borrower.lender = request.sw_if_index if request.is_add else None
        return {}

    def sw_interface_ip6_enable_disable(self, request: Any) -> Fields:
        port = self._port(request.sw_if_index)
        port.ip6 = bool(request.enable)
        return {}

    def ip_table_add_del(self, request: Any) -> Fields:
        key = request.table.table_id, _version(request.table.is_ip6)
        if request.is_add:
            self.tables.setdefault(key, request.table.name)
        else:
            self.tables.pop(key, None)
        return {}

    def ip_table_dump(self, _: Any) -> list[Fields]:
        return [
            {"table": {"table_id": number, "is_ip6": version == 6, "name": name}}
            for (number, version), name in self.tables.items()
        ]

    def sw_interface_set_table(self, request: Any) -> Fields:
        port, version = self._port(request.sw_if_index), _version(request.is_ipv6)
        if (request.vrf_id, version) not in self.tables:
            raise Refusal(NO_SUCH_FIB)
        if any(address.version == version for address in port.addresses):
            raise Refusal(-114)
        port.tables[version] = request.vrf_id
        return {}

    def sw_interface_get_table(self, request: Any) -> Fields:
        port = self._port(request.sw_if_index)
        return {"vrf_id": port.tables[_version(request.is_ipv6)]}

    def ip_route_add_del(self, request: Any) -> Fields:
        route = request.route
        key = route.table_id, ip_network(_parsed(route.prefix))
        if (route.table_id, key[1].version) not in self.tables:
            raise Refusal(NO_SUCH_FIB)
        if request.is_add:
            path = route.paths[0]
            self.routes[key] = path.sw_if_index, bytes(path.nh.address.ip6)
        else:
            self.routes.pop(key, None)
        return {}

    def ip_route_dump(self, request: Any) -> list[Fields]:
        table, version = request.table.table_id, _version(request.table.is_ip6)
        if (table, version) not in self.tables:
            return []
        own = [(ip_network("0.0.0.0/0" if version == 4 else "::/0"), _DROP)]
        if version == 6:
            own.append((ip_network("fe80::/10"), 0))
        return [{"route": _route(table, network, NONE, kind)} for network, kind in own] + [
            {"route": _route(table, network, index)}
            for (number, network), (index, _) in self.routes.items()
            if number == table and network.version == version
        ]

    def ip_route_lookup(self, request: Any) -> Fields:
        network = ip_network(_parsed(request.prefix))
        if (request.table_id, network.version) not in self.tables:
            raise Refusal(NO_SUCH_FIB)
        found = self.routes.get((request.table_id, network))
        if found is None:
            raise Refusal(NO_SUCH_ENTRY)
        return {"route": _route(request.table_id, network, found[0])}

    def ip_neighbor_add_del(self, request: Any) -> Fields:
        neighbour = request.neighbor
        self._port(neighbour.sw_if_index)
        address = neighbour.ip_address
        raw = bytes(address.un.ip6 if address.af else address.un.ip4)
        self.neighbours[neighbour.sw_if_index, ip_address(raw)] = bytes(neighbour.mac_address)
        return {"stats_index": 0}

    # -- helpers

    def _new(self, name: str, kind: str, mac: bytes = bytes(6)) -> Interface:
        index = self._free.pop() if self._free else len(self.interfaces)
        port = self.interfaces[index] = Interface(index, name, kind, mac)
        if index == _LOCAL0:
            port.mtu = 0
        return port

    def _port(self, index: int) -> Interface:
        if index not in self.interfaces:
            raise Refusal(INVALID_SW_IF_INDEX)
        return self.interfaces[index]

    def _delete(self, index: int, kind: str, refusal: int) -> Interface:
        port = self.interfaces.get(index)
        if port is None or port.kind != kind:
            raise Refusal(refusal)
        del self.interfaces[index]
        self._free.append(index)
        self.neighbours = {k: v for k, v in self.neighbours.items() if k[0] != index}
        for other in self.interfaces.values():
            if other.lender == index:
                other.lender = None
        return port

    def _members(self, domain: int) -> list[Interface]:
        return [port for port in self.interfaces.values() if port.domain == domain]


def _version(is_ip6: object) -> int:
    return 6 if is_ip6 else 4


def _any_mac() -> bytes:
    return b"\x02\xfe" + random.randbytes(4)


def _parsed(prefix: Any) -> str:
    address = prefix.address
    raw = bytes(address.un.ip6 if address.af else address.un.ip4)
    return f"{ip_address(raw)}/{prefix.len}"


def _packed(address: Any, length: int) -> Fields:
    key = "ip4" if address.version == 4 else "ip6"
    family = 0 if address.version == 4 else 1
    return {"address": {"af": family, "un": {key: address.packed}}, "len": length}


def _route(table: int, network: Any, index: int, kind: int = 0) -> Fields:
    return {
        "table_id": table,
        "prefix": _packed(network.network_address, network.prefixlen),
        "n_paths": 1,
        "paths": [
            {"sw_if_index": index, "table_id": table, "type": kind, "label_stack": [{}] * 16}
        ],
    }


def _listen_for_memif(filename: str) -> socket.socket | None:
    if filename.startswith("abstract:"):
        _, _, netns = filename.removeprefix("abstract:").partition(",netns_name=")
        if netns and not Path(netns).exists():
            raise Refusal(SYSCALL_ERROR_4)
        return None
    # A socket on which nobody listens is replaced.
    with (
        contextlib.suppress(OSError),
        socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as probe,
    ):
        try:
            probe.connect(filename)
        except ConnectionRefusedError:
            os.unlink(filename)
    return _bound(filename, socket.SOCK_SEQPACKET, SYSCALL_ERROR_4)


def _bound(path: str, kind: int, refusal: int) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, kind)
    try:
        listener.bind(path)
    except OSError:
        listener.close()
        raise Refusal(refusal) from None
    os.chmod(path, 0o775)
    listener.listen()
    return listener
