"""DPDK applications on a real VPP, connected by nothing but what they were handed over."""

from __future__ import annotations

import json
import subprocess
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from lab.node import poll
from lab.testpmd import Testpmd
from lab.vpp_lab import VppLab, conf
from userspace_cni import handover
from userspace_cni_vpp.sections import BridgeSection, MemifSection, VhostSection

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lab.vpp_lab import Attached
    from userspace_cni.engine import EngineConf

DOMAIN = BridgeSection(bridge_id=4)


class _Here:
    """Stands for a lab node where there is none: programs run on the machine itself."""

    def command(self, argv: Sequence[str]) -> list[str]:
        return list(argv)

    def stop(self, process: subprocess.Popen[bytes], seconds: float = 10) -> None:
        process.terminate()
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _start(found: Attached, peer: Attached, stack: ExitStack) -> Testpmd:
    lab, attachment = found.lab, found.attachment
    directory = lab.directory(attachment.container_id)
    directory.publish("eth0", handover.dump(attachment, lab.hand_over_dpdk(found)))
    document = Path(directory.path, "eth0.json")
    assert json.loads(document.read_text())["mac"] == found.port.mac
    return stack.enter_context(
        Testpmd(
            _Here(),  # type: ignore[arg-type]
            found.container.path,
            document,
            peer=peer.port.mac,
        )
    )


@pytest.mark.parametrize(
    "host",
    [
        conf("memif", "bridge", bridge=DOMAIN),
        conf("memif", "bridge", bridge=DOMAIN, memif=MemifSection(id=5, secret="s3cret")),
        conf("vhostuser", "bridge", bridge=DOMAIN),
        conf("vhostuser", "bridge", bridge=DOMAIN, vhost=VhostSection(mode="client")),
    ],
    ids=["memif", "memif-secret", "vhost-server", "vhost-client"],
)
def test_two_applications(traffic_lab: VppLab, host: EngineConf) -> None:
    lab = traffic_lab
    a, b = lab.attach(host), lab.attach(host)
    with ExitStack() as stack:
        one, two = _start(a, b, stack), _start(b, a, stack)
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
