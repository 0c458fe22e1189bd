from __future__ import annotations

import json
import multiprocessing
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from lab.attachments import attachment as make_attachment
from lab.contract import host_engine_life, host_engine_undo
from lab.netns import Namespace, sniffing, transfer
from linux.conftest import Lab, conf, ips, route
from userspace_cni import netns
from userspace_cni.api import EngineContext
from userspace_cni.cni.errors import CheckFailed, CniError, Code, DataplaneError, InvalidConfig
from userspace_cni.kernel import tags
from userspace_cni.locks import Locks
from userspace_cni_linux.host import LinuxHostEngine
from userspace_cni_linux.inside import TAGS
from userspace_cni_linux.sections import BridgeSection

BRIDGE = conf("veth", "bridge", bridge=BridgeSection(bridge_name="br0"))
GATEWAY = conf("veth", "bridge", bridge=BridgeSection(bridge_name="br0", gateway=True))
DUAL = ("10.1.0.{n}/24>10.1.0.1", "fd00:1::{n}/64>fd00:1::1")


def dual(n: int) -> tuple[str, ...]:
    return tuple(text.format(n=n) for text in DUAL)


def test_life(lab: Lab) -> None:
    container = lab.container()
    port = host_engine_life(lab.engine, lab.attachment(container), BRIDGE, lab.call)
    assert port.name.startswith("uc")
    assert lab.host.links() == set()
    assert container.links() == set()


def test_undo_leaves_nothing(lab: Lab) -> None:
    container = lab.container()
    host_engine_undo(lab.engine, lab.attachment(container), BRIDGE, lab.call)
    assert lab.host.links() == set()
    assert container.links() == set()


def test_containers_reach_each_other_by_both_families_and_tcp(lab: Lab) -> None:
    a, b = lab.attach(BRIDGE, *dual(2)), lab.attach(BRIDGE, *dual(3))
    assert a.container.ping("10.1.0.3")
    assert b.container.ping("fd00:1::2")
    assert transfer(a.container, b.container, "10.1.0.2", 1_000_000) == 1_000_000
    assert transfer(a.container, b.container, "fd00:1::2", 1_000_000) == 1_000_000
    a.check()
    b.check()


def test_result_names_bridge_then_host_end(lab: Lab) -> None:
    a = lab.attach(BRIDGE, *dual(2), mac="02:aa:bb:cc:dd:ee")
    bridge, end = a.port.interfaces
    shown = {link["ifname"]: link for link in json.loads(lab.host.run("ip", "-j", "-d", "link"))}
    assert (bridge.name, bridge.mac, bridge.mtu) == ("br0", shown["br0"]["address"], 1500)
    assert (end.name, end.mac) == (a.port.name, shown[a.port.name]["address"])
    assert end.sandbox == bridge.sandbox == ""
    assert shown["br0"]["ifalias"] == "userspace-cni/1 bridge"
    assert shown["br0"]["linkinfo"]["info_data"]["stp_state"] == 0
    tag = TAGS.parse(shown[a.port.name]["ifalias"])
    assert tag == tags.Tag(a.attachment.id, tags.network_id("blue"))
    inside = json.loads(a.container.run("ip", "-j", "link", "show", "eth0"))[0]
    assert inside["address"] == a.port.mac == "02:aa:bb:cc:dd:ee"
    assert inside["ifalias"] == shown[a.port.name]["ifalias"]


def test_the_bridge_keeps_its_mac_as_ports_come_and_go(lab: Lab) -> None:
    a = lab.attach(BRIDGE)
    before = a.port.interfaces[0].mac
    b = lab.attach(BRIDGE)
    a.delete()
    assert b.port.interfaces[0].mac == before
    assert before in lab.host.run("ip", "link", "show", "br0")


@pytest.mark.parametrize("mtu", [1280, 9000])
def test_mtu_on_both_ends_by_traffic(lab: Lab, mtu: int) -> None:
    a, b = (lab.attach(BRIDGE, *dual(n), mtu=mtu) for n in (2, 3))
    assert a.port.mtu == mtu
    # 20 of IPv4 and 8 of ICMP.
    assert a.container.ping("10.1.0.3", size=mtu - 28)
    assert not a.container.ping("10.1.0.3", size=mtu - 26)
    b.check()


def test_mtu_defaults_to_the_bridges(lab: Lab) -> None:
    lab.attach(BRIDGE, mtu=4000)
    assert lab.attach(BRIDGE).port.mtu == 4000


