"""Kernel ports on the userspace datapath: veth and tap."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from lab.node import poll
from lab.ovs_lab import Container, OvsLab, kernel, vhost
from lab.testpmd import Testpmd

pytestmark = pytest.mark.own_process("a lab node has namespaces of its own")

_SERVE = """
import socket
with socket.create_server(("", 7000), family=socket.AF_INET) as server:
    print("ready", flush=True)
    connection, _ = server.accept()
    total = 0
    while data := connection.recv(65536):
        total += len(data)
    connection.sendall(str(total).encode())
    connection.close()
"""
_SEND = """
import socket, sys
with socket.create_connection((sys.argv[1], 7000), timeout=20) as connection:
    connection.sendall(bytes(1_000_000))
    connection.shutdown(socket.SHUT_WR)
    print(connection.recv(100).decode())
"""

# Send an ARP request with a VLAN tag; print the VLAN and the sender of the answer. This uses a raw
# socket, because not every kernel has VLAN devices.
_ASK = r"""
import socket, struct, sys
vlan, address = int(sys.argv[1]), socket.inet_aton(sys.argv[2])
with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)) as raw:
    raw.setsockopt(263, 8, 1)  # SOL_PACKET, PACKET_AUXDATA
    raw.bind(("eth0", 3))
    raw.settimeout(1.5)
    mac = raw.getsockname()[4]
    arp = struct.pack("!HHBBH", 1, 0x800, 6, 4, 1) + mac + bytes(4) + bytes(6) + address
    raw.send(b"\xff" * 6 + mac + struct.pack("!HHH", 0x8100, vlan, 0x806) + arp + bytes(28))
    try:
        while True:
            frame, ancillary, _, _ = raw.recvmsg(2000, 100)
            if frame[12:14] == b"\x08\x06" and frame[20:22] == b"\0\2":
                tag = struct.unpack_from("=IIIHHHH", ancillary[0][2])[5] & 0xFFF
                print(tag, frame[6:12].hex(":"))
                break
    except TimeoutError:
        print("nobody")
