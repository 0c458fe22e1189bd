"""Ports only in the container (tap, macvlan), and a veth that is not connected on the host."""

from __future__ import annotations

import fcntl
import json
import os
import struct
import threading
import time

import pytest

from lab.contract import host_engine_life, host_engine_undo
from linux.conftest import Lab, conf, route
from userspace_cni.cni.errors import CheckFailed, CniError, Code, DataplaneError, InvalidConfig
from userspace_cni_linux.sections import MacvlanSection, TapSection

TAP = conf("tap", "none")
MACVLAN = conf("macvlan", "none", macvlan=MacvlanSection(master="up0"))
VETH = conf("veth", "none")


@pytest.fixture
def uplink(lab: Lab) -> Lab:
    """Give the host an interface with a carrier."""
    lab.host.run("ip", "link", "add", "up0", "type", "veth", "peer", "name", "up1")
    for name in ("up0", "up1"):
        lab.host.run("ip", "link", "set", name, "up")
    return lab


def shown(namespace: object, name: str) -> dict[str, object]:
    text = namespace.run("ip", "-d", "-j", "link", "show", name)  # type: ignore[attr-defined]
    found: dict[str, object] = json.loads(text)[0]
    return found


@pytest.mark.parametrize("host", [TAP, MACVLAN, VETH], ids=lambda host: host.iftype)
def test_life_and_undo(uplink: Lab, host: object) -> None:
    container = uplink.container()
    listed = host is VETH
    attachment = uplink.attachment(container)
    host_engine_life(uplink.engine, attachment, host, uplink.call, listed=listed)  # type: ignore[arg-type]
    assert container.links() == set()
    host_engine_undo(uplink.engine, attachment, host, uplink.call)  # type: ignore[arg-type]
    assert container.links() == set()
    assert uplink.host.links() == {"up0", "up1"}


@pytest.mark.parametrize("host", [TAP, MACVLAN, VETH], ids=lambda host: host.iftype)
def test_a_name_that_is_taken(uplink: Lab, host: object) -> None:
    container = uplink.container()
    container.run("ip", "link", "add", "eth0", "type", "veth", "peer", "name", "x")
    with pytest.raises(CniError, match="the container has an interface eth0 already") as error:
        uplink.attach(host, container=container)  # type: ignore[arg-type]
    assert error.value.code == Code.ALREADY_ATTACHED
    assert container.links() == {"eth0", "x"}


@pytest.mark.parametrize("host", [TAP, MACVLAN], ids=lambda host: host.iftype)
def test_it_is_found_by_its_tag_whatever_its_name(uplink: Lab, host: object) -> None:
    a = uplink.attach(host)  # type: ignore[arg-type]
    a.container.run("ip", "link", "set", "eth0", "down")
    a.container.run("ip", "link", "set", "eth0", "name", "mine")
    a.container.run("ip", "link", "add", "eth0", "type", "veth", "peer", "name", "x")
    with pytest.raises(CheckFailed, match="eth0 is not the one that ADD made"):
        a.check()
    a.delete()
    assert a.container.links() == {"eth0", "x"}


@pytest.mark.parametrize("host", [TAP, MACVLAN, VETH], ids=lambda host: host.iftype)
def test_mac_and_mtu(uplink: Lab, host: object) -> None:
    a = uplink.attach(host, "10.1.0.2/24", mac="02:00:00:00:00:09", mtu=1400)  # type: ignore[arg-type]
    link = shown(a.container, "eth0")
    assert (link["address"], link["mtu"]) == ("02:00:00:00:00:09", 1400)
    assert (a.port.mac, a.port.mtu) == ("02:00:00:00:00:09", 1400)
    a.check()


@pytest.mark.parametrize("iftype", ["tap", "macvlan"])
@pytest.mark.parametrize("net_type", ["bridge", "interface"])
def test_network_types_that_make_no_sense(lab: Lab, iftype: str, net_type: str) -> None:
    (problem,) = lab.engine.problems(conf(iftype, net_type))
    assert 'host.netType: expected "none" with iftype' in str(problem)


