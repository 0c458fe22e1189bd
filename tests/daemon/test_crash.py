"""A daemon killed at any point, and a daemon replaced while packets flow."""

from __future__ import annotations

import json
import random
import re
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest
from attrs import define, field

from core.example_lab import ExampleLab
from lab.conf import gateway, host_local, leases
from lab.daemon import Daemon
from lab.daemon_lab import daemon_of, environ, exchanged, queued
from lab.node import Node, poll
from lab.plugin import Plugin, clean_environ
from userspace_cni import frames
from userspace_cni.store import Store

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from lab.plugin import Outcome

SUBNET = "10.66.0.0/16"


@define
class Traffic:
    """Callers that behave like a runtime with the shim: failed attachments are detached."""

    lab: ExampleLab
    daemon: Daemon
    config: dict[str, Any]
    netns: str
    attached: set[str] = field(factory=set)
    lost: int = 0

    def attach(self, ifname: str) -> None:
        frame = self.frame("ADD", ifname)
        try:
            outcome = poll(lambda: self._unless_down(frame), "a daemon")
        except (OSError, ValueError):
            self.lost += 1
            self.detach(ifname)
            return
        assert outcome is not None
        assert outcome.result
        self.attached.add(ifname)

    def _unless_down(self, frame: bytes) -> Outcome | None:
        """Return the answer, or None if nobody listens, in which case a runtime retries."""
        try:
            return exchanged(self.daemon.socket, frame)
        except (ConnectionRefusedError, FileNotFoundError):
            return None

    def detach(self, ifname: str) -> None:
        self.attached.discard(ifname)
        frame = self.frame("DEL", ifname)
        try:
            exchanged(self.daemon.socket, frame).succeeded()
        except (OSError, ValueError):
            self.lost += 1
            queued(self.lab, frame, int(ifname[1:]))

    def frame(self, command: str, ifname: str) -> bytes:
        variables = environ(self.lab, command, CNI_IFNAME=ifname) | {"CNI_NETNS": self.netns}
        return frames.dump_request(variables, json.dumps(self.config).encode())

    def records(self) -> dict[str, str]:
        with closing(Store(self.lab.plugin.state_dir, 30)) as store:
            return {record.ifname: record.state for record in store.all()}


def _killed_again_and_again(traffic: Traffic, number: int, kills: int, node: Node | None) -> None:
    """Attach *number* times and detach half of them, while the daemon is killed repeatedly."""
    chance = random.Random(kills)
    done = threading.Event()

    def killer() -> None:
        for _ in range(kills):
            if done.wait(chance.uniform(0.05, 0.6)):
                return
            traffic.daemon.kill()
            traffic.daemon.start(node)

    def life(one: int) -> None:
        traffic.attach(f"e{one}")
        if one % 2:
            traffic.detach(f"e{one}")

    killing = threading.Thread(target=killer)
    killing.start()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(life, range(number)))
    done.set()
    killing.join()
    traffic.daemon.kill()
    traffic.daemon.start(node)
    expected = dict.fromkeys(traffic.attached, "attached")
    poll(lambda: traffic.records() == expected, f"{traffic.records()} becomes {expected}")
    queue = traffic.lab.plugin.state_dir / "queue"
    poll(lambda: not list(queue.iterdir()), "the queue is done")
    assert traffic.lost
    print(f"{traffic.lost} answers lost of {number}, {len(expected)} attached")  # noqa: T201  for the reader of -s


def test_a_daemon_killed_at_any_point_of_200_adds_and_dels_leaks_nothing(lab: ExampleLab) -> None:
    config = lab.conf("1.0.0", ipam=lab.host_local(SUBNET))
    daemon = daemon_of(lab)
    lab.plugin.serve(None)
    traffic = Traffic(lab, daemon, config, lab.netns)
    _killed_again_and_again(traffic, 200, 12, None)
    assert len(lab.ports()) == len(lab.leases()) == len(traffic.attached)
    for ifname in sorted(traffic.attached):
        exchanged(traffic.daemon.socket, traffic.frame("DEL", ifname)).succeeded()
    lab.assert_clean()


@pytest.fixture
def linux(lab: ExampleLab) -> Iterator[tuple[Plugin, Node]]:
    """A node with the plugin, for the kernel's own engine."""
    with Node() as node:
        yield lab.plugin, node
        daemon_of(lab).stop()


def _bridged(directory: Path) -> dict[str, Any]:
    return {
        "cniVersion": "1.0.0",
        "name": "blue",
        "type": "userspace",
        "host": {
            "engine": "linux",
            "iftype": "veth",
            "bridge": {"bridgeName": "blue0", "gateway": True},
        },
        "ipam": host_local(SUBNET, directory / "leases"),
    }


def test_a_daemon_killed_at_any_point_leaks_no_interface(
    lab: ExampleLab, linux: tuple[Plugin, Node]
) -> None:
    plugin, node = linux
    plugin.serve(node)
    inside = node.netns("c1")
    traffic = Traffic(lab, daemon_of(lab), _bridged(lab.directory), inside)
    _killed_again_and_again(traffic, 60, 6, node)
    assert len(node.veths()) == len(leases(lab.directory / "leases")) == len(traffic.attached)
    found = {name for name in node.links(inside) if name.startswith("e")}
    assert found == traffic.attached
    for ifname in sorted(traffic.attached):
        exchanged(traffic.daemon.socket, traffic.frame("DEL", ifname)).succeeded()
    assert (node.veths(), "blue0" in node.links()) == ([], False)


def test_replacing_the_daemon_loses_no_packet(lab: ExampleLab, linux: tuple[Plugin, Node]) -> None:
    plugin, node = linux
    config = _bridged(lab.directory)
    for name in ("c1", "c2"):
        added = plugin.call("ADD", config, container=name, netns=node.netns(name), node=node)
        assert added.result
    node.ping("/run/netns/c1", gateway(SUBNET))
    address = added.result["ips"][0]["address"].partition("/")[0]
    count = 400
    pinging = subprocess.Popen(
        node.command(["nsenter", "--net=/run/netns/c1", "ping", "-q", "-n", "-i", "0.01",
                      "-c", str(count), address]),
        stdout=subprocess.PIPE, text=True, env=clean_environ(),
    )  # fmt: skip
    with pinging:
        daemon = daemon_of(lab)
        daemon.stop()
        daemon.start(node)
        daemon.kill()
        daemon.start(node)
        begun = time.monotonic()
        assert pinging.poll() is None, "it was too slow to be replaced meanwhile"
        said, _ = pinging.communicate()
    print(f"{time.monotonic() - begun:.1f} s of traffic were left: {said}")  # noqa: T201  for the reader of -s
    received = re.search(r"(\d+) packets transmitted, (\d+) (?:packets )?received", said)
    assert received is not None, said
    assert received.groups() == (str(count), str(count))
