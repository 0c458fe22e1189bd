"""Our codec compared with pyroute2: requests to the kernel and decoded answers."""

from __future__ import annotations

import inspect
import struct
from collections.abc import Callable
from ipaddress import ip_address, ip_interface, ip_network
from typing import TYPE_CHECKING, Any, NoReturn

import pytest
from attrs import define, evolve
from hypothesis import given
from hypothesis import strategies as st
from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg

from lab.netns import Namespace
from userspace_cni.kernel import addresses, bridges, links, routes, veth
from userspace_cni.kernel.links import Link, Links
from userspace_cni.kernel.netlink import DUMP, attribute

if TYPE_CHECKING:
    from collections.abc import Iterator

REQUEST, ACK, DUMPED, CREATE, EXCLUSIVE = 0x1, 0x4, 0x300, 0x400, 0x200
NEWLINK, DELLINK, GETLINK, SETLINK, NEWADDR, GETADDR, NEWROUTE, GETROUTE = (
    *(16, 17, 18, 19),
    *(20, 22),
    *(24, 26),
)
AF_INET, AF_INET6, AF_BRIDGE = 2, 10, 7
ETH = Link(
    index=7,
    name="eth0",
    kind="veth",
    alias="",
    mac="02:00:00:00:00:01",
    mtu=1500,
    up=True,
    operational=True,
    promiscuous=False,
    master=0,
    parent=0,
    far_end=(9, 3),
    vlan_filtering=False,
    vlan_id=0,
    hairpin=False,
    isolated=False,
)
MAC = "02:00:00:00:00:02"
SKIP_STATS = ("IFLA_EXT_MASK", 8)


@define
class Case:
    """A request of ours and the same message built by pyroute2."""

    #: The function that sends the request.
    of: Callable[..., object]
    call: Callable[[Links], object]
    message: type[Any]
    number: int
    flags: int
    fields: dict[str, Any]
    attrs: list[Any]

    def theirs(self) -> bytes:
        message = self.message()
        for key, value in self.fields.items():
            message[key] = value
        message["attrs"] = self.attrs
        header = message["header"]
        header["type"], header["flags"] = self.number, REQUEST | ACK | self.flags
        header["sequence_number"], header["pid"] = 1, 0
        message.encode()
        return bytes(message.data)


def info(kind: str, *data: Any) -> tuple[str, Any]:
    attrs: list[Any] = [("IFLA_INFO_KIND", kind)]
    if data:
        attrs.append(("IFLA_INFO_DATA", {"attrs": [*data]}))
    return "IFLA_LINKINFO", {"attrs": attrs}


def spec(*attrs: Any) -> tuple[str, Any]:
    return "IFLA_AF_SPEC", {"attrs": [*attrs]}


def vlan(vid: int, flags: int = 0) -> tuple[str, Any]:
    return "IFLA_BRIDGE_VLAN_INFO", {"flags": flags, "vid": vid}


def link_case(
    of: Callable[..., object],
    call: Callable[[Links], object],
    type_: int,
    *attrs: Any,
    flags: int = 0,
    ifi_flags: int = 0,
    **fields: int,
) -> Case:
    fields = {"family": 0, "flags": ifi_flags, **fields}
    return Case(of, call, ifinfmsg, type_, flags, fields, [*attrs])


def address_case(
    call: Callable[[Links], object], text: str, flags: int, of: Any = addresses.add_address
) -> Case:
    interface = ip_interface(text)
    family = AF_INET6 if interface.version == 6 else AF_INET
    address = str(interface.ip)
    return Case(
        of,
        call,
        ifaddrmsg,
        NEWADDR,
        CREATE | EXCLUSIVE,
        {"family": family, "prefixlen": interface.network.prefixlen, "index": 7},
        [("IFA_LOCAL", address), ("IFA_ADDRESS", address), ("IFA_FLAGS", flags)],
    )


def route_case(
    call: Callable[[Links], object], family: int, length: int, *attrs: Any, scope: int = 0
) -> Case:
    fields = {"family": family, "dst_len": length, "proto": 4, "scope": scope, "type": 1}
    fields["table"] = 0
    return Case(routes.add_route, call, rtmsg, NEWROUTE, CREATE | EXCLUSIVE, fields, [*attrs])