def test_tap_is_persistent_owned_and_carries_frames(lab: Lab) -> None:
    a = lab.attach(
        conf("tap", "none", tap=TapSection(owner=123, group=456)),
        "10.1.0.2/24>10.1.0.1",
        "fd00:1::2/64",
        routes=(route("0.0.0.0/0"),),
    )
    data = shown(a.container, "eth0")["linkinfo"]["info_data"]  # type: ignore[index]
    assert (data["type"], data["persist"], data["pi"]) == ("tap", True, False)
    assert (data["user"], data["group"]) in {("123", "456"), (123, 456)}
    a.check()

    def attached() -> bytes:
        device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        asking = threading.Thread(target=a.container.ping, args=("10.1.0.7", 56, 0.5))
        asking.start()
        try:
            fcntl.ioctl(device, 0x400454CA, struct.pack("16sH22x", b"eth0", 0x1002))
            deadline = time.monotonic() + 2
            while time.monotonic() < deadline:
                try:
                    frame = os.read(device, 2000)
                except BlockingIOError:
                    time.sleep(0.01)
                    continue
                if frame[12:14] == b"\x08\x06":
                    return frame
        finally:
            os.close(device)
            asking.join()
        return b""

    frame = a.container.call(attached)
    assert frame[6:12].hex(":") == a.port.mac


def test_multi_queue_tap(lab: Lab) -> None:
    a = lab.attach(conf("tap", "none", tap=TapSection(multi_queue=True)))
    data = shown(a.container, "eth0")["linkinfo"]["info_data"]  # type: ignore[index]
    assert data["multi_queue"] is True


def test_macvlans_reach_each_other_and_their_master_tells(uplink: Lab) -> None:
    a, b = uplink.attach(MACVLAN, "10.1.0.2/24"), uplink.attach(MACVLAN, "10.1.0.3/24")
    assert a.container.ping("10.1.0.3")
    assert [i.name for i in a.port.interfaces] == ["up0"]
    b.check()


def test_private_macvlans_do_not(uplink: Lab) -> None:
    private = conf("macvlan", "none", macvlan=MacvlanSection(master="up0", mode="private"))
    a, _ = uplink.attach(private, "10.1.0.2/24"), uplink.attach(private, "10.1.0.3/24")
    assert not a.container.ping("10.1.0.3", timeout=0.3)


def test_macvlan_upon_the_default_routes_interface(uplink: Lab) -> None:
    anywhere = conf("macvlan", "none")
    with pytest.raises(DataplaneError, match="the host has no default route to choose by"):
        uplink.attach(anywhere)
    uplink.host.run("ip", "address", "add", "192.0.2.1/24", "dev", "up0")
    uplink.host.run("ip", "route", "add", "default", "via", "192.0.2.2")
    uplink.call(uplink.engine.status, anywhere)
    assert uplink.attach(anywhere).port.interfaces[0].name == "up0"


def test_macvlan_without_its_master(lab: Lab) -> None:
    with pytest.raises(DataplaneError, match="the host has no interface up0"):
        lab.attach(MACVLAN)
    with pytest.raises(CniError) as error:
        lab.call(lab.engine.status, MACVLAN)
    assert error.value.code == Code.TRY_AGAIN_LATER


def test_macvlan_mtu_above_its_masters(uplink: Lab) -> None:
    with pytest.raises(InvalidConfig, match="mtu: expected at most 1500, the MTU of up0, got 9000"):
        uplink.attach(MACVLAN, mtu=9000)


def test_macvlan_passthru_has_its_masters_mac(uplink: Lab) -> None:
    through = conf("macvlan", "none", macvlan=MacvlanSection(master="up0", mode="passthru"))
    before = shown(uplink.host, "up0")["address"]
    with pytest.raises(InvalidConfig, match="mac: a macvlan with mode passthru has the MAC"):
        uplink.attach(through, mac="02:00:00:00:00:09")
    a = uplink.attach(through)
    assert a.port.mac == before == shown(uplink.host, "up0")["address"]
    with pytest.raises(DataplaneError, match="cannot create the macvlan eth0 upon up0"):
        uplink.attach(MACVLAN)


