"""DPDK applications on OVS-DPDK that use only their hand-over files."""

from __future__ import annotations

import json
import stat
import time
from contextlib import ExitStack, nullcontext
from typing import Any

import pytest

from lab.node import poll
from lab.ovs_lab import Container, OvsLab, memif, start, vhost
from lab.testpmd import Testpmd
from userspace_cni.cni.errors import CheckFailed
from userspace_cni_ovs import host, switch
from userspace_cni_ovs.ports import PortSpec
from userspace_cni_ovs.sections import BridgeSection

pytestmark = pytest.mark.own_process("a lab node has namespaces of its own")


def _pair(
    lab: OvsLab, stack: ExitStack, config: dict[str, Any], *options: str
) -> tuple[list[Container], list[Testpmd]]:
    """Attach two containers and start an application in each."""
    first, second = containers = [lab.attach(config) for _ in range(2)]
    applications = [start(first, second, stack, *options), start(second, first, stack, *options)]
    if "memif" in config["host"]["iftype"]:
        _until_links(applications, "up")
    else:
        for container in containers:
            lab.ovs.until_link(container.port)
    return containers, applications


def _until_links(applications: list[Testpmd], state: str) -> None:
    """Wait until the driver's thread has told each application about its peer."""
    poll(lambda: {one.link for one in applications} == {state}, f"the links are {state}")


def _delete(containers: list[Container], stack: ExitStack) -> None:
    stack.close()
    for container in containers:
        container.delete()


@pytest.mark.parity
def test_vhost_user_clients_of_the_switch(lab: OvsLab, stack: ExitStack) -> None:
    containers, (one, two) = _pair(lab, stack, vhost())
    assert lab.ovs.ports("br0") == sorted(container.port for container in containers)
    for container in containers:
        container.check().succeeded()
        assert lab.ovs.get("Interface", container.port, "type") == "dpdkvhostuserclient"
    lab.traffic(one, two)
    lab.traffic(two, one, bursts=4)
    _delete(containers, stack)


def test_vhost_user_server_is_the_switch(lab: OvsLab, stack: ExitStack) -> None:
    containers, (one, two) = _pair(lab, stack, vhost(host={"vhost": {"mode": "server"}}))
    for container in containers:
        container.check().succeeded()
        assert json.loads(container.document.read_text())["vhostUser"]["mode"] == "client"
        assert lab.ovs.get("Interface", container.port, "type") == "dpdkvhostuser"
    lab.traffic(one, two)
    lab.traffic(two, one, bursts=4)
    _delete(containers, stack)


@pytest.mark.parity
def test_memif_with_as_many_queues_as_the_switch_sends_to(lab: OvsLab, stack: ExitStack) -> None:
    config = memif(host={"memif": {"secret": "s3cret", "ringSize": 512, "id": 7}})
    containers, (one, two) = _pair(lab, stack, config)
    for container in containers:
        container.check().succeeded()
        port = json.loads(container.document.read_text())["memif"]
        # One PMD thread and the main thread
        assert (port["rxQueues"], port["txQueues"], port["role"]) == (2, 2, "client")
        assert "s3cret" not in json.dumps(container.result)
        socket = container.document.with_name("eth0.sock")
        assert stat.S_IMODE(socket.stat().st_mode) == 0o660
        assert stat.S_IMODE(container.document.stat().st_mode) == 0o640
        assert stat.S_IMODE(container.document.parent.stat().st_mode) == 0o750
    lab.traffic(one, two)
    lab.traffic(two, one, bursts=4)
    _delete(containers, stack)


def test_memif_is_attached_again_under_the_same_name(lab: OvsLab, stack: ExitStack) -> None:
    containers, (one, two) = _pair(lab, stack, memif())
    containers[1].delete()
    containers[1].add()
    _until_links([two], "down")
    # A DPDK client does not reconnect by itself.
    two.command("port stop 0")
    two.command("port start 0")
    _until_links([one, two], "up")
    lab.traffic(one, two)
    _delete(containers, stack)


@pytest.mark.parametrize("network", [vhost, memif])
def test_vlans_separate(lab: OvsLab, stack: ExitStack, network: Any) -> None:
    red, also_red, blue = (
        lab.attach(network(bridge={"vlanId": vlan}) | {"name": f"vlan{vlan}"})
        for vlan in (10, 10, 20)
    )
    sender = start(red, also_red, stack)
    same, other = start(also_red, red, stack), start(blue, red, stack)
    if network is vhost:
        for container in (red, also_red, blue):
            lab.ovs.until_link(container.port)
    lab.traffic(sender, same)
    red.check().succeeded()
    # The same address as the destination, so that only the VLAN can keep it away.
    sender.command(f"set eth-peer 0 {blue.interface['mac']}")
    lab.traffic(sender, other, expected=0)
    _delete([red, also_red, blue], stack)


