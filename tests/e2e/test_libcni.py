"""The reference library: verbs and inputs that current runtimes do not use yet."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from lab.client_lab import GATEWAY, NETWORK
from lab.libcni import CniError
from lab.node import poll

if TYPE_CHECKING:
    from collections.abc import Callable

    from lab.client_lab import ClientLab
    from lab.node import Node

pytestmark = pytest.mark.own_process("a lab node has namespaces of its own")

_CNITOOL = [os.environ["CNITOOL"]] if "CNITOOL" in os.environ else []


@pytest.mark.parity
@pytest.mark.parametrize("binary", ["", *_CNITOOL], ids=lambda path: Path(path).name or "library")
def test_the_life_of_an_attachment(client_lab: ClientLab, binary: str) -> None:
    client_lab.network(version="1.1.0", ipam=client_lab.spy_ipam())
    cni = client_lab.libcni(Path(binary) if binary else None)
    netns = client_lab.node.netns("box")
    cni.status(NETWORK)
    result = cni.add(NETWORK, netns)
    assert result["cniVersion"] == "1.1.0"
    assert result["ips"][0]["address"] == "10.77.0.2/24"
    inside = result["interfaces"][result["ips"][0]["interface"]]
    assert inside["name"] == "eth0"
    assert inside["sandbox"] == netns
    assert inside["mac"] == client_lab.node.links(netns)["eth0"]["address"]
    client_lab.node.ping(netns, GATEWAY)
    cni.check(NETWORK, netns)
    cni.delete(NETWORK, netns)
    cni.delete(NETWORK, netns)
    assert list(client_lab.node.links(netns)) == ["lo"]
    client_lab.assert_clean()


def test_check_notices_what_is_missing(client_lab: ClientLab) -> None:
    client_lab.network()
    cni = client_lab.libcni()
    netns = client_lab.node.netns("box")
    cni.add(NETWORK, netns)
    cni.check(NETWORK, netns)
    client_lab.node.enter(netns, ["ip", "address", "flush", "dev", "eth0"])
    with pytest.raises(CniError):
        cni.check(NETWORK, netns)
    client_lab.node.enter(netns, ["ip", "link", "delete", "eth0"])
    with pytest.raises(CniError):
        cni.check(NETWORK, netns)
    cni.delete(NETWORK, netns)
    client_lab.assert_clean()


def test_a_chain_of_reference_plugins(client_lab: ClientLab) -> None:
    portmap: dict[str, Any] = {"type": "portmap", "capabilities": {"portMappings": True}}
    others: list[dict[str, Any]] = [
        {
            "type": "tuning",
            "mac": "02:00:00:00:00:42",
            "sysctl": {"net.ipv4.conf.eth0.arp_ignore": "1"},
        },
        {"type": "bandwidth", "ingressRate": 10_000_000, "ingressBurst": 1_000_000},
    ]
    client_lab.network(chained=[portmap, *others])
    node, cni = client_lab.node, client_lab.libcni()
    netns = node.netns("box")
    ports = {"portMappings": [{"hostPort": 18080, "containerPort": 80, "protocol": "tcp"}]}
    result = cni.add(NETWORK, netns, CAP_ARGS=json.dumps(ports))
    (inside,) = (link for link in result["interfaces"] if link.get("sandbox") == netns)
    assert inside["mac"] == "02:00:00:00:00:42"
    assert node.links(netns)["eth0"]["address"] == "02:00:00:00:00:42"
    assert node.enter(netns, ["cat", "/proc/sys/net/ipv4/conf/eth0/arp_ignore"]).strip() == "1"
    assert "tbf" in node.run(["tc", "qdisc", "show"]).stdout
    assert "18080" in node.run(["iptables", "-t", "nat", "-S"]).stdout
    node.ping(netns, GATEWAY)
    client_lab.network(chained=others)  # Debian's portmap misses its IPv6 rules on IPv4 networks
    cni.check(NETWORK, netns)
    client_lab.network(chained=[portmap, *others])
    cni.delete(NETWORK, netns, CAP_ARGS=json.dumps(ports))
    assert "18080" not in node.run(["iptables", "-t", "nat", "-S"]).stdout
    client_lab.assert_clean()


def test_gc_spares_the_valid_attachments(client_lab: ClientLab) -> None:
    client_lab.network(version="1.1.0", ipam=client_lab.spy_ipam())
    cni = client_lab.libcni()
    boxes = {name: client_lab.node.netns(name) for name in ("kept", "cached", "forgotten")}
    for name, netns in boxes.items():
        cni.add(NETWORK, netns, CNI_CONTAINERID=name)
    # the library has lost its record of this one: nothing but the plugin's own GC finds it
    (cached,) = client_lab.node.path("/var/lib/cni/results").glob(f"{NETWORK}-forgotten-*")
    cached.unlink()
    cni.gc(NETWORK, valid=[("kept", "eth0")])
    assert client_lab.leases == ["10.77.0.2"]
    assert len(client_lab.node.veths()) == 1
    cni.check(NETWORK, boxes["kept"], CNI_CONTAINERID="kept")
    client_lab.node.ping(boxes["kept"], GATEWAY)
    (forwarded,) = client_lab.spy.calls("GC")
    assert forwarded.conf["cni.dev/valid-attachments"] == [
        {"containerID": "kept", "ifname": "eth0"}
    ]
    cni.gc(NETWORK, valid=[])
    client_lab.assert_clean()


def test_gc_without_a_list_is_refused(client_lab: ClientLab) -> None:
    """A missing list must not mean "nothing is valid": the whole node would lose its network."""
    client_lab.network(version="1.1.0", ipam=client_lab.spy_ipam())
    cni = client_lab.libcni()
    kept, cached = (client_lab.node.netns(name) for name in ("kept", "cached"))
    for netns, name in ((kept, "kept"), (cached, "cached")):
        cni.add(NETWORK, netns, CNI_CONTAINERID=name)
    (forgotten,) = client_lab.node.path("/var/lib/cni/results").glob(f"{NETWORK}-kept-*")
    forgotten.unlink()
    with pytest.raises(CniError) as failure:
        cni.gc(NETWORK, valid=None)
    assert failure.value.code == 7
    # the library's own DELs for what it remembers came first; what it does not know is still there
    assert client_lab.leases == ["10.77.0.2"]
    client_lab.node.ping(kept, GATEWAY)
    with pytest.raises(CniError):
        cni.check(NETWORK, cached, CNI_CONTAINERID="cached")
    cni.delete(NETWORK, kept, CNI_CONTAINERID="kept")
    client_lab.assert_clean()


def test_status_asks_ipam_too(client_lab: ClientLab) -> None:
    client_lab.network(version="1.1.0", ipam=client_lab.spy_ipam())
    cni = client_lab.libcni()
    cni.status(NETWORK)
    assert [call.ipam for call in client_lab.spy.calls("STATUS")] == [True]
    client_lab.network(version="1.1.0", ipam=client_lab.spy_ipam(fail=["STATUS"]))
    with pytest.raises(CniError, match="the spy says no") as failure:
        cni.status(NETWORK)
    assert failure.value.code == 50


def _of_a_process(node: Node) -> str:
    pid = node.run(["unshare", "--net", "sh", "-c", "sleep 600 >/dev/null 2>&1 & echo $!"]).stdout
    return f"/proc/{pid.strip()}/ns/net"


def _long(node: Node) -> str:
    named = node.netns("long")
    path = node.dir / "/".join(["a-private-directory-of-some-runtime"] * 4) / "netns"
    path.parent.mkdir(parents=True)
    path.touch()
    node.run(["mount", "--bind", named, str(path)])
    return str(path)


@pytest.mark.parametrize("make", [_of_a_process, _long])
@pytest.mark.parametrize("known_at_del", [True, False])
def test_every_kind_of_netns_path(
    client_lab: ClientLab, make: Callable[[Node], str], *, known_at_del: bool
) -> None:
    client_lab.network()
    cni = client_lab.libcni()
    netns = make(client_lab.node)
    result = cni.add(NETWORK, netns, CNI_CONTAINERID="box")
    assert netns in [link.get("sandbox") for link in result["interfaces"]]
    client_lab.node.ping(netns, GATEWAY)
    cni.check(NETWORK, netns, CNI_CONTAINERID="box")
    cni.delete(NETWORK, netns if known_at_del else "", CNI_CONTAINERID="box")
    client_lab.assert_clean()


def test_delete_after_the_namespace_is_gone(client_lab: ClientLab) -> None:
    client_lab.network()
    cni = client_lab.libcni()
    netns = client_lab.node.netns("box")
    cni.add(NETWORK, netns, CNI_CONTAINERID="box")
    client_lab.node.run(["ip", "netns", "delete", "box"])
    cni.delete(NETWORK, netns, CNI_CONTAINERID="box")
    cni.delete(NETWORK, "", CNI_CONTAINERID="box")
    cni.delete(NETWORK, "", CNI_CONTAINERID="never-added")
    poll(lambda: not client_lab.node.veths(), "the veth's end")  # the kernel's own cleaning is lazy
    client_lab.assert_clean()


_POD = "K8S_POD_NAMESPACE=lab;K8S_POD_NAME=pod;K8S_POD_INFRA_CONTAINER_ID=0;K8S_POD_UID=uid"


@pytest.mark.parametrize(
    ("args", "address"),
    [
        (f"IgnoreUnknown=1;{_POD}", "10.77.0.2/24"),
        (f"{_POD};IgnoreUnknown=true", "10.77.0.2/24"),
        (f"{_POD};IgnoreUnknown=true;{_POD};IgnoreUnknown=1", "10.77.0.2/24"),
        (f"IgnoreUnknown=1;{_POD};IP=10.77.0.55", "10.77.0.55/24"),
        (f"IP=10.77.0.55/24;{_POD};IgnoreUnknown=1", "10.77.0.55/24"),
        (f"MAC=02:00:00:00:00:55;IP=10.77.0.55;IgnoreUnknown=1;{_POD}", "10.77.0.55/24"),
    ],
)
def test_cni_args(client_lab: ClientLab, args: str, address: str) -> None:
    client_lab.network(macFromArgs=True)
    cni = client_lab.libcni()
    netns = client_lab.node.netns("box")
    result = cni.add(NETWORK, netns, CNI_ARGS=args)
    assert [ip["address"] for ip in result["ips"]] == [address]
    if "MAC=" in args:
        assert client_lab.node.links(netns)["eth0"]["address"] == "02:00:00:00:00:55"
    cni.check(NETWORK, netns, CNI_ARGS=args)
    cni.delete(NETWORK, netns, CNI_ARGS=args)
    client_lab.assert_clean()


def test_address_and_mac_by_capability(client_lab: ClientLab) -> None:
    client_lab.network(capabilities={"ips": True, "mac": True})
    cni = client_lab.libcni()
    netns = client_lab.node.netns("box")
    asked = json.dumps({"ips": ["10.77.0.77/24"], "mac": "02:00:00:00:00:77"})
    result = cni.add(NETWORK, netns, CAP_ARGS=asked)
    assert [ip["address"] for ip in result["ips"]] == ["10.77.0.77/24"]
    assert client_lab.node.links(netns)["eth0"]["address"] == "02:00:00:00:00:77"
    cni.check(NETWORK, netns, CAP_ARGS=asked)
    cni.delete(NETWORK, netns, CAP_ARGS=asked)
    client_lab.assert_clean()


@pytest.mark.parametrize(
    "asked",
    [
        {"portMappings": [{"hostPort": 80, "containerPort": 80, "protocol": "tcp"}]},
        {"portMappings": [{"HostPort": 80, "ContainerPort": 80, "Protocol": "tcp"}]},
    ],
)
def test_a_capability_that_the_plugin_lacks_is_refused(
    client_lab: ClientLab, asked: dict[str, Any]
) -> None:
    """Ignoring it would silently give the container less than its owner requested."""
    (capability,) = asked
    client_lab.network(capabilities={capability: True})
    with pytest.raises(CniError, match=capability):
        client_lab.libcni().add(NETWORK, client_lab.node.netns("box"), CAP_ARGS=json.dumps(asked))
    client_lab.assert_clean()


@pytest.mark.parity
def test_an_add_killed_at_any_point_leaves_nothing(client_lab: ClientLab) -> None:
    client_lab.network()
    cni = client_lab.libcni()
    netns = client_lab.node.netns("box")
    killed = 0
    for milliseconds in (5, 20, 40, 60, 80, 100, 120, 140, 160, 180, 200, 250, 300, 400):
        with contextlib.suppress(CniError):
            cni.add(NETWORK, netns, CNI_CONTAINERID="box", CNI_TIMEOUT=f"{milliseconds}ms")
            killed -= 1
        killed += 1
        cni.delete(NETWORK, netns, CNI_CONTAINERID="box")
        client_lab.assert_clean()
        assert list(client_lab.node.links(netns)) == ["lo"]
    assert killed > 0
    cni.add(NETWORK, netns, CNI_CONTAINERID="box")
    client_lab.node.ping(netns, GATEWAY)
    cni.delete(NETWORK, netns, CNI_CONTAINERID="box")
    client_lab.assert_clean()


@pytest.mark.parity
def test_many_at_once(client_lab: ClientLab) -> None:
    client_lab.network()
    cni = client_lab.libcni()
    boxes = {f"box{number}": client_lab.node.netns(f"box{number}") for number in range(16)}
    with ThreadPoolExecutor(16) as pool:
        results = list(
            pool.map(lambda name: cni.add(NETWORK, boxes[name], CNI_CONTAINERID=name), boxes)
        )
        assert len({result["ips"][0]["address"] for result in results}) == 16
        list(pool.map(lambda name: cni.delete(NETWORK, "", CNI_CONTAINERID=name), boxes))
    client_lab.assert_clean()


def test_a_missing_ipam_plugin_is_named(client_lab: ClientLab) -> None:
    client_lab.network(ipam={"type": "lab-absent"})
    with pytest.raises(CniError, match="lab-absent"):
        client_lab.libcni().add(NETWORK, client_lab.node.netns("box"))
    assert shutil.which("lab-absent") is None
    client_lab.assert_clean()