def test_the_namespace_is_gone_at_delete(uplink: Lab) -> None:
    for host in (TAP, MACVLAN, VETH):
        a = uplink.attach(host)
        a.container.close()
        uplink.call(uplink.engine.delete, a.attachment.id, host, "/proc/1/fd/gone")


def test_an_unattached_veth_is_up_on_both_ends(lab: Lab) -> None:
    a = lab.attach(VETH, "10.1.0.2/24", "fd00:1::2/64")
    lab.host.run("ip", "address", "add", "10.1.0.1/24", "dev", a.port.name)
    assert lab.host.ping("10.1.0.2")
    a.check()


@pytest.mark.parametrize(
    ("drift", "found"),
    [
        (("ip", "link", "set", "eth0", "address", "02:00:00:00:00:01"), "MAC address: expected"),
        (("ip", "link", "set", "eth0", "mtu", "1300"), "MTU: expected 1500, found 1300"),
        (("ip", "link", "set", "eth0", "down"), "eth0 is down"),
        (("ip", "addr", "del", "10.1.0.2/24", "dev", "eth0"), r"lost the address 10\.1\.0\.2/24"),
        (("ip", "addr", "del", "fd00:1::2/64", "dev", "eth0"), "lost the address fd00:1::2/64"),
        (("ip", "route", "del", "10.9.0.0/16"), r"route 10\.9\.0\.0/16 via 10\.1\.0\.1 through"),
        (("ip", "-6", "route", "del", "fd00:9::/64"), "lost the route fd00:9::/64"),
        (("ip", "link", "del", "eth0"), "interface uc.* is gone"),
    ],
)
def test_check_sees_the_containers_drift(lab: Lab, drift: tuple[str, ...], found: str) -> None:
    a = lab.attach(
        VETH,
        "10.1.0.2/24>10.1.0.1",
        "fd00:1::2/64",
        routes=(route("10.9.0.0/16"), route("fd00:9::/64", "fd00:1::9")),
    )
    a.check()
    a.container.run(*drift)
    with pytest.raises(CheckFailed, match=found):
        a.check()


def test_check_sees_an_interface_that_is_gone_inside(lab: Lab) -> None:
    a = lab.attach(VETH)
    a.container.run("ip", "link", "set", "eth0", "down")
    a.container.run("ip", "link", "set", "eth0", "name", "eth9")
    with pytest.raises(CheckFailed, match="container's interface eth0 is gone"):
        a.check()


def test_a_host_end_that_lost_its_tag_is_not_ours(lab: Lab) -> None:
    a = lab.attach(VETH)
    lab.host.run("ip", "link", "set", a.port.name, "alias", "mine now")
    with pytest.raises(CheckFailed, match="is gone, or has lost its tag"):
        lab.call(lab.engine.check, a.attachment, VETH, a.port)
    lab.call(lab.engine.delete, a.attachment.id, VETH, None)
    assert lab.host.links() == {a.port.name}


def test_no_addresses_before_a_network_type_interface(lab: Lab) -> None:
    a = lab.attach(VETH)
    assert a.handoff.net_type == "none"
    assert "inet " not in a.container.run("ip", "address", "show", "eth0")


def test_ipv6_in_a_namespace_that_disables_it(lab: Lab) -> None:
    container = lab.container()
    container.run("sh", "-c", "echo 1 > /proc/sys/net/ipv6/conf/default/disable_ipv6")
    a = lab.attach(VETH, "fd00:1::2/64", container=container)
    settings = "/proc/sys/net/ipv6/conf/eth0"
    shown_now = [
        container.run("cat", f"{settings}/{name}").strip()
        for name in ("disable_ipv6", "keep_addr_on_down", "accept_ra")
    ]
    assert shown_now == ["0", "1", "0"]
    a.check()