NEW = CREATE | EXCLUSIVE
PEER = {
    "index": 0,
    "attrs": [
        ("IFLA_IFNAME", "eth0"),
        ("IFLA_ADDRESS", MAC),
        ("IFLA_MTU", 1400),
        ("IFLA_NET_NS_FD", 5),
    ],
}
CASES = {
    "find": link_case(
        Links.find,
        lambda k: k.find("eth0"),
        GETLINK,
        SKIP_STATS,
        ("IFLA_IFNAME", "eth0"),
    ),
    "require": link_case(
        Links.require,
        lambda k: k.require("a-name-of-15-ch"),
        GETLINK,
        SKIP_STATS,
        ("IFLA_IFNAME", "a-name-of-15-ch"),
    ),
    "at": link_case(Links.at, lambda k: k.at(7), GETLINK, SKIP_STATS, index=7),
    "at far end": link_case(
        Links.at_far_end,
        lambda k: k.at_far_end(ETH),
        GETLINK,
        SKIP_STATS,
        ("IFLA_IF_NETNSID", 3),
        index=9,
    ),
    "all": link_case(Links.all, Links.all, GETLINK, SKIP_STATS, flags=DUMPED),
    "remove": link_case(Links.remove, lambda k: k.remove(ETH), DELLINK, index=7),
    "create a veth": link_case(
        Links.create,
        lambda k: k.create(
            "uc0",
            "veth",
            veth.peer_data(ifname="eth0", address=MAC, mtu=1400, net_ns_fd=5),
            address=ETH.mac,
            mtu=1400,
            master=4,
        ),
        NEWLINK,
        ("IFLA_IFNAME", "uc0"),
        ("IFLA_ADDRESS", ETH.mac),
        ("IFLA_MTU", 1400),
        ("IFLA_MASTER", 4),
        info("veth", ("VETH_INFO_PEER", PEER)),
        flags=NEW,
    ),
    "create a bridge": link_case(
        Links.create,
        lambda k: k.create("br0", "bridge", bridges.bridge_data(), address=MAC),
        NEWLINK,
        ("IFLA_IFNAME", "br0"),
        ("IFLA_ADDRESS", MAC),
        info("bridge", ("IFLA_BR_STP_STATE", 0)),
        flags=NEW,
    ),
    "create a VLAN": link_case(
        Links.create,
        lambda k: k.create("br0.5", "vlan", bridges.vlan_data(5), link=4),
        NEWLINK,
        ("IFLA_IFNAME", "br0.5"),
        ("IFLA_LINK", 4),
        info("vlan", ("IFLA_VLAN_ID", 5)),
        flags=NEW,
    ),
    "create a macvlan": link_case(
        Links.create,
        lambda k: k.create("uc0", "macvlan", attribute(1, 8), link=4, net_ns_fd=5),
        NEWLINK,
        ("IFLA_IFNAME", "uc0"),
        ("IFLA_LINK", 4),
        ("IFLA_NET_NS_FD", 5),
        info("macvlan", ("IFLA_MACVLAN_MODE", "passthru")),
        flags=NEW,
    ),
    "create an ifb": link_case(
        Links.create,
        lambda k: k.create("ul0", "ifb"),
        NEWLINK,
        ("IFLA_IFNAME", "ul0"),
        info("ifb"),
        flags=NEW,
    ),
    "change a link": link_case(
        Links.change,
        lambda k: k.change(ETH, ifalias="ours \u00fc", ifname="eth1", up=True),
        SETLINK,
        ("IFLA_IFALIAS", "ours \u00fc"),
        ("IFLA_IFNAME", "eth1"),
        index=7,
        ifi_flags=1,
        change=1,
    ),
    "change a link that nobody looked up": link_case(
        Links.change,
        lambda k: k.change("eth0", mtu=9000, up=False),
        SETLINK,
        ("IFLA_IFNAME", "eth0"),
        ("IFLA_MTU", 9000),
        change=1,
    ),
    "make a link promiscuous": link_case(
        Links.change,
        lambda k: k.change(ETH, promiscuous=True),
        SETLINK,
        index=7,
        ifi_flags=0x100,
        change=0x100,
    ),
    "filter VLANs": link_case(
        bridges.filter_vlans,
        lambda k: bridges.filter_vlans(k, ETH),
        NEWLINK,
        info("bridge", ("IFLA_BR_STP_STATE", 0), ("IFLA_BR_VLAN_FILTERING", 1)),
        index=7,
    ),
    "set a port": link_case(
        bridges.set_port,
        lambda k: bridges.set_port(k, ETH, hairpin=True, isolated=True),
        SETLINK,
        (
            "IFLA_PROTINFO",
            {"attrs": [("IFLA_BRPORT_MODE", 1), ("IFLA_BRPORT_ISOLATED", 1)]},
            0x8000,  # NLA_F_NESTED, which the kernel demands here
        ),
        family=AF_BRIDGE,
        index=7,
    ),
    "add the own VLAN": link_case(
        bridges.add_vlans,
        lambda k: bridges.add_vlans(k, ETH, range(5, 6), own=True),
        SETLINK,
        spec(vlan(5, 0x6)),
        family=AF_BRIDGE,
        index=7,
    ),
    "add a range of VLANs": link_case(
        bridges.add_vlans,
        lambda k: bridges.add_vlans(k, ETH, range(5, 10)),
        SETLINK,
        spec(vlan(5, 0x8), vlan(9, 0x10)),
        family=AF_BRIDGE,
        index=7,
    ),
    "add a VLAN of the bridge itself": link_case(
        bridges.add_vlans,
        lambda k: bridges.add_vlans(k, ETH, range(5, 6), itself=True),
        SETLINK,
        spec(("IFLA_BRIDGE_FLAGS", 2), vlan(5)),
        family=AF_BRIDGE,
        index=7,
    ),
    "remove a VLAN": link_case(
        bridges.remove_vlan,
        lambda k: bridges.remove_vlan(k, ETH, 1),
        DELLINK,
        spec(vlan(1)),
        family=AF_BRIDGE,
        index=7,
    ),
    "add an address": address_case(
        lambda k: addresses.add_address(k, ETH, ip_interface("10.0.0.2/24")), "10.0.0.2/24", 0
    ),
    "add an address without its subnet": address_case(
        lambda k: addresses.add_address(k, ETH, ip_interface("fd00::2/64"), prefix_route=False),
        "fd00::2/64",
        0x202,
    ),
    "ensure an address": address_case(
        lambda k: addresses.ensure_address(k, ETH, ip_interface("fd00::1/128")),
        "fd00::1/128",
        0x2,
        addresses.ensure_address,
    ),
    "read addresses": Case(
        addresses.addresses_of,
        lambda k: addresses.addresses_of(k, ETH),
        ifaddrmsg,
        GETADDR,
        DUMPED,
        {"index": 7},
        [],
    ),
    "add a route": route_case(
        lambda k: routes.add_route(
            k,
            ETH,
            ip_network("10.1.0.0/16"),
            ip_address("10.0.0.1"),
            src=ip_address("10.0.0.2"),
            table=1000,
            priority=7,
            metrics={routes.RTAX_MTU: 1400, routes.RTAX_ADVMSS: 1360},
        ),
        AF_INET,
        16,
        ("RTA_OIF", 7),
        ("RTA_TABLE", 1000),
        ("RTA_DST", "10.1.0.0"),
        ("RTA_GATEWAY", "10.0.0.1"),
        ("RTA_PREFSRC", "10.0.0.2"),
        ("RTA_PRIORITY", 7),
        ("RTA_METRICS", {"attrs": [("RTAX_MTU", 1400), ("RTAX_ADVMSS", 1360)]}),
    ),
    "add a default route": route_case(
        lambda k: routes.add_route(k, ETH, ip_network("::/0"), ip_address("fd00::1")),
        AF_INET6,
        0,
        ("RTA_OIF", 7),
        ("RTA_TABLE", 254),
        ("RTA_GATEWAY", "fd00::1"),
    ),
    "add a route on the link": route_case(
        lambda k: routes.add_route(k, ETH, ip_network("10.0.0.9/32"), scope=routes.SCOPE_LINK),
        AF_INET,
        32,
        ("RTA_OIF", 7),
        ("RTA_TABLE", 254),
        ("RTA_DST", "10.0.0.9"),
        scope=253,
    ),
    "read routes": Case(
        routes.routes_of,
        lambda k: routes.routes_of(k, ETH),
        rtmsg,
        GETROUTE,
        DUMPED,
        {"family": AF_INET, "table": 0, "proto": 0, "scope": 0, "type": 0},
        [("RTA_OIF", 7)],
    ),
    "read all routes": Case(
        routes.default_interface,
        routes.default_interface,
        rtmsg,
        GETROUTE,
        DUMPED,
        {"family": AF_INET, "table": 0, "proto": 0, "scope": 0, "type": 0},
        [],
    ),
}


