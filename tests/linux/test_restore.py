"""What somebody took from a port on the host is put back, without touching the container."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

from linux.conftest import conf
from userspace_cni.cni.errors import CheckFailed
from userspace_cni_linux.sections import BridgeSection

if TYPE_CHECKING:
    from linux.conftest import Attached, Lab

HERE, THERE = "10.1.0.2/24>10.1.0.1", "10.1.0.3/24>10.1.0.1"
BRIDGED = conf("veth", "bridge", bridge=BridgeSection(bridge_name="br0", gateway=True))
HAIRPIN = conf("veth", "bridge", bridge=BridgeSection(bridge_name="br0", hairpin=True))
ROUTED = conf("veth", "interface")


@pytest.mark.parametrize(
    ("host", "damage"),
    [
        (BRIDGED, "ip link set {} nomaster"),
        (BRIDGED, "ip link set {} down"),
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
        with ExitStack() as undo:
            each.port = lab.call(lab.engine.restore, each.attachment, host, each.port, undo)
            undo.pop_all()
        each.check()
    assert [_links(each) for each in (one, two)] == inside
    assert one.container.ping("10.1.0.3")
    for each in (one, two):
        each.delete()
    assert lab.host.links() == set()


def _links(attached: Attached) -> set[str]:
    """Return the container's interfaces, by number and name."""
    lines = attached.container.run("ip", "-o", "link").splitlines()
    return {" ".join(line.split()[:2]) for line in lines}
