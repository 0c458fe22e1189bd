"""Restoration of the host's side of a port, without touching the container."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

from linux.conftest import conf
from userspace_cni.api import Bandwidth
from userspace_cni.cni.errors import CheckFailed
from userspace_cni_linux.sections import BridgeSection, MacvlanSection

if TYPE_CHECKING:
    from linux.conftest import Attached, Lab

HERE, THERE = "10.1.0.2/24>10.1.0.1", "10.1.0.3/24>10.1.0.1"
BRIDGED = conf("veth", "bridge", bridge=BridgeSection(bridge_name="br0", gateway=True))
HAIRPIN = conf("veth", "bridge", bridge=BridgeSection(bridge_name="br0", hairpin=True))
ROUTED = conf("veth", "interface")
TAP = conf("tap", "none")
MACVLAN = conf("macvlan", "none", macvlan=MacvlanSection(master="up0"))


@pytest.mark.parametrize(
    ("host", "damage"),
    [
        (BRIDGED, "ip link set {} nomaster"),
        (BRIDGED, "ip link set {} down"),
        (BRIDGED, "ip link set br0 down"),
        (BRIDGED, "ip link delete br0"),
        (BRIDGED, "ip address flush dev br0"),
        (HAIRPIN, "ip link set {} nomaster"),
        (HAIRPIN, "ip link delete br0"),
        (ROUTED, "ip link set {} down"),
        (ROUTED, "ip address flush dev {}"),
        (ROUTED, "ip route flush dev {}"),
    ],
)
def test_a_port_is_mended(lab: Lab, host: Any, damage: str) -> None:
    one, two = lab.attach(host, HERE), lab.attach(host, THERE)
    inside = [_links(each) for each in (one, two)]
    lab.host.run(*damage.format(one.port.name).split())
    with pytest.raises(CheckFailed):
        one.check()
    for each in (one, two):
        _restore(each)
        each.check()
    assert [_links(each) for each in (one, two)] == inside
    assert one.container.ping("10.1.0.3")
    for each in (one, two):
        each.delete()
    assert lab.host.links() == set()


@pytest.mark.parametrize("host", [TAP, MACVLAN], ids=lambda host: host.iftype)
@pytest.mark.parametrize("limits", [None, Bandwidth(ingress_rate=8_000_000)])
def test_what_lived_in_the_container_is_made_again_with_its_address(
    lab: Lab, host: Any, limits: Bandwidth | None
) -> None:
    lab.host.run("ip", "link", "add", "up0", "up", "type", "veth", "peer", "name", "up1")
    one = lab.attach(host, HERE, bandwidth=limits)
    one.container.run("ip", "link", "delete", "eth0")
    with pytest.raises(CheckFailed, match="eth0 is gone"):
        one.check()
    port = one.port
    _restore(one)
    one.container.call(lab.container_engine.add, one.handoff)
    one.check()
    assert one.port == port
    one.delete()
    assert one.container.links() == set()


@pytest.mark.parametrize("host", [TAP, MACVLAN], ids=lambda host: host.iftype)
@pytest.mark.parametrize("taken", [False, True])
def test_what_the_container_has_renamed_is_left_alone(lab: Lab, host: Any, taken: bool) -> None:
    lab.host.run("ip", "link", "add", "up0", "up", "type", "veth", "peer", "name", "up1")
    one = lab.attach(host, HERE)
    one.container.run("ip", "link", "set", "eth0", "down")
    one.container.run("ip", "link", "set", "eth0", "name", "mine", "up")
    if taken:
        one.container.run("ip", "link", "add", "eth0", "type", "veth", "peer", "name", "x")
    inside = _links(one)
    with pytest.raises(CheckFailed):
        one.check()
    with pytest.raises(CheckFailed, match="the container has renamed eth0 to mine"):
        _restore(one)
    assert _links(one) == inside
    one.delete()
    assert one.container.links() == ({"eth0", "x"} if taken else set())


def _restore(attached: Attached) -> None:
    """Restore the host's end as the runtime does."""
    lab = attached.lab
    undo = ExitStack()
    try:
        attached.port = lab.call(
            lab.engine.restore, attached.attachment, attached.conf, attached.port, undo
        )
    except BaseException:
        lab.call(undo.close)
        raise
    undo.pop_all()


def _links(attached: Attached) -> set[str]:
    """Return the container's interfaces, by number and name."""
    lines = attached.container.run("ip", "-o", "link").splitlines()
    return {" ".join(line.split()[:2]) for line in lines}
