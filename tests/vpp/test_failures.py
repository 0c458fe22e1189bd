"""A VPP that is down, restarts, hangs, drops connections, lacks a plugin or is killed."""

from __future__ import annotations

import itertools
import json
import os
import resource
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import pytest

from lab.node import poll
from lab.vpp_lab import Attached, Guest, VppLab, conf, ips
from lab.vpp_simulator import Simulator
from userspace_cni.cni.errors import CniError, Code, DataplaneError, DataplaneUnavailable
from userspace_cni.handover import ContainerDirectory
from userspace_cni_vpp import connection, tags
from userspace_cni_vpp.connection import Connection
from userspace_cni_vpp.sections import BridgeSection, InterfaceSection, MemifSection, VhostSection
from userspace_cni_vpp.switch import Switch

if TYPE_CHECKING:
    from pathlib import Path

    from userspace_cni.api import Attachment, EngineConf

BRIDGED = conf("memif", "bridge", bridge=BridgeSection(bridge_name="blue", vlan_id=9, gateway=True))
ROUTED = conf("memif", "interface", interface=InterfaceSection(vrf=3))
ABSTRACT = conf("memif", "none", memif=MemifSection(socket="abstract", mode="ip"))
IP_MODE = conf("memif", "interface", memif=MemifSection(mode="ip"))
VHOST = conf(
    "vhostuser", "bridge", bridge=BridgeSection(bridge_id=2), vhost=VhostSection(mode="server")
)
VETH = conf("veth", "bridge", bridge=BridgeSection(bridge_id=2))
ADDRESS = "10.1.0.2/24>10.1.0.1"


def test_vpp_is_down(lab: VppLab) -> None:
    a = lab.attach(BRIDGED, ADDRESS)
    lab.vpp.kill()
    for act in (
        lambda: lab.call(lab.engine.status, BRIDGED),
        lambda: lab.attach(BRIDGED, ADDRESS),
        a.check,
        a.delete,
        lambda: lab.call(lab.engine.attachments, "blue", BRIDGED),
    ):
        with pytest.raises(DataplaneUnavailable, match=r"cannot connect|closed") as caught:
            act()
        assert caught.value.code == Code.TRY_AGAIN_LATER
    lab.call(lab.vpp.start)
    a.delete()
    lab.call(lab.engine.status, BRIDGED)
    lab.assert_clean()


def test_reconnects_after_a_restart(lab: VppLab) -> None:
    lab.call(lab.engine.status, BRIDGED)
    for _ in range(3):
        lab.restart()
        lab.call(lab.engine.status, BRIDGED)
    assert list(lab.call(lab.engine.attachments, "blue", BRIDGED)) == []


def test_fifty_come_back_after_a_restart(lab: VppLab) -> None:
    attached = [lab.attach(BRIDGED, f"10.1.0.{n}/24>10.1.0.1") for n in range(2, 52)]
    before = lab.tags()
    macs = {p.tag: p.mac for p in lab.switch.ports()}
    lab.restart()
    assert lab.tags() == []
    for each in attached:
        lab.call(lab.engine.delete, each.id, each.conf, each.attachment.netns)
        each.port = lab.add(each.attachment, each.conf)
    assert lab.tags() == before
    assert {p.tag: p.mac for p in lab.switch.ports()} == macs
    for each in attached:
        each.check()
    assert sorted(lab.call(lab.engine.attachments, "blue", BRIDGED)) == sorted(
        a.id for a in attached
    )
    for each in attached:
        each.delete()
    lab.assert_clean()


def test_vpp_hangs(lab: VppLab) -> None:
    a = lab.attach(BRIDGED, ADDRESS)
    lab.engine = lab.new_engine(timeout=0.5)
    connection.disconnect()
    lab.call(lab.engine.status, BRIDGED)
    lab.vpp.hang()
    begin = time.monotonic()
    for _ in range(2):  # an open connection; a new one
        with pytest.raises(DataplaneUnavailable, match="answer"):
            lab.call(lab.engine.status, BRIDGED)
    assert time.monotonic() - begin < 6
    lab.vpp.resume()
    lab.call(lab.engine.status, BRIDGED)
    a.delete()
    lab.assert_clean()


