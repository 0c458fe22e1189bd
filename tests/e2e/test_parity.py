"""Comparison with the reference plugins `bridge` and `ptp` on equivalent networks."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from attrs import field, frozen

from lab import conf as lab_conf
from lab.node import Node
from lab.plugin import REFERENCE_PLUGINS, Outcome, Plugin

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.own_process("a lab node has namespaces of its own")

Json = dict[str, Any]

V4, V6 = [{"subnet": "10.55.0.0/24"}], [{"subnet": "fd55::/64"}]
MAC = "02:00:00:00:00:77"


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    with Node() as node:
        yield node


@frozen
class Case:
    """A network in the configuration of the reference plugin and in ours."""

    id: str
    reference: Json
    ours: Json
    ranges: tuple[Any, ...] = (V4,)
    routes: tuple[Json, ...] = ()
    #: Keys common to both.
    common: Json = field(factory=dict)
    args: str = ""
    version: str = "1.0.0"


def _bridge(**keys: Any) -> Json:
    bridge = {"bridgeName": "par0", **keys}
    return {"host": {"engine": "linux", "iftype": "veth", "netType": "bridge", "bridge": bridge}}


def _go_bridge(**keys: Any) -> Json:
    return {"type": "bridge", "bridge": "par0", **keys}


ROUTED = {"host": {"engine": "linux", "iftype": "veth", "netType": "interface"}}
PTP = {"type": "ptp"}
GATEWAY = (_go_bridge(isDefaultGateway=True), _bridge(gateway=True, defaultRoute=True))
FAR = {"dst": "10.200.0.0/16"}
NEAR = {"dst": "10.201.0.0/16", "gw": "10.55.0.200"}
FAR6 = {"dst": "fd99::/48"}

CASES = [
    Case("bridge", _go_bridge(), _bridge()),
    Case("bridge with gateway", _go_bridge(isGateway=True), _bridge(gateway=True)),
    Case("bridge with default route", *GATEWAY),
    Case("bridge with both families", *GATEWAY, ranges=(V4, V6), routes=(FAR, FAR6)),
    Case("bridge with routes", *GATEWAY, routes=(FAR, NEAR)),
    Case("bridge with IPAM's default route", _go_bridge(isGateway=True), _bridge(gateway=True),
         routes=({"dst": "0.0.0.0/0"},)),
    Case("bridge with mtu", *GATEWAY, common={"mtu": 1380}),
    Case("bridge with dns", *GATEWAY, common={
        "dns": {"nameservers": ["10.55.0.1"], "domain": "d.example", "search": ["s.example"],
                "options": ["ndots:3"]}}),
    Case("bridge with hairpin", _go_bridge(hairpinMode=True), _bridge(hairpin=True)),
    Case("bridge with MAC by CNI_ARGS", GATEWAY[0], GATEWAY[1] | {"macFromArgs": True},
         args=f"IgnoreUnknown=1;MAC={MAC}"),
    Case("bridge with MAC by args", *GATEWAY, common={"args": {"cni": {"mac": MAC}}}),
    Case("bridge with MAC by capability", *GATEWAY,
         common={"capabilities": {"mac": True}, "runtimeConfig": {"mac": MAC}}),
    Case("bridge with MAC by all", *GATEWAY, args="IgnoreUnknown=1;MAC=02:00:00:00:00:01",
         common={"runtimeConfig": {"mac": MAC}, "args": {"cni": {"mac": "02:00:00:00:00:02"}}}),
    *(Case(f"bridge at {version}", *GATEWAY, ranges=(V4, V6), routes=(FAR,), version=version)
      for version in ("0.2.0", "0.4.0")),
    Case("ptp", PTP, ROUTED),
    Case("ptp with both families", PTP, ROUTED, ranges=(V4, V6), routes=(FAR, FAR6)),
    Case("ptp with default routes", PTP, ROUTED, ranges=(V4, V6),
         routes=({"dst": "0.0.0.0/0"}, {"dst": "::/0"})),
    Case("ptp with mtu and dns", PTP, ROUTED,
         common={"mtu": 1320, "dns": {"nameservers": ["10.55.0.53"]}}),
    Case("ptp at 0.2.0", PTP, ROUTED, version="0.2.0"),
]  # fmt: skip


@frozen
class Seen:
    """The effect of one plugin: its result and the state of container and host."""

    result: Json
    link: Json
    addresses: list[Json]
    routes: list[Json]
    host: list[Json]
    bridge: Json | None


def _execute(
    who: str, command: str, conf: Json, *, plugin: Plugin, node: Node, netns: str, args: str
) -> Outcome:
    if who == "ours":
        return plugin.call(command, conf, netns=netns, node=node, args=args)
    done = node.run(
        [str(REFERENCE_PLUGINS / conf["type"])],
        env={
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": "c1",
            "CNI_NETNS": netns,
            "CNI_IFNAME": "eth0",
            "CNI_ARGS": args,
            "CNI_PATH": str(plugin.bin_dir),
        },
        stdin=json.dumps(conf),
        check=False,
    )
    return Outcome(status=done.returncode, out=done.stdout, err=done.stderr)


def _normal(result: Json) -> Json:
    """Return *result* without names and addresses that each plugin generates."""
    result = {key: value for key, value in result.items() if value not in ({}, [])}
    for interface in result.get("interfaces", []):
        if not interface.get("sandbox") and interface["name"] != "par0":
            interface["name"] = "the host's end"
        if interface["mac"] != MAC:
            interface["mac"] = "made up"
    return result


def _routes(node: Node, netns: str) -> list[Json]:
    found = []
    for family in ("-4", "-6"):
        for route in json.loads(node.enter(netns, ["ip", family, "-j", "route"])):
            if route["dst"] != "fe80::/64":
                keys = ("dst", "gateway", "dev", "scope", "prefsrc")
                found.append({"family": family, **{k: route[k] for k in keys if k in route}})
    return sorted(found, key=str)


def _addresses(link: Json) -> list[Json]:
    return sorted(
        (
            {key: address[key] for key in ("family", "local", "prefixlen", "scope")}
            for address in link["addr_info"]
            if address["scope"] != "link"
        ),
        key=str,
    )


def _seen(who: str, case: Case, plugin: Plugin, node: Node) -> Seen:
    """Attach and detach, and inspect the state after each."""
    own = case.reference if who == "reference" else {"type": "userspace", **case.ours}
    ipam = {
        "type": "host-local",
        "dataDir": str(plugin.bin_dir.parent / who),
        "ranges": list(case.ranges),
        "routes": list(case.routes),
    }
    conf = {"cniVersion": case.version, "name": "parity", "ipam": ipam, **case.common, **own}
    netns = node.netns("box")
    where: Json = {"plugin": plugin, "node": node, "netns": netns, "args": case.args}
    try:
        result = _execute(who, "ADD", conf, **where).result
        inside = node.links(netns)
        assert set(inside) == {"lo", "eth0"}
        host = {name: link for name, link in node.links().items() if name != "lo"}
        # the reference plugins' CHECK does not find a route whose gateway is implied
        if who == "ours" and case.version in ("0.4.0", "1.0.0"):
            checked = conf | {"prevResult": result}
            _execute(who, "CHECK", checked, **where).succeeded()
        link = inside["eth0"]
        for interface in result.get("interfaces", []):
            links = inside if interface.get("sandbox") else host
            assert interface["mac"] == links[interface["name"]]["address"]
        ends = [link for link in host.values() if link["linkinfo"]["info_kind"] == "veth"]
        seen = Seen(
            result=_normal(result),
            link={
                "mtu": link["mtu"],
                "up": "UP" in link["flags"],
                "kind": link["linkinfo"]["info_kind"],
                "mac": link["address"] if link["address"] == MAC else "made up",
            },
            addresses=_addresses(link),
            routes=_routes(node, netns),
            host=[
                {
                    "mtu": end["mtu"],
                    "addresses": _addresses(end),
                    "master": end.get("master"),
                    "hairpin": end["linkinfo"].get("info_slave_data", {}).get("hairpin"),
                }
                for end in ends
            ],
            bridge={
                "mtu": host["par0"]["mtu"],
                "addresses": _addresses(host["par0"]),
                "up": "UP" in host["par0"]["flags"],
            }
            if "par0" in host
            else None,
        )
        _execute(who, "DEL", conf, **where).succeeded()
        assert set(node.links(netns)) == {"lo"}
        assert node.veths() == []
        assert lab_conf.leases(plugin.bin_dir.parent / who) == []
        return seen
    finally:
        node.run(["ip", "netns", "delete", "box"])
        node.run(["ip", "link", "delete", "par0"], check=False)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_the_reference_plugin_and_ours_do_the_same(case: Case, plugin: Plugin, node: Node) -> None:
    reference = _seen("reference", case, plugin, node)
    ours = _seen("ours", case, plugin, node)
    for name in ("result", "link", "addresses", "routes", "host", "bridge"):
        assert getattr(ours, name) == getattr(reference, name), name
