"""DPDK applications in containers, configured by the agent without any scripts."""

from __future__ import annotations

import json
import os
import re
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from lab import container, ovs_lab
from lab.container import MOUNT, application
from lab.containerd import ADDRESS, Containerd
from lab.images import BUSYBOX
from lab.podman import Podman

if TYPE_CHECKING:
    from collections.abc import Iterator

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
    # One network per container, so that the addresses are known; both on one bridge.
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


def test_the_walkthrough_works_as_written(lab: Lab, images: Images) -> None:
    page = (Path(__file__).parents[2] / "docs/run.md").read_text()
    blocks = re.findall(r"^```sh\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    plugin = lab.ovs.plugin
    lab.ovs.ovs.vsctl("del-br", "br0")  # the reader has none
    for entry in plugin.bin_dir.iterdir():
        (lab.node.path("/opt/cni/bin") / entry.name).symlink_to(entry.resolve())
    # The lab needs its own cgroup, which the page cannot know.
    wrapper = lab.node.dir / "bin/podman"
    wrapper.parent.mkdir()
    wrapper.write_text(
        "#!/bin/sh\nshift\n"
        f'exec /usr/bin/podman run --pull=never --cgroup-parent={lab.node.cgroup} "$@"\n'
    )
    wrapper.chmod(0o755)
    path = f"{wrapper.parent}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    with Containerd(lab.node, plugin.bin_dir, lab.conf_dir, plugin.env) as containerd:
        containerd.load(images)
        env = {
            **lab.podman.env, "PATH": path, "IMAGE": BUSYBOX, "CONTAINERD_ADDRESS": ADDRESS
        }  # fmt: skip
        outputs = [lab.node.run(["sh", "-euc", block], env=env).stdout for block in blocks]
    assert outputs[0].startswith("eth0  fast  vhostuser server /")
    assert "--vdev=net_virtio_user0,mac=" in outputs[0]
    assert [output.split() for output in outputs[1:]] == [["eth0.json"]] * 2
    assert lab.ovs.leftovers() == []
