"""DPDK applications in containers: a network on the host, the agent inside, and no scripts."""

from __future__ import annotations

import json
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

from lab import container, ovs_lab
from lab.container import MOUNT, application
from lab.podman import Podman

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from lab.images import Images
    from lab.ovs_lab import OvsLab
    from lab.testpmd import Console


class Lab:
    """A node with OVS-DPDK, the plugin, and podman."""

    def __init__(self, ovs: OvsLab, images: Images) -> None:
        self.ovs = ovs
        self.node = ovs.node
        self.conf_dir = self.node.dir / "net.d"
        self.conf_dir.mkdir()
        self.podman = Podman(
            self.node, ovs.plugin.bin_dir, self.conf_dir, "podman", dict(ovs.plugin.env)
        )
        self.podman.load(images)

    def network(self, name: str, config: dict[str, Any]) -> None:
        path = self.conf_dir / f"10-{name}.conf"
        path.write_text(
            json.dumps(ovs_lab.complete(config) | {"name": name, "containerDir": MOUNT})
        )

    def start(self, network: str, *, queues: int, peer: str) -> Console:
        script = application(queues, "--forward-mode=rxonly", prefix=network, peer=peer)
        bin_dir = self.ovs.plugin.bin_dir
        return container.start(self.podman, self.conf_dir, bin_dir, network, script, queues=queues)


@pytest.fixture
def lab(tmp_path: Path, images: Images) -> Iterator[Lab]:
    with ExitStack() as stack:
        ovs = ovs_lab.make(tmp_path, stack)
        ovs.ovs.add_bridge("br0")
        yield Lab(ovs, images)


_MACS = ("02:00:00:00:00:0a", "02:00:00:00:00:0b")


@pytest.mark.parametrize(
    ("config", "queues"),
    [(ovs_lab.vhost(), 1), (ovs_lab.memif(host={"memif": {"secret": "s3cret"}}), 2)],
    ids=["vhostuser", "memif"],
)
def test_two_containers_exchange_packets(lab: Lab, config: dict[str, Any], queues: int) -> None:
    # As many networks as containers, for addresses that the test knows; both on one bridge.
    for name, mac in zip(("a", "b"), _MACS, strict=True):
        lab.network(name, config | {"mac": mac})
    with (
        lab.start("a", queues=queues, peer=_MACS[1]) as one,
        lab.start("b", queues=queues, peer=_MACS[0]) as two,
    ):
        for port in lab.ovs.ovs.ports("br0"):
            lab.ovs.ovs.until_link(port)
        lab.ovs.traffic(one, two)
        lab.ovs.traffic(two, one, bursts=4)
    assert lab.ovs.leftovers() == []
