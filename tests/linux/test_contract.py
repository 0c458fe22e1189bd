"""The engine contract for the ``linux`` engine."""

from __future__ import annotations

import json
import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from lab.netns import Namespace
from userspace_cni.testing import Damage, EngineContract, Switch

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from userspace_cni.api import Attachment, HostPort


class Kernel(Switch):
    """A network namespace that plays the host, with a master interface for macvlans."""

    is_program = False
    forgets = False

    def start(self) -> None:
        self._containers: dict[str, str] = {}
        self.host = Namespace()
        self.host.run("ip", "link", "add", "up0", "type", "veth", "peer", "name", "up1")
        for end in ("up0", "up1"):
            self.host.run("ip", "link", "set", end, "up")

    def kill(self) -> None:
        self.host.close()

    @property
    def netns(self) -> str:
        return self.host.path

    @contextmanager
    def container(self) -> Iterator[str]:
        with super().container() as path:
            self._containers[path] = f"container {len(self._containers)}"
            try:
                yield path
            finally:
                del self._containers[path]

    def objects(self) -> Iterable[str]:
        for path, place in {self.host.path: "host", **self._containers}.items():
            for link in json.loads(_run(path, "ip", "-j", "address")):
                if link["ifname"] != "lo":
                    yield f"{place}: {link['ifname']}"
                    yield from (
                        f"{place}: {ip['local']}"
                        for ip in link["addr_info"]
                        if ip["scope"] != "link"
                    )

    def damages(self, attachment: Attachment, port: HostPort) -> Iterable[Damage]:  # noqa: ARG002
        if port.name not in self.host.links():
            return  # a macvlan is in the container altogether

        def down() -> None:
            self.host.run("ip", "link", "set", port.name, "down")

        yield Damage("the host's end is down", down)


def _run(netns: str, *command: str) -> str:
    entered = ["nsenter", f"--net={netns}", *command]
    return subprocess.run(entered, check=True, capture_output=True, text=True).stdout


class KernelContract(EngineContract):
    @pytest.fixture
    def switch(self) -> Iterator[Switch]:
        with Kernel() as kernel:
            yield kernel


class TestVethInBridge(KernelContract):
    network = {
        "host": {
            "engine": "linux",
            "iftype": "veth",
            "netType": "bridge",
            "bridge": {"bridgeName": "contract0"},
        }
    }


class TestRoutedVeth(KernelContract):
    addresses = True
    network = {"host": {"engine": "linux", "iftype": "veth", "netType": "interface"}}


class TestTap(KernelContract):
    inside = True
    network = {
        "host": {
            "engine": "linux",
            "iftype": "tap",
        }
    }


class TestMacvlan(KernelContract):
    inside = True
    network = {"host": {"engine": "linux", "iftype": "macvlan", "macvlan": {"master": "up0"}}}