def test_gateway_on_the_bridge_and_forwarding(lab: Lab) -> None:
    assert lab.host.run("cat", "/proc/sys/net/ipv4/ip_forward").strip() == "0"
    a = lab.attach(GATEWAY, *dual(2))
    assert a.container.ping("10.1.0.1")
    assert a.container.ping("fd00:1::1")
    assert lab.host.run("cat", "/proc/sys/net/ipv4/ip_forward").strip() == "1"
    assert lab.host.run("cat", "/proc/sys/net/ipv6/conf/all/forwarding").strip() == "1"
    assert lab.host.run("cat", "/proc/sys/net/ipv6/conf/br0/accept_ra").strip() == "0"
    a.check()
    lab.attach(GATEWAY, *dual(3)).check()


def test_two_subnets_route_through_the_host(lab: Lab) -> None:
    other = conf(
        "veth",
        "bridge",
        bridge=BridgeSection(bridge_name="br1", gateway=True, default_route=True),
    )
    first = conf(
        "veth",
        "bridge",
        bridge=BridgeSection(bridge_name="br0", gateway=True, default_route=True),
    )
    a = lab.attach(first, *dual(2))
    b = lab.attach(other, "10.2.0.2/24>10.2.0.1", "fd00:2::2/64>fd00:2::1")
    assert [str(r.dst) for r in a.port.routes] == ["0.0.0.0/0", "::/0"]
    assert a.container.ping("10.2.0.2")
    assert b.container.ping("fd00:1::2")
    a.check()


def test_default_route_yields_to_ipams(lab: Lab) -> None:
    wanted = conf("veth", "bridge", bridge=BridgeSection(bridge_name="br0", default_route=True))
    a = lab.attach(wanted, *dual(2), routes=(route("0.0.0.0/0", "10.1.0.9"),))
    assert [str(r.dst) for r in a.port.routes] == ["::/0"]
    assert "default via 10.1.0.9" in a.container.run("ip", "route")
    a.check()


@pytest.mark.parametrize("option", ["gateway", "default_route"])
def test_options_that_need_a_gateway_say_so(lab: Lab, option: str) -> None:
    options: dict[str, Any] = {option: True}
    wanted = conf("veth", "bridge", bridge=BridgeSection(bridge_name="br0", **options))
    with pytest.raises(InvalidConfig, match=r"host\.bridge\.\w+: needs a gateway address"):
        lab.attach(wanted, "10.1.0.2/24")
    assert lab.host.links() == set()


def test_routes_with_all_their_fields(lab: Lab) -> None:
    a = lab.attach(
        BRIDGE,
        *dual(2),
        routes=(
            route("10.9.0.0/16"),
            route("10.8.0.0/16", "10.1.0.7", mtu=1400, advmss=1300, priority=77),
            route("10.7.0.0/16", table=500),
            route("10.6.0.0/16", scope=253),
            route("fd00:9::/64"),
        ),
    )
    four = a.container.run("ip", "route")
    assert "10.9.0.0/16 via 10.1.0.1 dev eth0" in four
    assert "10.8.0.0/16 via 10.1.0.7 dev eth0 proto static metric 77 mtu 1400 advmss 1300" in four
    assert "10.6.0.0/16 dev eth0 proto static scope link" in four
    assert "10.7.0.0/16 via 10.1.0.1" in a.container.run("ip", "route", "show", "table", "500")
    assert "fd00:9::/64 via fd00:1::1" in a.container.run("ip", "-6", "route")
    a.check()


def test_the_same_route_twice_is_one_and_another_is_refused(lab: Lab) -> None:
    twice = (route("10.9.0.0/16", "10.1.0.1"), route("10.9.0.0/16"))
    lab.attach(BRIDGE, *dual(2), routes=twice).check()
    two = (route("10.9.0.0/16", "10.1.0.1"), route("10.9.0.0/16", "10.1.0.5"))
    with pytest.raises(DataplaneError, match=r"two routes to 10\.9\.0\.0/16"):
        lab.attach(BRIDGE, *dual(3), routes=two)


def test_a_second_network_leaves_the_default_route_of_the_first(lab: Lab) -> None:
    a = lab.attach(BRIDGE, *dual(2), routes=(route("0.0.0.0/0"),))
    b = lab.attach(
        BRIDGE,
        *dual(3),
        container=a.container,
        ifname="net1",
        routes=(route("0.0.0.0/0", "10.1.0.9"),),
    )
    assert a.container.run("ip", "route", "show", "default").split()[2] == "10.1.0.1"
    a.check()
    b.check()
    a.container.run("ip", "route", "delete", "default")
    for attached in (a, b):
        with pytest.raises(CheckFailed, match=r"lost the route 0\.0\.0\.0/0"):
            attached.check()