"""


_QUEUES = {"ingress": ["ingress"], "egress": ["root"]}


def _address(container: Container) -> str:
    return str(container.result["ips"][0]["address"].split("/")[0])


def _exchange(lab: OvsLab, server: Container, client: Container, tmp_path: Path) -> None:
    """Ping, and send a million bytes through TCP."""
    lab.node.ping(client.netns, _address(server))
    log = tmp_path / f"{server.name}.log"
    process = lab.node.popen(
        ["nsenter", f"--net={server.netns}", "--", sys.executable, "-c", _SERVE], log=log
    )
    poll(lambda: "ready" in log.read_text(), "the TCP server")
    said = lab.node.enter(client.netns, [sys.executable, "-c", _SEND, _address(server)])
    assert said.strip() == "1000000"
    process.wait(10)


@pytest.mark.parity
@pytest.mark.parametrize("kinds", [("veth", "veth"), ("tap", "tap"), ("veth", "tap")], ids="-".join)
def test_kernel_containers_ping_and_speak_tcp(
    lab: OvsLab, tmp_path: Path, kinds: tuple[str, str]
) -> None:
    one, two = (
        lab.attach(kernel(kind, "10.20.0.0/24", tmp_path / "ipam", mtu=1400)) for kind in kinds
    )
    _exchange(lab, one, two, tmp_path)
    for container in (one, two):
        link = lab.node.links(container.netns)["eth0"]
        assert link["mtu"] == 1400
        assert link["address"] == container.interface["mac"]
        container.check().succeeded()
        container.delete()
        assert "eth0" not in lab.node.links(container.netns)


@pytest.mark.parametrize("kind", ["veth", "tap"])
def test_kernel_containers_are_separated_by_vlans(lab: OvsLab, tmp_path: Path, kind: str) -> None:
    def network(vlan: int) -> dict[str, Any]:
        config = kernel(kind, "10.21.0.0/24", tmp_path / "ipam", bridge={"vlanId": vlan})
        return config | {"name": "vlans"}

    one, two, other = (lab.attach(network(vlan)) for vlan in (100, 100, 200))
    lab.node.ping(one.netns, _address(two))
    with pytest.raises(RuntimeError, match="100% packet loss"):
        lab.node.enter(one.netns, ["busybox", "ping", "-c", "2", "-W", "1", _address(other)])
    for container in (one, two, other):
        container.delete()


def test_a_trunk_carries_its_vlans_and_its_native_one(lab: OvsLab, tmp_path: Path) -> None:
    access = lab.attach(
        kernel("veth", "10.22.0.0/24", tmp_path / "a", bridge={"vlanId": 100}) | {"name": "access"}
    )
    trunk = lab.attach(
        kernel(
            "veth",
            "10.22.1.0/24",
            tmp_path / "t",
            bridge={"vlanId": 7, "trunk": [{"id": 50}, {"minID": 99, "maxID": 101}]},
        )
        | {"name": "trunk"}
    )
    row = lab.ovs.row("Port", trunk.port)
    assert (row["tag"], row["vlan_mode"], row["trunks"]) == (
        7,
        "native-untagged",
        ["set", [50, 99, 100, 101]],
    )
    trunk.check().succeeded()
    asked = [sys.executable, "-c", _ASK, "100", _address(access)]
    assert lab.node.enter(trunk.netns, asked).split() == ["100", access.interface["mac"]]
    # A VLAN that is not in the trunk.
    asked[-2] = "98"
    assert lab.node.enter(trunk.netns, asked).strip() == "nobody"
    lab.ovs.vsctl("set", "Port", trunk.port, "trunks=50")
    assert trunk.check().code == 104
    for container in (access, trunk):
        container.delete()


def test_the_host_does_not_answer_on_the_port_of_a_container(lab: OvsLab, tmp_path: Path) -> None:
    container = lab.attach(kernel("veth", "10.23.0.0/24", tmp_path / "ipam"))
    lab.node.run(["ip", "address", "add", "10.23.0.254/32", "dev", "lo"])
    try:
        with pytest.raises(RuntimeError):
            lab.node.ping(container.netns, "10.23.0.254")
        host_end = lab.node.links()[container.port]
        assert not any(address["family"] == "inet6" for address in host_end["addr_info"])
    finally:
        lab.node.run(["ip", "address", "del", "10.23.0.254/32", "dev", "lo"])
    container.delete()


@pytest.mark.parametrize("kind", ["veth", "tap"])
def test_a_container_that_has_vanished_is_deleted(lab: OvsLab, tmp_path: Path, kind: str) -> None:
    container = lab.attach(kernel(kind, "10.24.0.0/24", tmp_path / "ipam"))
    lab.node.run(["ip", "netns", "del", container.name])
    container.delete()
    container.delete()


@pytest.mark.parametrize("kind", ["veth", "tap"])
def test_an_interface_name_taken_in_the_container(lab: OvsLab, tmp_path: Path, kind: str) -> None:
    container = lab.container(kernel(kind, "10.25.0.0/24", tmp_path / "ipam"))
    lab.node.enter(container.netns, ["ip", "tuntap", "add", "eth0", "mode", "tap"])
    outcome = container.call("ADD")
    assert outcome.code == 103
    assert "eth0" in outcome.text
    assert lab.leftovers() == []
    assert "eth0" in lab.node.links(container.netns)


@pytest.mark.parametrize("direction", ["ingress", "egress"])
@pytest.mark.parametrize("kind", ["veth", "tap"])
def test_bandwidth_of_a_kernel_port(lab: OvsLab, tmp_path: Path, kind: str, direction: str) -> None:
    network = kernel(kind, "10.26.0.0/24", tmp_path / "ipam")
    rate, burst = 4_000_000, 400_000
    limits = {f"{direction}Rate": rate, f"{direction}Burst": burst}
    capable = {"capabilities": {"bandwidth": True}, "runtimeConfig": {"bandwidth": limits}}
    limited, other = lab.attach(network | capable), lab.attach(network)
    server, client = (limited, other) if direction == "ingress" else (other, limited)
    began = time.monotonic()
    _exchange(lab, server, client, tmp_path)
    # A million bytes, of which the burst passes at once.
    assert time.monotonic() - began > 0.95 * (8_000_000 - burst) / rate
    limited.check().succeeded()
    lab.node.enter(limited.netns, ["tc", "qdisc", "del", "dev", "eth0", *_QUEUES[direction]])
    refused = limited.check()
    assert refused.code == 104
    assert "has lost the limit" in refused.text
    for container in (limited, other):
        container.delete()
        assert list(lab.node.links(container.netns)) == ["lo"]


def test_a_kernel_container_reaches_a_dpdk_application(lab: OvsLab, tmp_path: Path) -> None:
    container = lab.attach(kernel("veth", "10.27.0.0/24", tmp_path / "ipam"))
    application = lab.attach(vhost() | {"name": "dpdk"})
    with Testpmd(
        lab.node,
        application.netns,
        application.document,
        peer=container.interface["mac"],
        # This mode answers ARP and ping for every address.
        mode="icmpecho",
    ) as testpmd:
        lab.ovs.until_link(application.port)
        testpmd.command("start")
        lab.node.ping(container.netns, "10.27.0.99")
    assert json.loads(application.document.read_text())["vhostUser"]["mode"] == "server"
    for one in (container, application):
        one.delete()
