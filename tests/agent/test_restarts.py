"""A restart of the switch, end to end, with the daemon and the agent."""

from __future__ import annotations

import json
from contextlib import ExitStack
from ipaddress import ip_interface, ip_network
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from attrs import define, field

from lab import plugin as lab_plugin
from lab import vpp_lab
from lab.agent_lab import Inside
from lab.node import poll
from lab.plugin import Plugin
from lab.spy import Spy
from lab.vpp import api_dir
from lab.vpp_lab import KINDS, VppLab
from userspace_cni_vpp import tags

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lab.daemon import Daemon
    from userspace_cni_vpp.switch import Port

SUBNETS = {"net1": "10.9.0.0/24", "later0": "10.8.0.0/24"}
#: What an operator adds by hand in the container.
OWN_ADDRESS, OWN_ROUTE = ip_interface("10.9.0.77/24"), ip_network("192.0.2.0/24")


@define
class Attached:
    """A container that the daemon has attached, its VPP, and the agent that configures it."""

    lab: VppLab
    plugin: Plugin
    inside: Inside
    spy: Spy
    stack: ExitStack
    results: dict[str, Any] = field(factory=dict)

    def add(self, ifname: str) -> None:
        conf = {
            "cniVersion": "1.1.0",
            "name": f"net-{ifname}",
            "type": "userspace",
            "sharedDir": str(self.lab.dir / "s"),
            "host": {
                "engine": "vpp",
                "iftype": "memif",
                "netType": "bridge",
                "bridge": {"bridgeName": "blue"},
            },
            "container": {"netType": "interface"},
            "ipam": self.spy.ipam(SUBNETS[ifname], self.lab.dir / "leases"),
            "dns": {"nameservers": ["10.9.0.1"], "search": ["example.org"]},
        }
        self.results[ifname] = self.plugin.call(
            "ADD", conf, container=self.inside.id, netns=self.inside.netns.path, ifname=ifname
        ).result

    @property
    def daemon(self) -> Daemon:
        assert self.plugin.daemon is not None
        return self.plugin.daemon

    def document(self, ifname: str) -> Path:
        return Path(self.lab.directory(self.inside.id).path, f"{ifname}.json")

    def port(self, ifname: str) -> Port:
        """Return the interface in the container's VPP."""
        found = self.inside.switch.tagged(tags.in_container(ifname))
        assert found is not None
        return found

    def host_port(self, ifname: str) -> Port:
        name = self.results[ifname]["interfaces"][0]["name"]
        found = self.lab.switch.named(name)
        assert found is not None
        return found

    def agent_has_looked(self) -> None:
        """Wait until the agent has seen everything that exists when this is called."""
        self.add("later0")
        log = self.inside.log
        poll(lambda: "later0: configured" in log.read_text(), "the agent has looked")

    def until_restored(self, count: int) -> None:
        said = self.daemon.said
        poll(lambda: said().count("is restored") == count, f"{count} restored")


@pytest.fixture(params=KINDS)
def attached(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Attached]:
    """A container with the interface net1, which its agent has configured."""
    with ExitStack() as stack:
        lab = stack.enter_context(vpp_lab.started(request.param))
        plugin = stack.enter_context(lab_plugin.installed(tmp_path, "daemon"))
        assert plugin.daemon is not None
        plugin.settings(
            f'[engines.vpp]\napi_socket = "{lab.vpp.path}"\napi_dir = "{api_dir()}"\n'
            # The daemon notices the restart through the lifeline.
            f'[daemon]\nsocket = "{plugin.daemon.socket}"\nwatch_interval = 3600\n'
        )
        spy = Spy(tmp_path / "spy.log")
        Spy.install(plugin.bin_dir, spy.log)
        inside = Inside(lab)
        found = Attached(lab, plugin, inside, spy, stack)
        found.add("net1")
        stack.enter_context(inside.watching())
        poll(inside.ready.exists, "the agent has configured it")
        yield found


def _add_by_hand(attached: Attached) -> None:
    index = attached.port("net1").index
    attached.inside.switch.add_address(index, OWN_ADDRESS)
    attached.inside.switch.add_route(OWN_ROUTE, index, 0, None)


def _assert_untouched(attached: Attached, before: Port) -> None:
    port = attached.port("net1")
    assert port.index == before.index
    assert OWN_ADDRESS in attached.inside.switch.addresses(port.index)
    assert attached.inside.switch.route_to(OWN_ROUTE, 0) == port.index
    assert attached.inside.log.read_text().count("net1: configured") == 1
    assert "withdrawn" not in attached.inside.log.read_text()


@pytest.mark.parametrize("trouble", ["restarted", "set down"])
def test_what_the_host_lost_changes_nothing_in_the_container(
    attached: Attached, trouble: str
) -> None:
    _add_by_hand(attached)
    before = attached.port("net1")
    handed_over = attached.document("net1").read_bytes()
    assert json.loads(handed_over)["ips"]
    if trouble == "restarted":
        attached.lab.restart()
    else:
        index = attached.host_port("net1").index
        attached.lab.switch.api.call("sw_interface_set_flags", sw_if_index=index, flags=0)
        attached.daemon.stop()  # the next one compares all at its start
        attached.daemon.start()
    attached.until_restored(1)
    assert attached.host_port("net1").up
    assert attached.document("net1").read_bytes() == handed_over
    attached.agent_has_looked()
    _assert_untouched(attached, before)


def test_an_interface_that_was_only_set_down_is_set_up(attached: Attached) -> None:
    _add_by_hand(attached)
    before = attached.port("net1")
    switch = attached.inside.switch
    switch.api.call("sw_interface_set_flags", sw_if_index=before.index, flags=0)
    poll(lambda: attached.port("net1").up, "it is up again")
    port = attached.port("net1")
    assert port.index == before.index
    assert OWN_ADDRESS in switch.addresses(port.index)
    assert switch.route_to(OWN_ROUTE, 0) == port.index
