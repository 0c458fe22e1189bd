"""Packets before and after a restart, of the switch or of the application: docs/restarts.md."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

import pytest

from lab.node import poll
from lab.ovs_lab import Container, OvsLab, memif, start, vhost
from userspace_cni.api import attachment_id

if TYPE_CHECKING:
    from contextlib import ExitStack

    from lab.testpmd import Testpmd

pytestmark = [
    pytest.mark.one_process("what it asks is served alike: tests/ovs/test_dpdk.py"),
    pytest.mark.own_process("a lab node has namespaces of its own"),
]

#: By what the switch is.
NETWORKS = {
    "vhost-client": vhost(),
    "vhost-server": vhost(host={"vhost": {"mode": "server"}}),
    "memif-server": memif(),
}
_RESTORE = """
import sys
from contextlib import closing
from userspace_cni.config import settings
from userspace_cni.cni.errors import CniError
from userspace_cni.runtime import Runtime
with closing(Runtime(settings.load())) as runtime:
    for name in sys.argv[1:]:
        try:
            runtime.restore(name)
        except CniError as error:
            print(error)
"""


def restore(lab: OvsLab, *containers: Container) -> str:
    """Do on the node what its daemon does; return what it says if it cannot."""
    ids = [attachment_id("net", each.name, each.ifname) for each in containers]
    environ = {**os.environ, **lab.plugin.env}
    return lab.node.run([sys.executable, "-c", _RESTORE, *ids], env=environ).stdout


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


# With vhost-server DPDK 22.11 tries each socket once, so that one restart or several are needed:
# tests/ovs/test_restore.py has that.
@pytest.mark.parametrize("pair", ["vhost-client", "memif-server"], indirect=True)
def test_the_switch_is_killed(own_lab: OvsLab, pair: Any) -> None:
    lab = own_lab
    kind, containers, (one, two) = pair
    _idle(one, two)
    lab.ovs.kill_switch()
    lab.ovs.start_switch()
    if kind == "memif-server":
        assert not restore(lab, *containers)
        poll(lambda: one.link == two.link == "down", "the applications' links are down")
        for each in (one, two):
            each.reconnect()
    _exchange(lab, one, two)
    for container in containers:
        container.check().succeeded()


def _idle(*applications: Testpmd) -> None:
    """Stop polling: in DPDK 22.11's memif driver a poll and the server's end may be a crash."""
    for each in applications:
        each.command("stop")


def _applications(containers: list[Container], stack: ExitStack) -> list[Testpmd]:
    first, second = containers
    return [start(first, second, stack), start(second, first, stack)]


def _exchange(lab: OvsLab, one: Testpmd, two: Testpmd) -> None:
    poll(lambda: lab.passes(one, two), "packets pass", 60)
    lab.traffic(one, two)
    lab.traffic(two, one, bursts=4)