@pytest.mark.parametrize("host", [BRIDGED, ROUTED, ABSTRACT, IP_MODE, VHOST, VETH])
@pytest.mark.parametrize("how", ["kill", "drop"])
def test_killed_between_any_two_calls(sim: VppLab, host: EngineConf, how: str) -> None:
    """Every ADD that VPP interrupts fails cleanly, and the next one succeeds."""
    whole = sim.attach(host, ADDRESS)
    whole.delete()
    sim.restart()
    begin = len(sim.vpp.log)
    sim.attach(host, ADDRESS).delete()
    total = len(sim.vpp.log) - begin
    assert total > 5
    for message in range(1, total + 1):
        sim.restart()
        attachment = sim.attachment(sim.container(), ips=whole.attachment.wait_for_addresses().ips)
        (sim.vpp.kill_at if how == "kill" else sim.vpp.drop_at)(message)
        try:
            port = sim.add(attachment, host)
        except (CniError, ExceptionGroup) as error:
            assert isinstance(error, DataplaneUnavailable), error  # noqa: PT017
        else:
            # VPP was killed during the DEL that follows.
            found = Attached(sim, sim.container(), attachment, host, port)
            with pytest.raises(DataplaneUnavailable):
                found.delete()
        if how == "kill":
            sim.restart()
        # The runtime does this before an ADD that follows an unfinished one.
        sim.call(sim.engine.delete, attachment.id, host, attachment.netns)
        port = sim.add(attachment, host)
        found = Attached(sim, sim.container(), attachment, host, port)
        found.check()
        found.delete()
        sim.assert_clean()


@pytest.mark.parametrize("host", [BRIDGED, ROUTED, ABSTRACT, IP_MODE, VHOST, VETH])
def test_an_add_that_is_killed_leaves_nothing_that_del_does_not_find(
    lab: VppLab, host: EngineConf
) -> None:
    """The process dies as if by SIGKILL before each of its requests to VPP."""
    container = lab.container()
    # Use a new container, so that no other attachment keeps the directory.
    for survived in itertools.count(1):
        attachment = lab.attachment(container, ips=ips(ADDRESS))
        finished = _add_killed_before(survived, lab, attachment, host)
        lab.call(lab.engine.delete, attachment.id, host, container.path)
        assert isinstance(attachment.directory, ContainerDirectory)
        attachment.directory.withdraw("eth0", attachment.id)
        lab.assert_clean()
        assert container.links() == set(), survived
        if finished:
            break
    assert survived > 5


def _add_killed_before(request: int, lab: VppLab, attachment: Attachment, host: EngineConf) -> bool:
    """Run an ADD in a process that dies before *request*; return whether it finished."""
    pid = os.fork()
    if not pid:
        status = 2
        try:
            _die_before(request)
            lab.call(lab.engine.add, attachment, host, ExitStack())
            status = 0
        finally:
            os._exit(status)
    ended = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert ended in (0, 1)
    return ended == 0


def _die_before(request: int) -> None:
    original, left = Connection._send, itertools.count(request - 1, -1)

    def counted(self: Connection, *args: Any) -> int:
        if next(left) == 0:
            os._exit(1)
        return original(self, *args)

    Connection._send = counted  # type: ignore[assignment,method-assign]


def test_two_hundred_in_parallel(lab: VppLab) -> None:
    containers = [lab.container() for _ in range(20)]

    def attach(number: int) -> Attached:
        host = (BRIDGED, ROUTED, VHOST)[number % 3]
        octets = f"{number // 200 + 1}.{number % 200 + 2}"
        return lab.attach(
            host,
            f"10.1.{octets}/16>10.1.0.1",
            container=containers[number % 20],
            ifname=f"eth{number}",
        )

    with ThreadPoolExecutor(16) as pool:
        attached = list(pool.map(attach, range(200)))
        assert len({a.port.name for a in attached}) == 200
        assert len([t for t in lab.tags() if tags.parse(t)]) == 200
        list(pool.map(lambda a: a.check(), attached))
        list(pool.map(lambda a: a.delete(), attached))
    lab.assert_clean()