def test_neighbours_hear_of_an_address_that_moved(lab: Lab) -> None:
    a = lab.attach(BRIDGE, *dual(2))
    with sniffing(a.container, "eth0") as frames:
        b = lab.attach(BRIDGE, *dual(3))
        seen = frames(0.3)
    mac = bytes.fromhex(b.port.mac.replace(":", ""))
    arps = [f for f in seen if f[12:14] == b"\x08\x06"]
    assert any(f[22:28] == mac and f[28:32] == f[38:42] == bytes((10, 1, 0, 3)) for f in arps)
    adverts = [f for f in seen if f[12:14] == b"\x86\xdd" and f[20] == 58 and f[54] == 136]
    address = b"\xfd\x00\x00\x01" + bytes(11) + b"\x03"
    assert any(f[62:78] == address and f[80:86] == mac and f[21] == 255 for f in adverts)


def test_hairpin_and_isolated(lab: Lab) -> None:
    apart = conf(
        "veth", "bridge", bridge=BridgeSection(bridge_name="br0", isolated=True, hairpin=True)
    )
    a, b = lab.attach(apart, *dual(2)), lab.attach(apart, *dual(3))
    c = lab.attach(BRIDGE, *dual(4))
    assert a.container.ping("10.1.0.4")
    assert c.container.ping("10.1.0.3")
    assert not a.container.ping("10.1.0.3", timeout=0.3)
    assert "hairpin on" in lab.host.run("ip", "-d", "link", "show", a.port.name)
    b.check()


def test_the_bridge_has_its_link_local_address_at_once(lab: Lab) -> None:
    a = lab.attach(GATEWAY, *dual(2))
    shown = lab.host.run("ip", "-6", "address", "show", "br0")
    assert shown.count("scope link") == 1
    assert "tentative" not in shown
    a.check()


def test_promiscuous(lab: Lab) -> None:
    wanted = conf("veth", "bridge", bridge=BridgeSection(bridge_name="br0", promiscuous=True))
    lab.attach(wanted)
    assert "PROMISC" in lab.host.run("ip", "link", "show", "br0")


def test_the_bridge_goes_with_its_last_port(lab: Lab) -> None:
    a, b = lab.attach(BRIDGE), lab.attach(BRIDGE)
    a.delete()
    assert "br0" in lab.host.links()
    b.delete()
    b.delete()
    assert lab.host.links() == set()


def test_the_bridge_goes_when_the_namespace_went_first(lab: Lab) -> None:
    a = lab.attach(GATEWAY, *dual(2))
    a.container.close()
    deadline = time.monotonic() + 5
    while a.port.name in lab.host.links() and time.monotonic() < deadline:
        time.sleep(0.01)
    lab.call(lab.engine.delete, a.attachment.id, GATEWAY, None)
    assert lab.host.links() == set()


def test_a_delete_that_knows_another_configuration(lab: Lab) -> None:
    a = lab.attach(BRIDGE)
    changed = conf("veth", "bridge", bridge=BridgeSection(bridge_name="elsewhere"))
    lab.call(lab.engine.delete, a.attachment.id, changed, None)
    assert lab.host.links() == set()


def test_a_host_end_that_was_renamed_is_found_by_the_containers(lab: Lab) -> None:
    a = lab.attach(BRIDGE)
    lab.host.run("ip", "link", "set", a.port.name, "down")
    lab.host.run("ip", "link", "set", a.port.name, "name", "renamed")
    a.delete()
    assert lab.host.links() == set()


def test_the_admins_bridge_is_used_and_left_alone(lab: Lab) -> None:
    mac = "02:00:00:00:00:01"
    lab.host.run("ip", "link", "add", "br0", "up", "address", mac, "type", "bridge")
    lab.host.run("ip", "address", "add", "10.1.0.1/24", "dev", "br0")
    before = lab.host.run("ip", "-d", "-j", "address", "show", "br0")
    a = lab.attach(GATEWAY, "10.1.0.2/24>10.1.0.1")
    assert a.container.ping("10.1.0.1")
    a.check()
    a.delete()
    after = lab.host.run("ip", "-d", "-j", "address", "show", "br0")

    def essence(text: str) -> object:
        shown = json.loads(text)[0]
        four = [info for info in shown["addr_info"] if info["family"] == "inet"]
        settings = shown["linkinfo"]["info_data"]
        steady = {key: settings[key] for key in ("stp_state", "forward_delay", "vlan_filtering")}
        return shown["address"], shown["mtu"], shown.get("ifalias"), four, steady

    assert essence(before) == essence(after)
    assert lab.host.links() == {"br0"}


