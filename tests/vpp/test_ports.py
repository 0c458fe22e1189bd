"""The other kinds of ports: vhost-user, veth through af_packet, tap."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from lab.contract import host_engine_life, host_engine_undo
from lab.netns import transfer
from lab.vpp_lab import VppLab, conf, ips
from userspace_cni.api import Addresses, Bandwidth, VhostUser
from userspace_cni.cni.errors import CheckFailed, CniError, InvalidConfig
from userspace_cni_vpp.sections import BridgeSection, InterfaceSection, MemifSection, VhostSection

if TYPE_CHECKING:
    from userspace_cni.api import EngineConf

DOMAIN = BridgeSection(bridge_name="5")
SERVER = conf("vhostuser", "bridge", bridge=DOMAIN, vhost=VhostSection(mode="server"))
CLIENT = conf("vhostuser", "bridge", bridge=DOMAIN)
ROUTED = conf("vhostuser", "interface")
VETH = conf("veth", "bridge", bridge=DOMAIN)
VETH_ROUTED = conf("veth", "interface")


@pytest.mark.parametrize("host", [SERVER, CLIENT, ROUTED, VETH, VETH_ROUTED, conf("veth", "none")])
def test_life_and_undo(lab: VppLab, host: EngineConf) -> None:
    for act in (host_engine_life, host_engine_undo):
        attachment = lab.attachment(lab.container(), ips=ips("10.1.0.2/24>10.1.0.1"))
        act(lab.engine, attachment, host, lab.call)
        attachment.directory.withdraw("eth0", attachment.id)  # type: ignore[attr-defined]
        lab.assert_clean()


@pytest.mark.parametrize(
    "host",
    [ROUTED, VETH_ROUTED, conf("memif", "bridge", bridge=BridgeSection(bridge_id=4, gateway=True))],
)
def test_ipam_is_waited_for_when_the_port_is_made(sim: VppLab, host: EngineConf) -> None:
    made: list[bool] = []

    def addresses() -> Addresses:
        made.append(bool(sim.tags()))
        return Addresses(ips=ips("10.1.0.2/24>10.1.0.1"))

    attachment = sim.attachment(sim.container(), addresses=addresses)
    sim.add(attachment, host)
    assert made
    assert all(made)


def test_vhost_user_socket(lab: VppLab) -> None:
    a = lab.attach(SERVER)
    assert isinstance(a.port.port, VhostUser)
    assert a.port.port.mode == "client"
    socket = Path(a.port.port.socket)
    assert socket.is_socket()
    assert socket.stat().st_mode & 0o777 == 0o660
    a.check()
    b = lab.attach(CLIENT)
    assert isinstance(b.port.port, VhostUser)
    assert b.port.port.mode == "server"
    assert not Path(b.port.port.socket).exists()
    b.check()
    assert lab.hand_over_dpdk(b).port == b.port.port
    for each in (a, b):
        each.delete()
    lab.assert_clean()


def test_vhost_user_server_spares_a_file_in_the_way(lab: VppLab) -> None:
    attachment = lab.attachment(lab.container())
    attachment.directory.provide()
    taken = Path(attachment.directory.path, "eth0.sock")
    taken.write_text("precious")
    with pytest.raises(CniError, match="exists"):
        lab.add(attachment, SERVER)
    assert taken.read_text() == "precious"


def test_check_vhost_user(lab: VppLab) -> None:
    a = lab.attach(SERVER)
    a.conf = CLIENT
    with pytest.raises(CheckFailed, match="mode"):
        a.check()


def test_veth_in_the_container(lab: VppLab) -> None:
    a = lab.attach_kernel(VETH, "10.1.0.2/24", mac="02:00:00:00:00:0a", mtu=1400)
    assert a.container.links() == {"eth0"}
    shown = a.container.run("ip", "link", "show", "eth0")
    assert "02:00:00:00:00:0a" in shown
    assert "mtu 1400" in shown
    a.check()
    lab.host.run("ip", "link", "set", f"uc{a.id[:13]}", "down")
    with pytest.raises(CheckFailed, match="down"):
        a.check()
    with pytest.raises(CniError, match="eth0 already"):
        lab.attach(VETH, container=a.container)
    # DEL still works after the namespace, and the pair with it, is gone.
    a.container.close()
    a.delete()
    lab.assert_clean()


@pytest.mark.parametrize("direction", ["ingress", "egress"])
def test_bandwidth_of_a_veth(lab: VppLab, direction: str) -> None:
    rate, burst = 8_000_000, 400_000
    limits = Bandwidth(**{f"{direction}_rate": rate, f"{direction}_burst": burst})
    a = lab.attach_kernel(VETH, "10.1.0.2/24", bandwidth=limits)
    a.check()
    # Without VPP: what passes between the two ends of the pair is limited all the same.
    name = f"uc{a.id[:13]}"
    lab.host.run("ip", "address", "add", "10.1.0.1/24", "dev", name)
    mac = json.loads(lab.host.run("ip", "-j", "link", "show", name))[0]["address"]
    a.container.run("ip", "neigh", "replace", "10.1.0.1", "lladdr", mac, "dev", "eth0")
    began = time.monotonic()
    if direction == "ingress":
        assert transfer(a.container, lab.host, "10.1.0.2", 1_000_000) == 1_000_000
    else:
        assert transfer(lab.host, a.container, "10.1.0.1", 1_000_000) == 1_000_000
    assert time.monotonic() - began > 0.95 * (8_000_000 - burst) / rate
    queue = ["ingress"] if direction == "ingress" else ["root"]
    a.container.run("tc", "qdisc", "del", "dev", "eth0", *queue)
    with pytest.raises(CheckFailed, match="has lost the limit"):
        a.check()
    a.delete()
    assert a.container.links() == set()
    lab.assert_clean()


def test_bandwidth_ends_with_an_add_that_fails(lab: VppLab) -> None:
    limits = Bandwidth(ingress_rate=8_000_000)
    attachment = lab.attachment(lab.container(), bandwidth=limits)
    host_engine_undo(lab.engine, attachment, VETH, lab.call)
    lab.assert_clean()


def test_tap_needs_vhost_net(lab: VppLab) -> None:
    host = conf("tap", "bridge", bridge=DOMAIN)
    if Path("/dev/vhost-net").exists():
        a = lab.attach(host)
        a.check()
        a.delete()
    else:
        for act in (lambda: lab.call(lab.engine.status, host), lambda: lab.attach(host)):
            with pytest.raises(CniError, match="vhost-net"):
                act()
    lab.assert_clean()


@pytest.mark.parametrize(
    ("host", "where"),
    [
        (conf("memif", "bridge"), "host.bridge.bridgeName"),
        (conf("memif", "none", bridge=BridgeSection(vlan_id=3)), "host.bridge.vlanId"),
        (conf("memif", "none", interface=InterfaceSection(vrf=3)), "host.interface"),
        (
            conf("memif", "bridge", bridge=DOMAIN, memif=MemifSection(mode="ip")),
            "host.memif.mode",
        ),
    ],
)
def test_combinations_that_cannot_work(sim: VppLab, host: EngineConf, where: str) -> None:
    with pytest.raises(InvalidConfig, match=where):  # noqa: PT012  the runtime's way to an ADD
        for problem in sim.engine.problems(host):
            raise problem
        sim.attach(host)
    assert sim.vpp.log == []


@pytest.mark.parametrize(
    ("host", "where"),
    [
        (conf("memif", "interface"), "host.netType"),
        (
            conf("memif", "bridge", bridge=BridgeSection(bridge_id=1, gateway=True)),
            "host.bridge.gateway",
        ),
    ],
)
def test_what_ipam_s_answer_rules_out_is_undone(sim: VppLab, host: EngineConf, where: str) -> None:
    with pytest.raises(InvalidConfig, match=where):
        sim.attach(host)
    sim.assert_clean()
