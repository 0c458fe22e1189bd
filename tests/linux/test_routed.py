from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from lab.contract import host_engine_life, host_engine_undo
from lab.netns import transfer
from linux.conftest import Lab, conf, ips, route
from userspace_cni.api import Addresses
from userspace_cni.cni.errors import CheckFailed, DataplaneError, InvalidConfig
from userspace_cni_linux.sections import BridgeSection

if TYPE_CHECKING:
    from userspace_cni.api import EngineConf

ROUTED = conf("veth", "interface")
GATEWAY = conf("veth", "bridge", bridge=BridgeSection(bridge_name="br0", gateway=True))


def dual(n: int) -> tuple[str, ...]:
    return f"10.1.0.{n}/24>10.1.0.1", f"fd00:1::{n}/64>fd00:1::1"


def test_life_and_undo(lab: Lab) -> None:
    container = lab.container()
    for act in (host_engine_life, host_engine_undo):
        act(lab.engine, lab.attachment(container, ips=ips(*dual(2))), ROUTED, lab.call)
        assert lab.host.links() == container.links() == set()


@pytest.mark.parametrize("host", [ROUTED, GATEWAY])
def test_ipam_is_waited_for_when_the_port_is_made(lab: Lab, host: EngineConf) -> None:
    made: list[bool] = []

    def addresses() -> Addresses:
        made.append(any(name.startswith("uc") for name in lab.host.links()))
        return Addresses(ips=ips(*dual(2)))

    attachment = lab.attachment(lab.container(), addresses=addresses)
    with ExitStack() as undo:
        lab.call(lab.engine.add, attachment, host, undo)
        undo.pop_all()
    assert made
    assert all(made)


def test_host_and_containers_reach_each_other(lab: Lab) -> None:
    a, b = lab.attach(ROUTED, *dual(2)), lab.attach(ROUTED, *dual(3))
    assert a.port.point_to_point
    for address in ("10.1.0.1", "fd00:1::1", "10.1.0.3", "fd00:1::3"):
        assert a.container.ping(address), address
    for address in ("10.1.0.2", "fd00:1::2"):
        assert lab.host.ping(address), address
    assert transfer(b.container, a.container, "10.1.0.3", 500_000) == 500_000
    assert transfer(b.container, a.container, "fd00:1::3", 500_000) == 500_000
    a.check()
    b.check()
    a.delete()
    assert not b.container.ping("10.1.0.2", timeout=0.2)
    assert b.container.ping("10.1.0.1")
    b.check()


def test_the_gateway_is_the_only_neighbour(lab: Lab) -> None:
    a = lab.attach(ROUTED, *dual(2), routes=(route("0.0.0.0/0"), route("::/0")))
    four = a.container.run("ip", "route")
    assert "default via 10.1.0.1 dev eth0" in four
    assert "10.1.0.0/24 via 10.1.0.1 dev eth0 proto static src 10.1.0.2" in four
    assert "10.1.0.1 dev eth0 proto static scope link src 10.1.0.2" in four
    six = a.container.run("ip", "-6", "route")
    assert "fd00:1::/64 via fd00:1::1 dev eth0 proto static src fd00:1::2" in six
    assert "fd00:1::1 dev eth0" in six
    assert "proto kernel" not in six.replace("fe80::/64 dev eth0 proto kernel", "")
    a.check()


def test_host_routes(lab: Lab) -> None:
    a = lab.attach(ROUTED, *dual(2))
    assert f"10.1.0.2 dev {a.port.name} proto static scope link" in lab.host.run("ip", "route")
    assert f"fd00:1::2 dev {a.port.name}" in lab.host.run("ip", "-6", "route")
    assert [i.name for i in a.port.interfaces] == [a.port.name]
    assert lab.host.run("cat", "/proc/sys/net/ipv4/ip_forward").strip() == "1"
    ra = f"/proc/sys/net/ipv6/conf/{a.port.name}/accept_ra"
    assert lab.host.run("cat", ra).strip() == "0"


@pytest.mark.parametrize("addresses", [(), ("10.1.0.2/24",), ("10.1.0.2/24>10.1.0.1", "fd::2/64")])
def test_it_needs_a_gateway_for_each_address(lab: Lab, addresses: tuple[str, ...]) -> None:
    with pytest.raises(
        InvalidConfig, match=r'host\.netType: "interface" needs a gateway from ipam'
    ):
        lab.attach(ROUTED, *addresses)
    assert lab.host.links() == set()


def test_an_address_that_another_container_has(lab: Lab) -> None:
    lab.attach(ROUTED, *dual(2))
    with pytest.raises(DataplaneError, match=r"route to 10\.1\.0\.2/32, the container's address"):
        lab.attach(ROUTED, *dual(2))
    assert len(lab.host.links()) == 1


def test_a_host_prefix_needs_no_subnet_route(lab: Lab) -> None:
    a = lab.attach(ROUTED, "10.1.0.2/32>169.254.1.1", routes=(route("0.0.0.0/0"),))
    assert a.container.ping("169.254.1.1")
    a.check()


@pytest.mark.parametrize(
    ("drift", "found"),
    [
        (("ip", "route", "del", "10.1.0.2"), r"lost the route to 10\.1\.0\.2/32"),
        (("ip", "-6", "route", "del", "fd00:1::2"), "lost the route to fd00:1::2/128"),
        (("ip", "addr", "del", "10.1.0.1/32", "dev", "END"), r"gateway address 10\.1\.0\.1/32"),
        (("ip", "link", "set", "END", "down"), "is down"),
    ],
)
def test_check_sees_the_hosts_drift(lab: Lab, drift: tuple[str, ...], found: str) -> None:
    a = lab.attach(ROUTED, *dual(2))
    lab.host.run(*(a.port.name if word == "END" else word for word in drift))
    with pytest.raises(CheckFailed, match=found):
        a.check()