@pytest.mark.parametrize(
    ("prepare", "section", "command"),
    [
        ((), {"gateway": True}, "ip address add 10.1.0.1/24 dev br0"),
        ((), {"promiscuous": True}, "ip link set br0 promisc on"),
        ((), {"vlan_id": 5}, "ip link set br0 type bridge vlan_filtering 1"),
        (("ip", "link", "set", "br0", "down"), {}, "ip link set br0 up"),
    ],
)
def test_what_the_admins_bridge_lacks_is_told_as_a_command(
    lab: Lab, prepare: tuple[str, ...], section: dict[str, Any], command: str
) -> None:
    lab.host.run("ip", "link", "add", "br0", "up", "type", "bridge")
    if prepare:
        lab.host.run(*prepare)
    wanted = conf("veth", "bridge", bridge=BridgeSection(bridge_name="br0", **section))
    with pytest.raises(DataplaneError) as error:
        lab.attach(wanted, "10.1.0.2/24>10.1.0.1")
    assert command in error.value.details
    assert lab.host.links() == {"br0"}


def test_a_bridge_name_that_is_no_bridge(lab: Lab) -> None:
    lab.host.run("ip", "link", "add", "br0", "type", "veth", "peer", "name", "x")
    with pytest.raises(DataplaneError, match="br0 is not a bridge, but of kind veth"):
        lab.attach(BRIDGE)


def test_no_bridge_and_none_to_be_made(lab: Lab) -> None:
    wanted = conf("veth", "bridge", bridge=BridgeSection(bridge_name="br0", create=False))
    with pytest.raises(DataplaneError, match=r"does not exist, and host\.bridge\.create is false"):
        lab.attach(wanted)
    with pytest.raises(CniError) as error:
        lab.call(lab.engine.status, wanted)
    assert error.value.code == Code.TRY_AGAIN_LATER
    lab.host.run("ip", "link", "add", "br0", "up", "type", "bridge")
    lab.call(lab.engine.status, wanted)
    lab.attach(wanted)


def test_our_bridge_with_an_admins_interface_upon_it_stays(lab: Lab) -> None:
    a = lab.attach(BRIDGE)
    lab.host.run("ip", "link", "add", "link", "br0", "name", "mv0", "type", "macvlan")
    a.delete()
    assert lab.host.links() == {"br0", "mv0"}


def test_a_name_taken_in_the_container(lab: Lab) -> None:
    container = lab.container()
    container.run("ip", "link", "add", "eth0", "type", "veth", "peer", "name", "x")
    with pytest.raises(CniError, match="has an interface eth0 already") as error:
        lab.attach(BRIDGE, container=container)
    assert error.value.code == Code.ALREADY_ATTACHED
    assert lab.host.links() == set()
    assert container.links() == {"eth0", "x"}


def test_a_name_taken_on_the_host(lab: Lab) -> None:
    container = lab.container()
    attachment = lab.attachment(container, container_id="one")
    name = f"uc{attachment.id[:13]}"
    lab.host.run("ip", "link", "add", name, "type", "veth", "peer", "name", "x")
    with pytest.raises(DataplaneError, match=f"{name} is taken on the host"):
        lab.attach(BRIDGE, container=container, container_id="one")
    lab.call(lab.engine.delete, attachment.id, BRIDGE, container.path)
    assert lab.host.links() == {name, "x"}


def test_the_same_attachment_twice(lab: Lab) -> None:
    a = lab.attach(BRIDGE, container_id="one")
    with pytest.raises(CniError) as error:
        lab.attach(BRIDGE, container=a.container, container_id="one")
    assert error.value.code == Code.ALREADY_ATTACHED
    assert "DEL it first" in error.value.details
    a.check()


def test_two_interfaces_of_one_container(lab: Lab) -> None:
    a = lab.attach(BRIDGE, *dual(2))
    b = lab.attach(BRIDGE, "10.3.0.2/24", container=a.container, ifname="net1")
    b.delete()
    assert a.container.links() == {"eth0"}
    a.check()


