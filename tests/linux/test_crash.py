"""An ADD killed between any two requests to the kernel, and the DEL after it."""

from __future__ import annotations

import itertools
import os
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from linux.conftest import conf, ips
from userspace_cni.api import Bandwidth
from userspace_cni.kernel.netlink import Netlink
from userspace_cni_linux.sections import BridgeSection, MacvlanSection, TapSection

if TYPE_CHECKING:
    from linux.conftest import Lab
    from userspace_cni.api import Attachment, EngineConf

HERE, THERE = "10.1.0.2/24>10.1.0.1", "10.1.0.3/24>10.1.0.1"
BRIDGED = conf("veth", "bridge", bridge=BridgeSection(bridge_name="br0", gateway=True))
WAYS = {
    "bridge": BRIDGED,
    "routed": conf("veth", "interface"),
    "tap": conf("tap", "none", tap=TapSection()),
    "macvlan": conf("macvlan", "none", macvlan=MacvlanSection(master="master0")),
    "limited": BRIDGED,
    "limited tap": conf("tap", "none"),
}
LIMITS = Bandwidth(ingress_rate=8_000_000, egress_rate=8_000_000)

_FINISHED, _FAILED, _KILLED = range(3)


@pytest.mark.parametrize("way", WAYS)
def test_an_add_killed_anywhere_leaves_nothing_that_del_does_not_find(lab: Lab, way: str) -> None:
    host = WAYS[way]
    if way == "macvlan":
        lab.host.run("ip", "link", "add", "master0", "up", "type", "veth", "peer", "name", "far0")
    before = lab.host.links()
    for survived in itertools.count():
        container = lab.container()
        inside = container.links()
        attachment = lab.attachment(
            container, container_id="c1", ips=ips(HERE), bandwidth=_limits(way)
        )
        finished = _add_killed_after(survived, lab, attachment, host)
        lab.call(lab.engine.delete, attachment.id, host, container.path)
        assert lab.host.links() == before, survived
        assert container.links() == inside, survived
        if finished:
            break
    assert survived >= 3


@pytest.mark.parametrize("way", WAYS)
def test_an_add_killed_anywhere_does_not_keep_the_next_from_working(lab: Lab, way: str) -> None:
    host = WAYS[way]
    if way == "macvlan":
        lab.host.run("ip", "link", "add", "master0", "up", "type", "veth", "peer", "name", "far0")
    for survived in itertools.count():
        container = lab.container()
        attachment = lab.attachment(
            container, container_id=f"c{survived}", ips=ips(HERE), bandwidth=_limits(way)
        )
        finished = _add_killed_after(survived, lab, attachment, host)
        # Use another container, so that nothing of the first is cleaned up before.
        other = lab.attach(host, THERE)
        other.check()
        lab.call(lab.engine.delete, attachment.id, host, container.path)
        other.check()
        other.delete()
        if finished:
            break


def _limits(way: str) -> Bandwidth | None:
    return LIMITS if way.startswith("limited") else None


def _add_killed_after(requests: int, lab: Lab, attachment: Attachment, host: EngineConf) -> bool:
    """Run an ADD in a process that dies after some netlink requests; return whether it finished."""
    pid = os.fork()
    if not pid:
        status = _FAILED
        try:
            _die_after(requests)
            lab.call(lab.engine.add, attachment, host, ExitStack())
            status = _FINISHED
        finally:
            os._exit(status)
    ended = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert ended in (_FINISHED, _KILLED)
    return ended == _FINISHED


def _die_after(requests: int) -> None:
    left = itertools.count(requests, -1)
    original = Netlink.request

    def counted(self: Netlink, action: str, type_: int, body: bytes, flags: int = 0) -> list[bytes]:
        if next(left) == 0:
            os._exit(_KILLED)
        return original(self, action, type_, body, flags)

    Netlink.request = counted  # type: ignore[method-assign]