class _Sent(Exception):
    """Raised with the bytes that a request would send."""


class _Socket:
    def send(self, data: bytes) -> NoReturn:
        raise _Sent(data)


def ours(call: Callable[[Links], object]) -> bytes:
    with Links() as kernel:
        kernel._socket.close()
        kernel._socket = _Socket()  # type: ignore[assignment]
        with pytest.raises(_Sent) as sent:
            call(kernel)
        kernel.close = lambda: None  # type: ignore[method-assign]
    data = sent.value.args[0]
    assert isinstance(data, bytes)
    return data


@pytest.mark.parametrize("name", CASES)
def test_both_encode_the_same_bytes(name: str) -> None:
    assert ours(CASES[name].call).hex(" ", 4) == CASES[name].theirs().hex(" ", 4)


def test_every_request_of_the_codec_is_compared() -> None:
    methods = {
        method
        for name, method in inspect.getmembers(Links, inspect.isfunction)
        if not name.startswith("_") and name not in ("close", "request")
    }
    functions = {
        function
        for module in (addresses, routes, bridges)
        for name, function in inspect.getmembers(module, inspect.isfunction)
        if not name.startswith("_")
        and function.__module__ == module.__name__
        and next(iter(inspect.signature(function).parameters), "") == "links"
    }
    assert {case.of for case in CASES.values()} == methods | functions


