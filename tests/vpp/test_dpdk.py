"""DPDK applications on a real VPP that use only their hand-over files."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from lab.node import poll
from lab.vpp_lab import VppLab, conf, start
from userspace_cni_vpp.sections import BridgeSection, MemifSection, VhostSection

if TYPE_CHECKING:
    from userspace_cni.api import EngineConf

DOMAIN = BridgeSection(bridge_id=4)


@pytest.mark.parametrize(
    "host",
    [
        conf("memif", "bridge", bridge=DOMAIN),
        conf("memif", "bridge", bridge=DOMAIN, memif=MemifSection(id=5, secret="s3cret")),
        conf("vhostuser", "bridge", bridge=DOMAIN),
        conf("vhostuser", "bridge", bridge=DOMAIN, vhost=VhostSection(mode="server")),
    ],
    ids=["memif", "memif-secret", "vhost-client", "vhost-server"],
)
def test_two_applications(traffic_lab: VppLab, host: EngineConf) -> None:
    lab = traffic_lab
    a, b = lab.attach(host), lab.attach(host)
    with ExitStack() as stack:
        one, two = start(a, b, stack), start(b, a, stack)
        poll(
            lambda: all(
                p.link for x in (a, b) for p in lab.switch.ports(containing=[x.id.encode()])
            ),
            "the links",
        )
        two.command("start")
        one.send()
        poll(lambda: two.received >= 32, "32 packets")
        assert (one.sent, two.received) == (32, 32)
        a.check()
    for each in (a, b):
        each.delete()
    lab.assert_clean()