def test_large_frames_pass_where_the_mtu_is_large(lab: OvsLab, stack: ExitStack) -> None:
    large, also_large, normal = (
        lab.attach(vhost(mtu=mtu) | {"name": f"mtu{mtu}"}) for mtu in (3000, 3000, 1500)
    )
    sender = start(large, also_large, stack)
    receivers = [
        start(also_large, large, stack, "--max-pkt-len=3018", "--mbuf-size=4096"),
        start(normal, large, stack, "--max-pkt-len=3018", "--mbuf-size=4096"),
    ]
    for container in (large, also_large, normal):
        lab.ovs.until_link(container.port)
    assert lab.ovs.get("Interface", large.port, "mtu") == "3000"
    assert large.interface["mtu"] == 3000
    sender.command("set txpkts 1000,900")
    lab.traffic(sender, receivers[0])
    sender.command(f"set eth-peer 0 {normal.interface['mac']}")
    lab.traffic(sender, receivers[1], expected=0)
    _delete([large, also_large, normal], stack)


@pytest.mark.parametrize(("network", "most"), [(vhost, 9702), (memif, 1500)])
def test_an_mtu_that_the_switch_does_not_give_is_refused(
    lab: OvsLab, network: Any, most: int
) -> None:
    for mtu in (most + 1, 20000):
        outcome = lab.container(network(mtu=mtu)).call("ADD")
        assert outcome.code == 7
        assert "mtu" in outcome.text
        assert f"{most} bytes" in outcome.text
        assert str(mtu) in outcome.text


def test_the_largest_mtu_is_what_the_switch_has(lab: OvsLab, stack: ExitStack) -> None:
    container = lab.attach(vhost(mtu=9702))
    start(container, container, stack)
    lab.ovs.until_link(container.port)
    poll(lambda: lab.ovs.get("Interface", container.port, "mtu") == "9702", "the MTU")
    container.check().succeeded()
    _delete([container], stack)


@pytest.mark.parametrize(("given", "fits"), [(0, True), (9000, True), (1500, False)])
def test_check_sees_an_mtu_that_the_switch_has_not_given(given: int, fits: bool) -> None:
    """For example for lack of memory; 0 means that no application has connected."""
    spec = PortSpec(name="p", type="", bridge=BridgeSection(), external_ids={}, mtu_request=9000)
    found = switch.Port(uuid="", port={}, interface={"mtu": given}, bridge="")
    with nullcontext() if fits else pytest.raises(CheckFailed, match="expected 9000, found 1500"):
        host._require_mtu(found, spec)


_RATE = 8_000_000  # bit/s: a thousand frames of 1,000 bytes each second


@pytest.mark.parametrize("direction", ["ingress", "egress"])
def test_bandwidth_is_limited(lab: OvsLab, stack: ExitStack, direction: str) -> None:
    limits = {f"{direction}Rate": _RATE, f"{direction}Burst": _RATE // 10}
    limited = lab.attach(
        vhost(capabilities={"bandwidth": True}, runtimeConfig={"bandwidth": limits})
        | {"name": "limited"}
    )
    free = lab.attach(vhost())
    limited.check().succeeded()
    sender, receiver = (limited, free) if direction == "egress" else (free, limited)
    sending, receiving = start(sender, receiver, stack), start(receiver, sender, stack)
    for container in (limited, free):
        lab.ovs.until_link(container.port)
    sending.command("set txpkts 1000")
    sending.command("set fwd txonly")
    receiving.command("start")
    began = time.monotonic()
    sending.command("start")
    time.sleep(1.0)
    sending.command("stop")
    seconds = time.monotonic() - began
    time.sleep(0.2)
    allowed = (_RATE * seconds + _RATE // 10) / 8000
    # At least half must arrive, otherwise a limit that blocks everything would pass.
    assert allowed * 0.4 < receiving.received < allowed * 1.3
    assert sending.sent > 5 * receiving.received
    _delete([limited, free], stack)


@pytest.mark.one_process("the daemon removes at once what a killed switch has left")
def test_a_killed_switch_does_not_lock_itself_out(own_lab: OvsLab, stack: ExitStack) -> None:
    lab = own_lab
    containers, (one, two) = _pair(lab, stack, memif())
    lab.ovs.kill_switch()
    assert containers[0].document.with_name("eth0.sock").exists()
    lab.ovs.start_switch()
    assert lab.ovs.get("Interface", containers[0].port, "ofport") == "-1"
    assert containers[0].check().code == 104
    # These only read.
    lab.call("STATUS", containers[0]).succeeded()
    valid = [{"containerID": each.name, "ifname": each.ifname} for each in containers]
    config = containers[0].config | {"cni.dev/valid-attachments": valid}
    lab.call("GC", containers[0], config=config).succeeded()
    assert lab.ovs.get("Interface", containers[0].port, "ofport") == "-1"
    assert lab.restore(*containers) == ""
    poll(lambda: containers[0].check().status == 0, "the port is back")
    for application in (one, two):
        application.command("port stop 0")
        application.command("port start 0")
    lab.traffic(one, two)
    _delete(containers, stack)
    assert lab.leftovers() == []