def test_a_namespace_that_is_gone(lab: Lab, tmp_path: Path) -> None:
    with pytest.raises(CniError, match=r"network namespace .* cannot be opened") as error:
        lab.attach(BRIDGE, netns=str(tmp_path / "gone"))
    assert error.value.code == Code.INVALID_ENVIRONMENT
    assert "has the container ended" in error.value.details
    assert lab.host.links() == set()


def test_an_impossible_mtu_names_the_interface_and_the_value(lab: Lab) -> None:
    with pytest.raises(DataplaneError, match=r"veth pair uc\w+ with eth0 .* MTU 70000"):
        lab.attach(BRIDGE, mtu=70000)
    assert lab.host.links() == set()


def test_missing_section(lab: Lab) -> None:
    with pytest.raises(InvalidConfig, match=r"host\.bridge\.bridgeName: missing"):
        lab.attach(conf("veth", "bridge"))


@pytest.mark.parametrize(
    ("drift", "found"),
    [
        (("ip", "link", "set", "END", "nomaster"), "not a port of its bridge"),
        (("ip", "link", "set", "END", "down"), "is down"),
        (("ip", "link", "set", "br0", "down"), "the bridge br0 is down"),
        (
            ("ip", "link", "set", "END", "type", "bridge_slave", "hairpin", "off"),
            "not set to hairp",
        ),
        (
            ("ip", "addr", "del", "10.1.0.1/24", "dev", "br0"),
            r"not have the gateway address 10\.1\.0\.1",
        ),
        (("ip", "link", "del", "END"), "is gone"),
    ],
)
def test_check_sees_the_hosts_drift(lab: Lab, drift: tuple[str, ...], found: str) -> None:
    wanted = conf(
        "veth", "bridge", bridge=BridgeSection(bridge_name="br0", gateway=True, hairpin=True)
    )
    a = lab.attach(wanted, *dual(2))
    a.check()
    lab.host.run(*(a.port.name if word == "END" else word for word in drift))
    with pytest.raises(CheckFailed, match=found):
        a.check()


def _add_and_delete(host: str, locks: str, number: int, rounds: int) -> None:
    engine = LinuxHostEngine(EngineContext(lock=Locks(Path(locks), 30).hold))

    def work() -> None:
        with Namespace() as container:
            for i in range(rounds):
                attachment = make_attachment(
                    network="blue",
                    container_id=f"c{number}-{i}",
                    ifname="eth0",
                    interface="eth0",
                    netns=container.path,
                    ips=ips(f"10.1.0.{number + 10}/24>10.1.0.1"),
                )
                undo = ExitStack()
                port = engine.add(attachment, GATEWAY, undo)
                undo.pop_all()
                engine.check(attachment, GATEWAY, port)
                engine.delete(attachment.id, GATEWAY, container.path)
                engine.delete(attachment.id, GATEWAY, container.path)

    netns.call(host, work)


def test_twenty_processes_on_one_bridge(lab: Lab, tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    processes = [
        context.Process(target=_add_and_delete, args=(lab.host.path, str(tmp_path), n, 3))
        for n in range(20)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * 20
    assert lab.host.links() == set()


def test_twenty_threads_on_one_bridge(lab: Lab) -> None:
    def life(number: int) -> None:
        a = lab.attach(GATEWAY, *dual(number + 10))
        a.check()
        assert a.container.ping("10.1.0.1")
        a.delete()

    with ThreadPoolExecutor(20) as pool:
        list(pool.map(life, range(20)))
    assert lab.host.links() == set()


def test_the_announcement_passes_the_bridge(lab: Lab) -> None:
    a = lab.attach(BRIDGE, *dual(2))
    with sniffing(a.container, "eth0") as frames:
        attached = [lab.attach(BRIDGE, *dual(n)) for n in range(10, 20)]
        seen = frames(0.2)
    told = {f[28:32] for f in seen if f[12:14] == b"\x08\x06" and f[28:32] == f[38:42]}
    # Without waiting for the carrier nearly all are lost. One may be: the kernel tells that an
    # interface is operational a moment before the first frame passes.
    assert len(told & {bytes((10, 1, 0, n)) for n in range(10, 20)}) >= 9
    assert len(attached) == 10


def test_a_host_end_is_silent_in_ipv6(lab: Lab) -> None:
    # A port of a bridge that had a link-local address would answer to its container.
    a = lab.attach(BRIDGE)
    assert "inet6" not in lab.host.run("ip", "address", "show", a.port.name)
