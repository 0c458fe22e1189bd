"""Traffic through a real VPP, if one is installed."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from lab.netns import transfer
from lab.node import poll
from lab.vpp_lab import VppLab, conf, route
from userspace_cni.api import Bandwidth
from userspace_cni_vpp.sections import BridgeSection, InterfaceSection, MemifSection

if TYPE_CHECKING:
    from lab.vpp_lab import Attached, Guest

DOMAIN = BridgeSection(bridge_id=4)


def _linked(lab: VppLab, *attached: Attached) -> None:
    def all_up() -> bool:
        return all(
            port.link for a in attached for port in lab.switch.ports(containing=[a.id.encode()])
        )

    poll(all_up, "the links of the host's VPP")


@pytest.mark.parametrize(
    "memif",
    [
        MemifSection(),
        MemifSection(socket="abstract"),
        MemifSection(role="slave"),
        MemifSection(
            id=7, secret="s3cret", rx_queues=2, tx_queues=2, zero_copy=True, ring_size=256
        ),
    ],
    ids=["path", "abstract", "client", "everything"],
)
def test_two_containers_ping_through_a_bridge_domain(
    traffic_lab: VppLab, memif: MemifSection
) -> None:
    lab = traffic_lab
    host = conf("memif", "bridge", bridge=DOMAIN, memif=memif)
    a = lab.attach(host, "10.5.0.2/24", "fd00:5::2/64")
    b = lab.attach(host, "10.5.0.3/24", "fd00:5::3/64")
    one, two = a.guest(), b.guest()
    _linked(lab, a, b)
    assert one.vpp.ping("10.5.0.3")
    assert two.vpp.ping("fd00:5::2")
    for each in (a, b):
        each.check()
    for guest in (one, two):
        guest.call("check")


def test_vlans_separate(traffic_lab: VppLab) -> None:
    lab = traffic_lab

    def attach(vlan: int | None, address: str) -> tuple[Attached, Guest]:
        section = BridgeSection(bridge_id=4, vlan_id=vlan)
        found = lab.attach(conf("memif", "bridge", bridge=section), address)
        return found, found.guest()

    (a, red), (b, _), (c, _), (d, _) = (
        attach(10, "10.5.0.2/24"), attach(10, "10.5.0.3/24"),
        attach(20, "10.5.0.4/24"), attach(None, "10.5.0.5/24"),
    )  # fmt: skip
    _linked(lab, a, b, c, d)
    assert red.vpp.ping("10.5.0.3")
    assert not red.vpp.ping("10.5.0.4", tries=2)
    assert not red.vpp.ping("10.5.0.5", tries=2)


def test_gateway_of_a_bridge(traffic_lab: VppLab) -> None:
    lab = traffic_lab
    host = conf("memif", "bridge", bridge=BridgeSection(bridge_name="blue", gateway=True))
    a = lab.attach(host, "10.6.0.2/24>10.6.0.1", "fd00:6::2/64>fd00:6::1")
    guest = a.guest()
    _linked(lab, a)
    assert guest.vpp.ping("10.6.0.1")
    assert guest.vpp.ping("fd00:6::1")


@pytest.mark.parametrize("mode", ["ethernet", "ip"])
@pytest.mark.parametrize("vrf", [0, 7])
def test_routed_between_two_networks(traffic_lab: VppLab, mode: str, vrf: int) -> None:
    lab = traffic_lab
    section = InterfaceSection(vrf=vrf)
    host = conf("memif", "interface", interface=section, memif=MemifSection(mode=mode))  # type: ignore[arg-type]
    routes = (route("0.0.0.0/0"), route("::/0"))
    a = lab.attach(host, "10.7.1.2/24>10.7.1.1", "fd00:71::2/64>fd00:71::1", routes=routes)
    b = lab.attach(host, "10.7.2.2/24>10.7.2.1", "fd00:72::2/64>fd00:72::1", routes=routes)
    one, two = a.guest(), b.guest()
    for guest in (one, two):
        guest.call("check")
    _linked(lab, a, b)
    assert one.vpp.ping("10.7.2.2")
    assert two.vpp.ping("10.7.1.2")
    assert one.vpp.ping("fd00:72::2")


def test_kernel_container(traffic_lab: VppLab) -> None:
    lab = traffic_lab
    a = lab.attach(conf("memif", "bridge", bridge=DOMAIN), "10.8.0.2/24")
    k1 = lab.attach_kernel(conf("veth", "bridge", bridge=DOMAIN), "10.8.0.3/24", "fd00:8::3/64")
    k2 = lab.attach_kernel(conf("veth", "bridge", bridge=DOMAIN), "10.8.0.4/24", "fd00:8::4/64")
    guest = a.guest()
    _linked(lab, a)
    assert guest.vpp.ping("10.8.0.3")
    assert k1.container.ping("10.8.0.2", timeout=5)
    assert k1.container.ping("10.8.0.4", timeout=5)
    assert k1.container.ping("10.8.0.4", size=1400, timeout=5)
    assert transfer(k2.container, k1.container, "10.8.0.4", 500_000) == 500_000


def test_bandwidth_of_kernel_containers(traffic_lab: VppLab) -> None:
    lab, host = traffic_lab, conf("veth", "bridge", bridge=DOMAIN)
    rate, burst = 8_000_000, 400_000
    sender = Bandwidth(egress_rate=rate, egress_burst=burst)
    receiver = Bandwidth(ingress_rate=rate // 2, ingress_burst=burst)
    a = lab.attach_kernel(host, "10.8.0.3/24", bandwidth=sender)
    b = lab.attach_kernel(host, "10.8.0.4/24", bandwidth=receiver)
    c = lab.attach_kernel(host, "10.8.0.5/24")
    for server, client, address, limit in (
        (c, a, "10.8.0.5", rate),
        (b, c, "10.8.0.4", rate // 2),
    ):
        assert client.container.ping(address, timeout=5)
        began = time.monotonic()
        assert transfer(server.container, client.container, address, 1_000_000) == 1_000_000
        assert time.monotonic() - began > 0.95 * (8_000_000 - burst) / limit


def test_routed_kernel_container(traffic_lab: VppLab) -> None:
    lab = traffic_lab
    host = conf("veth", "interface")
    a = lab.attach_kernel(host, "10.9.1.2/24>10.9.1.1", routes=(route("0.0.0.0/0"),))
    b = lab.attach_kernel(host, "10.9.2.2/24>10.9.2.1", routes=(route("0.0.0.0/0"),))
    assert a.container.ping("10.9.1.1", timeout=5)
    assert a.container.ping("10.9.2.2", timeout=5)
    assert transfer(b.container, a.container, "10.9.2.2", 200_000) == 200_000


def test_traffic_after_a_restart_of_the_host(traffic_lab: VppLab) -> None:
    lab = traffic_lab
    host = conf("memif", "bridge", bridge=DOMAIN)
    a, b = lab.attach(host, "10.5.0.2/24"), lab.attach(host, "10.5.0.3/24")
    one, _ = a.guest(), b.guest()
    _linked(lab, a, b)
    assert one.vpp.ping("10.5.0.3")
    lab.restart()
    for each in (a, b):
        lab.call(lab.engine.delete, each.id, each.conf, each.attachment.netns)
        each.port = lab.add(each.attachment, each.conf)
    _linked(lab, a, b)
    assert one.vpp.ping("10.5.0.3")


def test_no_client_is_left_behind(traffic_lab: VppLab) -> None:
    lab = traffic_lab
    lab.attach(conf("memif", "none"))
    shown = lab.vpp.ctl("show", "api", "clients")
    assert shown.count("userspace-cni") == 1