def test_clients_say_goodbye(sim: VppLab) -> None:
    for _ in range(30):
        sim.call(sim.engine.status, BRIDGED)
        connection.disconnect()
    sim.vpp.hang()
    sim.engine = sim.new_engine(timeout=0.1)
    with pytest.raises(DataplaneUnavailable):
        sim.call(sim.engine.status, BRIDGED)
    sim.vpp.resume()
    sim.engine = sim.new_engine()
    sim.call(sim.engine.status, BRIDGED)
    assert sim.vpp.clients == 1
    assert sim.vpp.lost_clients <= 1


def test_one_connection_for_all_threads(sim: VppLab) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: sim.call(sim.engine.status, BRIDGED), range(50)))
    assert sim.vpp.clients == 1
    sim.engine.close()
    poll(lambda: sim.vpp.clients == 0, "the good-bye")
    assert sim.vpp.lost_clients == 0
    sim.call(sim.engine.status, BRIDGED)  # opens a new one


def test_descriptors_above_1023_are_as_good(sim: VppLab) -> None:
    """A daemon may have many descriptors, but select(2) supports only 1,024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4096), hard))
    with ExitStack() as stack:
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        for _ in range(1100):
            stack.callback(os.close, os.dup(0))
        for _ in range(3):
            sim.call(sim.engine.status, BRIDGED)
        assert sim.vpp.clients == 1
        assert sim.vpp.lost_clients == 0
        sim.engine.close()


def test_threads_do_not_queue_up_before_a_vpp_that_hangs(sim: VppLab) -> None:
    sim.vpp.hang()
    sim.engine = sim.new_engine(timeout=0.5)

    def ask(_: int) -> None:
        with pytest.raises(DataplaneUnavailable, match="answer"):
            sim.call(sim.engine.generation, BRIDGED)

    begin = time.monotonic()
    with ThreadPoolExecutor(32) as pool:
        list(pool.map(ask, range(32)))
    assert time.monotonic() - begin < 5
    sim.vpp.resume()


def test_an_answer_that_nobody_waited_for_is_nobodys(
    sim: VppLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A list that is interrupted does not leak into the next one."""
    switch = sim.switch
    switch.create_loopback(bytes(6))
    receive, left = Connection._receive, itertools.count(1, -1)

    def interrupted(self: Connection, deadline: float) -> bytes:
        if next(left) == 0:
            raise KeyboardInterrupt
        return receive(self, deadline)

    with monkeypatch.context() as patch:
        patch.setattr(Connection, "_receive", interrupted)
        with pytest.raises(KeyboardInterrupt):
            switch.ports()
    assert [port.name for port in sim.switch.ports()] == ["local0", "loop0"]


def test_generation_changes_when_vpp_restarts_and_not_else(lab: VppLab) -> None:
    first = lab.call(lab.engine.generation, BRIDGED)
    assert first
    lab.attach(BRIDGED, ADDRESS)
    assert lab.call(lab.engine.generation, BRIDGED) == first
    lab.vpp.kill()
    with pytest.raises(DataplaneUnavailable):
        lab.call(lab.engine.generation, BRIDGED)
    lab.call(lab.vpp.start)
    assert lab.call(lab.engine.generation, BRIDGED) not in (first, "")


def test_connection_refused_and_closed(sim: VppLab, tmp_path: Path) -> None:
    sim.vpp.refuse()
    with pytest.raises(DataplaneUnavailable, match="cannot connect"):
        sim.call(sim.engine.status, BRIDGED)
    sim.vpp.accept()
    sim.call(sim.engine.status, BRIDGED)
    sim.engine = sim.new_engine(api_socket=str(tmp_path / "none.sock"))
    with pytest.raises(DataplaneUnavailable, match="api_socket"):
        sim.call(sim.engine.status, BRIDGED)