# -- answers of the kernel


def pyroutes(kind: type[Any], body: bytes) -> Any:
    """Decode the body of a message by pyroute2."""
    message = kind(struct.pack("=IHHII", 16 + len(body), 0, 0, 0, 0) + body)
    message.decode()
    return message


def as_link(body: bytes) -> Link:
    """Decode an interface by pyroute2."""
    message = pyroutes(ifinfmsg, body)
    about = message.get_attr("IFLA_LINKINFO") or ifinfmsg.ifinfo()
    kind = about.get_attr("IFLA_INFO_KIND") or ""
    data: Any = about.get_attr("IFLA_INFO_DATA") if kind in ("bridge", "vlan") else None
    port: Any = about.get_attr("IFLA_INFO_SLAVE_DATA")
    netnsid = message.get_attr("IFLA_LINK_NETNSID")
    parent = message.get_attr("IFLA_LINK") or 0
    return Link(
        index=message["index"],
        name=message.get_attr("IFLA_IFNAME"),
        kind=kind,
        alias=message.get_attr("IFLA_IFALIAS") or "",
        mac=message.get_attr("IFLA_ADDRESS") or "",
        mtu=message.get_attr("IFLA_MTU") or 0,
        up=bool(message["flags"] & 1),
        operational=message.get_attr("IFLA_OPERSTATE") == "UP",
        promiscuous=bool(message["flags"] & 0x100),
        master=message.get_attr("IFLA_MASTER") or 0,
        parent=0 if netnsid is not None else parent,
        far_end=(parent, netnsid) if netnsid is not None and kind == "veth" else None,
        vlan_filtering=kind == "bridge" and bool(data.get_attr("IFLA_BR_VLAN_FILTERING")),
        vlan_id=data.get_attr("IFLA_VLAN_ID") if kind == "vlan" else 0,
        hairpin=bool(port and port.get_attr("IFLA_BRPORT_MODE")),
        isolated=bool(port and port.get_attr("IFLA_BRPORT_ISOLATED")),
    )


def as_route(body: bytes) -> routes.KernelRoute | None:
    message = pyroutes(rtmsg, body)
    if message["type"] != 1:
        return None
    everything = "::" if message["family"] == AF_INET6 else "0.0.0.0"
    return routes.KernelRoute(
        dst=f"{message.get_attr('RTA_DST') or everything}/{message['dst_len']}",
        gw=message.get_attr("RTA_GATEWAY"),
        table=message.get_attr("RTA_TABLE") or message["table"],
        priority=message.get_attr("RTA_PRIORITY") or 0,
        src=message.get_attr("RTA_PREFSRC"),
        scope=message["scope"],
        oif=message.get_attr("RTA_OIF") or 0,
    )


def as_address(body: bytes) -> str:
    message = pyroutes(ifaddrmsg, body)
    address = message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS")
    return f"{address}/{message['prefixlen']}"


