"""Packets before and after a restart, of VPP or of the application: docs/restarts.md."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from lab.node import poll
from lab.vpp_lab import Attached, VppLab, conf, start
from userspace_cni_vpp.sections import BridgeSection, VhostSection

if TYPE_CHECKING:
    from lab.testpmd import Testpmd

DOMAIN = BridgeSection(bridge_id=4)
#: Networks by VPP's role.
NETWORKS = {
    "vhost-client": conf("vhostuser", "bridge", bridge=DOMAIN, vhost=VhostSection(mode="client")),
    "vhost-server": conf("vhostuser", "bridge", bridge=DOMAIN, vhost=VhostSection(mode="server")),
    "memif-server": conf("memif", "bridge", bridge=DOMAIN),
}
#: The application's link state when VPP is back, before anything else is done.
_LINK_BEFORE = {"vhost-client": "up", "memif-server": "down"}


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("killed", ["application", "switch"])
def test_packets_before_and_after(traffic_lab: VppLab, kind: str, killed: str) -> None:
    lab = traffic_lab
    attached = [lab.attach(NETWORKS[kind]) for _ in range(2)]
    with ExitStack() as stack:
        one, two = _applications(attached, stack)
        _exchange(one, two)
        if killed == "switch":
            _idle(one, two)
            lab.restart()
            for each in attached:
                with ExitStack() as undo:
                    lab.call(lab.engine.restore, each.attachment, each.conf, each.port, undo)
                    undo.pop_all()
        if killed == "application" or kind == "vhost-server":
            # virtio-user in client mode connects only when it starts.
            for application in (one, two):
                application.crash()
            one, two = _applications(attached, stack)
        else:
            # A memif client connects when its port starts. A virtio-user server has been connected
            # to again, but VPP waits for a kick that it gives when its port starts.
            poll(lambda: {one.link, two.link} == {_LINK_BEFORE[kind]}, "the applications' links")
            for application in (one, two):
                application.reconnect()
        _exchange(one, two)
        for each in attached:
            each.check()
    for each in attached:
        each.delete()
    lab.assert_clean()


def test_a_vpp_in_the_container_is_killed(traffic_lab: VppLab) -> None:
    lab = traffic_lab
    host = NETWORKS["memif-server"]
    a, b = lab.attach(host, "10.5.0.2/24"), lab.attach(host, "10.5.0.3/24")
    one, two = a.guest(), b.guest()
    assert one.vpp.ping("10.5.0.3")
    two.vpp.kill()
    b.container.call(two.vpp.start)
    assert not one.vpp.ping("10.5.0.3", tries=1)
    two.call("add")  # which the agent does
    poll(lambda: one.vpp.ping("10.5.0.3", tries=1), "the ping")


def _idle(*applications: Testpmd) -> None:
    """Stop polling: DPDK 22.11's memif driver may crash if it polls while the server ends."""
    for each in applications:
        each.command("stop")


def _applications(attached: list[Attached], stack: ExitStack) -> list[Testpmd]:
    first, second = attached
    applications = [start(first, second, stack), start(second, first, stack)]
    switch = first.lab.switch
    poll(lambda: all(port.link for port in switch.ports() if port.tag), "the links")
    return applications


def _exchange(one: Testpmd, two: Testpmd) -> None:
    poll(lambda: _passes(one, two) and _passes(two, one), "packets pass")


def _passes(sender: Testpmd, receiver: Testpmd) -> bool:
    for each in (sender, receiver):
        each.command("stop")
        each.command("clear port stats all")
    receiver.command("start")
    sender.send()
    try:
        poll(lambda: receiver.received >= 32, "32 packets", 3)
    except TimeoutError:
        return False
    return (sender.sent, receiver.received) == (32, 32)
