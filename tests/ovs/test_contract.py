"""The engine contract for the ``ovs`` engine, with a real OVS-DPDK."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

from lab.node import Node
from lab.ovs import Ovs
from userspace_cni.testing import Damage, EngineContract, Switch

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from userspace_cni.api import Attachment, HostPort


class OpenVSwitch(Switch):
    """A private Open vSwitch, database and daemon, in a lab node."""

    #: The database survives a restart.
    forgets = False

    def __init__(self, stack: ExitStack) -> None:
        self.node = stack.enter_context(Node())
        self.ovs = stack.enter_context(Ovs(self.node))
        self._runs = True
        self._looks = 0

    def start(self) -> None:
        if not self._runs:
            self.ovs.start_server()
            self.ovs.start_switch()
            self._runs = True

    def kill(self) -> None:
        if self._runs:
            self.ovs.kill_switch()
            self.ovs.stop_server()
            self._runs = False

    @property
    def settings(self) -> Mapping[str, Any]:
        return {"db": self.ovs.db, "timeout": 4}

    @property
    def netns(self) -> str:
        return f"/proc/{self.node.pid}/ns/net"

    def objects(self) -> Iterable[str]:
        # ovs-vsctl waits until ovs-vswitchd has done what is in the database.
        self._looks += 1
        self.ovs.vsctl("set", "Open_vSwitch", ".", f"external_ids:lab-look={self._looks}")
        for table in ("Bridge", "Port", "Interface", "QoS", "Queue"):
            rows = self.ovs.vsctl("--bare", "--columns=_uuid", "list", table) or ""
            # A recreated bridge has other rows.
            names = self.ovs.vsctl("--bare", "--columns=name", "list", table) if rows else ""
            yield from (f"{table} {one}" for one in (names or rows).split())
        yield from (f"link {name}" for name in self.node.links() if name != "lo")

    def damages(self, attachment: Attachment, port: HostPort) -> Iterable[Damage]:  # noqa: ARG002
        def set_(*columns: str) -> None:
            self.ovs.vsctl("set", *columns)

        yield Damage("it has another VLAN", lambda: set_("Port", port.name, "tag=77"))
        yield Damage("it is in no bridge", lambda: self.ovs.vsctl("del-port", port.name))


@pytest.fixture(scope="module")
def open_vswitch() -> Iterator[OpenVSwitch]:
    """A switch for the whole module, because starting takes a second."""
    with ExitStack() as stack:
        yield OpenVSwitch(stack)


class OvsContract(EngineContract):
    @pytest.fixture
    def switch(self, open_vswitch: OpenVSwitch) -> Switch:
        open_vswitch.start()
        return open_vswitch


def _network(iftype: str) -> Mapping[str, Any]:
    bridge = {"bridgeName": "contract", "create": True}
    return {"host": {"engine": "ovs", "iftype": iftype, "netType": "bridge", "bridge": bridge}}


class TestVhostUser(OvsContract):
    network = _network("vhostuser")


class TestMemif(OvsContract):
    network = _network("memif")


class TestVeth(OvsContract):
    network = _network("veth")


class TestTap(OvsContract):
    network = _network("tap")