@pytest.fixture
def host() -> Iterator[Namespace]:
    """A namespace with an interface of each kind, addresses and routes."""
    with Namespace() as host, Namespace() as other:
        for command in (
            f"link add br0 address {MAC} mtu 1400 type bridge",
            "link set br0 alias bridge up",
            "link add veth0 type veth peer name far0",
            "link set veth0 master br0 up promisc on",
            "link set veth0 type bridge_slave hairpin on isolated on",
            "link add veth1 type veth peer name veth2",
            "link set veth1 up",
            "link set veth2 up",
            "link add macvlan0 link veth1 type macvlan mode bridge",
            "link add ifb7 type ifb",
            "tuntap add tap0 mode tap",
            "address add 10.0.0.1/24 dev veth1",
            "address add 10.9.0.1 peer 10.9.0.2/32 dev veth1",
            "address add fd00::1/64 dev veth1 nodad",
            "route add 10.1.0.0/16 via 10.0.0.9 metric 5 src 10.0.0.1",
            "route add default via 10.0.0.9 table 1000",
            "route add 10.3.0.0/16 nexthop via 10.0.0.8 nexthop via 10.0.0.9",
            "route add default via fd00::9 dev veth1",
            "route add blackhole 10.4.0.0/16",
        ):
            host.run("ip", *command.split())
        with host.call(Links) as kernel, open(other.path) as there:
            kernel.change("far0", net_ns_fd=there.fileno())
        yield host


def answers(host: Namespace, type_: int, body: bytes) -> list[bytes]:
    with host.call(Links) as kernel:
        return kernel.request("dump", type_, body, DUMP)


def test_both_read_the_same_in_the_kernels_links(host: Namespace) -> None:
    found = answers(host, GETLINK, links.link_body(0))
    assert [links.decode(body) for body in found] == [as_link(body) for body in found]
    seen = {link.name: link for link in map(links.decode, found)}
    assert {link.kind for link in seen.values()} >= {
        *("bridge", "veth", "macvlan", "tun", "ifb"),
    }
    assert (seen["veth0"].hairpin, seen["veth0"].isolated) == (True, True)
    assert (seen["veth0"].promiscuous, seen["veth0"].master) == (True, seen["br0"].index)


def test_both_read_the_same_in_the_kernels_addresses(host: Namespace) -> None:
    found = answers(host, GETADDR, bytes(8))
    assert [addresses.decode(body) for body in found] == [as_address(body) for body in found]
    assert {"10.0.0.1/24", "10.9.0.1/32", "fd00::1/64"} <= {*map(addresses.decode, found)}


@pytest.mark.parametrize("family", [AF_INET, AF_INET6])
def test_both_read_the_same_in_the_kernels_routes(host: Namespace, family: int) -> None:
    found = answers(host, GETROUTE, struct.pack("=B11x", family))
    assert [routes.decode(body) for body in found] == [as_route(body) for body in found]
    assert len(found) > 3


LINKS = st.builds(
    evolve,
    st.just(ETH),
    index=st.integers(1, 2**31 - 1),
    name=st.text("abcxyz0123456789.-_", min_size=1, max_size=15),
    alias=st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=80),
    mtu=st.integers(68, 65535),
    up=st.booleans(),
    promiscuous=st.booleans(),
    operational=st.booleans(),
    kind=st.sampled_from(["bridge", "vlan", "veth", "tun"]),
    vlan_id=st.integers(1, 4094),
    vlan_filtering=st.booleans(),
    far_end=st.one_of(st.none(), st.tuples(st.integers(1, 2**31 - 1), st.integers(0, 2**31 - 1))),
    master=st.integers(0, 2**31 - 1),
)


@given(LINKS)
def test_what_pyroute2_encodes_is_read(link: Link) -> None:
    data: dict[str, Any] = {
        "bridge": [("IFLA_BR_VLAN_FILTERING", int(link.vlan_filtering))],
        "vlan": [("IFLA_VLAN_ID", link.vlan_id)],
    }
    attrs = [
        ("IFLA_IFNAME", link.name),
        ("IFLA_IFALIAS", link.alias),
        ("IFLA_ADDRESS", link.mac),
        ("IFLA_MTU", link.mtu),
        ("IFLA_OPERSTATE", "UP" if link.operational else "DOWN"),
        info(link.kind, *data.get(link.kind, ())),
    ]
    if link.master:
        attrs.append(("IFLA_MASTER", link.master))
    if link.far_end is not None:
        attrs += [("IFLA_LINK", link.far_end[0]), ("IFLA_LINK_NETNSID", link.far_end[1])]
    flags = int(link.up) | 0x100 * int(link.promiscuous)
    fields = {"index": link.index, "flags": flags}
    case = Case(Links.all, Links.all, ifinfmsg, NEWLINK, 0, fields, attrs)
    body = case.theirs()[16:]
    expected = evolve(
        link,
        vlan_id=link.vlan_id if link.kind == "vlan" else 0,
        vlan_filtering=link.vlan_filtering and link.kind == "bridge",
        far_end=link.far_end if link.kind == "veth" else None,
    )
    assert links.decode(body) == expected == as_link(body)
