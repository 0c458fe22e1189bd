"""Packets before and after a restart, of the switch or of the application: docs/restarts.md."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from lab.node import poll
from lab.ovs_lab import Container, OvsLab, memif, start, vhost

if TYPE_CHECKING:
    from contextlib import ExitStack

    from lab.testpmd import Testpmd

pytestmark = [
    pytest.mark.one_process("what it asks is served alike: tests/ovs/test_dpdk.py"),
    pytest.mark.own_process("a lab node has namespaces of its own"),
]

#: Networks by the switch's role.
NETWORKS = {
    "vhost-client": vhost(),
    "vhost-server": vhost(host={"vhost": {"mode": "server"}}),
    "memif-server": memif(),
}


@pytest.fixture(params=NETWORKS)
def pair(
    request: pytest.FixtureRequest, own_lab: OvsLab, stack: ExitStack
) -> tuple[str, list[Container], list[Testpmd]]:
    """Two containers, and an application in each, that exchange packets."""
    containers = [own_lab.attach(NETWORKS[request.param]) for _ in range(2)]
    applications = _applications(containers, stack)
    _exchange(own_lab, *applications)
    return request.param, containers, applications


def test_the_application_is_killed(own_lab: OvsLab, stack: ExitStack, pair: Any) -> None:
    _, containers, (one, two) = pair
    for each in (one, two):
        each.crash()
    _exchange(own_lab, *_applications(containers, stack))
    for container in containers:
        container.check().succeeded()


def test_the_switch_is_killed(own_lab: OvsLab, stack: ExitStack, pair: Any) -> None:
    lab = own_lab
    kind, containers, (one, two) = pair
    _idle(one, two)
    _kill(lab)
    _put_back(lab, stack, kind, containers, [one, two])
    assert "failed to bind" not in lab.ovs.log


@pytest.mark.parametrize("pair", ["vhost-server"], indirect=True)
def test_the_switch_is_killed_again_before_anything_is_put_back(
    own_lab: OvsLab, stack: ExitStack, pair: Any
) -> None:
    lab = own_lab
    kind, containers, applications = pair
    _idle(*applications)
    _kill(lab)
    lab.ovs.kill_switch()
    assert "ovs-vswitchd is not running" in lab.restore(*containers)
    lab.ovs.start_switch()
    _put_back(lab, stack, kind, containers, applications)
    assert "failed to bind" not in lab.ovs.log


def _kill(lab: OvsLab) -> None:
    """Kill the switch, and start it again."""
    lab.ovs.kill_switch()
    lab.ovs.start_switch()


def _put_back(
    lab: OvsLab,
    stack: ExitStack,
    kind: str,
    containers: list[Container],
    applications: list[Testpmd],
) -> None:
    """Do what daemon and applications do after a restart of the switch; check traffic."""
    one, two = applications
    if kind != "vhost-client":
        for container in containers:
            assert container.check().status
        assert not lab.restore(*containers)
    if kind == "memif-server":
        poll(lambda: one.link == two.link == "down", "the applications' links are down")
        for each in applications:
            each.reconnect()
    if kind == "vhost-server":
        for each in applications:
            each.crash()
        one, two = _applications(containers, stack)
    _exchange(lab, one, two)
    for container in containers:
        container.check().succeeded()


def _idle(*applications: Testpmd) -> None:
    """Stop polling: DPDK 22.11's memif driver may crash if it polls while the server ends."""
    for each in applications:
        each.command("stop")


def _applications(containers: list[Container], stack: ExitStack) -> list[Testpmd]:
    first, second = containers
    return [start(first, second, stack), start(second, first, stack)]


def _exchange(lab: OvsLab, one: Testpmd, two: Testpmd) -> None:
    poll(lambda: lab.passes(one, two), "packets pass")
    lab.traffic(one, two)
    lab.traffic(two, one, bursts=4)
