"""Containers with a VPP on a host with OVS-DPDK, connected by memif."""

from __future__ import annotations

import json
from contextlib import ExitStack
from ipaddress import ip_interface
from typing import TYPE_CHECKING, Any

import pytest

from lab import ovs_lab
from lab.node import poll
from lab.vpp import RealVpp, api_dir
from userspace_cni.api import Handoff, IPConfig, Memif
from userspace_cni_vpp import connection
from userspace_cni_vpp.container import (
    API_DIR_VARIABLE,
    API_SOCKET_VARIABLE,
    VppContainerEngine,
)

if TYPE_CHECKING:
    from pathlib import Path

    from lab.ovs_lab import Container


class _Inside:
    """The network namespace of a container of a lab node, as seen from the machine."""

    def __init__(self, container: Container) -> None:
        self.path = str(container.lab.node.path(container.netns))


def _handoff(container: Container, address: str) -> Handoff:
    """Read the hand-over file as the agent does."""
    document: dict[str, Any] = json.loads(container.document.read_text())
    memif = document["memif"]
    return Handoff(
        interface=document["interface"],
        iftype="memif",
        net_type="interface",
        mac=document["mac"],
        mtu=document["mtu"],
        ips=(IPConfig(address=ip_interface(address)),),
        port=Memif(
            role=memif["role"],
            socket=str(container.document.with_name(memif["socket"])),
            id=memif["id"],
            rx_queues=memif["rxQueues"],
            tx_queues=memif["txQueues"],
            ring_size=memif["ringSize"],
            buffer_size=memif["bufferSize"],
        ),
    )


def test_ping_between_two(traffic_lab: object, tmp_path: Path) -> None:
    del traffic_lab  # it stands for: there is a real VPP
    with ExitStack() as stack:
        stack.callback(connection.disconnect)
        lab = ovs_lab.make(tmp_path, stack)
        lab.ovs.add_bridge("br0")
        config = ovs_lab.memif(container={"engine": "vpp"})
        vpps = []
        for number in (2, 3):
            container = lab.attach(config)
            vpp = RealVpp(lab.node.dir / f"v{number}", _Inside(container))  # type: ignore[arg-type]
            stack.enter_context(vpp)
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv(API_SOCKET_VARIABLE, str(vpp.path))
                patch.setenv(API_DIR_VARIABLE, api_dir())
                VppContainerEngine().add(_handoff(container, f"10.5.0.{number}/24"))
            vpps.append(vpp)
        poll(lambda: vpps[0].ping("10.5.0.3", tries=1), "an answer")
        for container in lab.attached:
            container.delete()