@pytest.mark.parametrize(
    ("plugin", "module", "host"),
    [("memif", "memif", BRIDGED), ("vhost", "vhost_user", VHOST), ("af_packet", "af_packet", VETH)],
)
def test_a_plugin_is_not_loaded(lab: VppLab, plugin: str, module: str, host: EngineConf) -> None:
    name = module if lab.kind == "simulator" else plugin
    lab.vpp = lab.vpp_in(lab.host, without=(name,))
    lab.engine = lab.new_engine()
    for act in (lambda: lab.call(lab.engine.status, host), lambda: lab.attach(host, ADDRESS)):
        with pytest.raises(DataplaneError, match=rf"{plugin}_plugin\.so is not loaded") as caught:
            act()
        assert f"plugin {plugin}_plugin.so {{ enable }}" in caught.value.details


@pytest.mark.parametrize(
    ("plugin", "module", "host"),
    [("memif", "memif", BRIDGED), ("memif", "memif", IP_MODE), ("vhost", "vhost_user", VHOST)],
    ids=["memif-bridge", "memif-routed", "vhost-user"],
)
def test_del_needs_no_plugin(lab: VppLab, plugin: str, module: str, host: EngineConf) -> None:
    """Without the plugin none of its interfaces exist, so DEL has nothing to remove."""
    a = lab.attach(host, ADDRESS)
    never = lab.attachment(lab.container())
    lab.vpp.kill()
    lab.vpp = lab.vpp_in(lab.host, without=(module if lab.kind == "simulator" else plugin,))
    lab.engine = lab.new_engine()
    a.delete()
    lab.call(lab.engine.delete, never.id, host, never.netns)
    assert list(lab.call(lab.engine.attachments, "blue", host)) == []
    assert not any(p.index for p in lab.switch.ports())


def test_the_containers_vpp_gives_up_without_the_plugin(lab: VppLab) -> None:
    a = lab.attach(IP_MODE, ADDRESS)
    without = lab.vpp_in(a.container, without=("memif",))
    Guest(lab, without, a.handoff()).call("delete")


def test_another_definition_is_taken_from_its_own_files(sim: VppLab, tmp_path: Path) -> None:
    """A VPP whose memif_create_v2 has an additional field, described in its API files."""
    ours = json.loads(files("userspace_cni_vpp").joinpath("definitions.json").read_text())
    api_dir = tmp_path / "api/plugins"
    api_dir.mkdir(parents=True)
    crcs = {"memif_create_v2": "0badcafe"}
    with Simulator(sim.dir / "other.sock", crcs=crcs) as other:
        with pytest.raises(DataplaneError, match="another definition of memif_create_v2") as caught:
            Switch(connection.connect(str(other.path), 5, str(api_dir))).api.require(
                "memif_create_v2"
            )
        assert "api_dir" in caught.value.details
        changed = ours | {
            "messages": [
                [*m[:-1], {"crc": "0x0badcafe"}] if m[0] == "memif_create_v2" else m
                for m in ours["messages"]
            ]
        }
        (api_dir / "memif.api.json").write_text(json.dumps(changed))
        other_dir = tmp_path / "api"
        api = connection.connect(str(other.path), 5, str(other_dir))
        api.require("memif_create_v2")
        assert Switch(api).create_memif(
            str(sim.dir / "x.sock"), number=1, server=True, mode="ethernet", id=0, secret="",
            ring_size=1024, buffer_size=2048, rx_queues=1, tx_queues=1, zero_copy=False,
            mac=bytes(6),
        ) == 1  # fmt: skip


def test_no_buffers_left(sim: VppLab) -> None:
    sim.vpp.model.free_buffers = 100
    with pytest.raises(DataplaneUnavailable, match="100 packet buffers left"):
        sim.call(sim.engine.status, BRIDGED)


def test_an_add_costs_the_same_among_many(sim: VppLab) -> None:
    """An ADD never lists all interfaces."""

    def requests(host: EngineConf, address: str) -> list[str]:
        begin = len(sim.vpp.log)
        sim.attach(host, address)
        return list(sim.vpp.log[begin:])

    host = conf("memif", "bridge", bridge=BridgeSection(bridge_id=4))
    first = requests(host, "10.1.0.2/24>10.1.0.1")
    second = requests(host, "10.1.0.3/24>10.1.0.1")
    assert first == second
    # This request looks up the interface by name, to see whether it already exists.
    assert [request for request in first if "dump" in request] == ["sw_interface_dump"]
    assert len(first) <= 9
