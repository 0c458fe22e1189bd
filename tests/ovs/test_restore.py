"""Restoration of ports that Open vSwitch has lost, and the daemon's connections."""

from __future__ import annotations

import os
import select
import socket
import stat
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from lab import ovs_lab
from lab.node import poll
from lab.ovs_lab import Container, OvsLab, kernel, memif, start, vhost
from userspace_cni import config
from userspace_cni.api import EngineContext, attachment_id
from userspace_cni.cni.errors import DataplaneUnavailable
from userspace_cni_ovs.host import OvsHostEngine
from userspace_cni_ovs.settings import OvsSettings
from userspace_cni_ovs.switch import settings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from userspace_cni.api import EngineConf

pytestmark = [
    pytest.mark.one_process("a daemon restores by itself what is restored here by hand"),
    pytest.mark.own_process("a lab node has namespaces of its own"),
]

_RESTORE = """
import sys
from contextlib import closing
from userspace_cni.config import settings
from userspace_cni.runtime import Runtime
with closing(Runtime(settings.load())) as runtime:
    print(runtime.restore(sys.argv[1]) is not None)
"""
SERVER: dict[str, Any] = {"vhost": {"mode": "server", "group": "12345"}}


def _restore(container: Container) -> bool:
    """Restore on the node as the daemon does."""
    id_ = attachment_id("net", container.name, container.ifname)
    lab = container.lab
    done = lab.node.run([sys.executable, "-c", _RESTORE, id_], env={**os.environ, **lab.plugin.env})
    return {"True": True, "False": False}[done.stdout.strip()]


def _restored(container: Container) -> None:
    assert container.check().status
    assert _restore(container)
    container.check().succeeded()
    assert not _restore(container)


@pytest.mark.parametrize(
    ("network", "end"),
    [
        (vhost(host=SERVER), "stop_switch"),
        (memif(host={"memif": {"group": "12345"}}), "stop_switch"),
        (memif(host={"memif": {"group": "12345"}}), "kill_switch"),
    ],
    ids=["vhost-server", "memif", "memif-killed"],
)
def test_sockets_of_a_restarted_switch(
    own_lab: OvsLab, stack: ExitStack, network: dict[str, Any], end: str
) -> None:
    lab = own_lab
    one, two = lab.attach(network), lab.attach(network)
    getattr(lab.ovs, end)()
    lab.ovs.start_switch()
    assert one.check().status
    assert two.check().status
    # One restore may repair all failed ports.
    assert _restore(one) | _restore(two)
    for each in (one, two):
        each.check().succeeded()
        assert not _restore(each)
        found = Path(each.interface["socketPath"]).stat()
        assert (stat.S_IMODE(found.st_mode), found.st_gid) == (0o660, 12345)
    sender, receiver = start(one, two, stack), start(two, one, stack)
    poll(lambda: sender.link == receiver.link == "up", "the applications' links")
    poll(lambda: lab.passes(sender, receiver), "packets pass again")
    stack.close()
    for each in (one, two):
        each.delete()
    assert lab.leftovers() == []


@pytest.mark.parametrize(
    "network",
    [vhost(host=SERVER), memif(host={"memif": {"group": "12345"}})],
    ids=["vhost-server", "memif"],
)
def test_the_daemon_notices_a_restart_at_once(tmp_path: Path, network: dict[str, Any]) -> None:
    with ExitStack() as stack:
        lab = ovs_lab.make(tmp_path, stack, "daemon")
        lab.ovs.add_bridge("br0")
        one = lab.attach(network)
        daemon = lab.plugin.daemon
        assert daemon is not None
        said = daemon.said
        for number, end in enumerate((lab.ovs.kill_switch, lab.ovs.stop_switch), start=1):
            end()
            poll(lambda: said().count("does not answer") == number, "its end is noticed")  # noqa: B023
            lab.ovs.start_switch()
            poll(lambda: said().count("is restored") == number, "it is restored", 60)  # noqa: B023
            one.check().succeeded()
            found = Path(one.interface["socketPath"]).stat()
            assert (stat.S_IMODE(found.st_mode), found.st_gid) == (0o660, 12345)
        one.delete()


@pytest.mark.parametrize("network", [vhost(host=SERVER), memif()], ids=["vhost-server", "memif"])
def test_a_socket_that_nobody_listens_on(own_lab: OvsLab, network: dict[str, Any]) -> None:
    """The port looks intact: DPDK 22.11 can close a port's socket without noticing."""
    lab = own_lab
    container = lab.attach(network)
    path = Path(container.interface["socketPath"])
    was = path.stat()
    path.unlink()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as dead:
        dead.bind(str(path))
    os.chown(path, was.st_uid, was.st_gid)
    path.chmod(stat.S_IMODE(was.st_mode))
    assert "nobody listens on it" in container.check().text
    _restored(container)
    container.delete()
    assert lab.leftovers() == []


def test_a_vhost_user_server_with_a_socket_in_its_way_needs_another_restart(
    own_lab: OvsLab,
) -> None:
    """No daemon is running that could notice the end of the second ovs-vswitchd."""
    lab = own_lab
    container = lab.attach(vhost(host=SERVER))
    for _ in range(2):
        lab.ovs.kill_switch()
        lab.ovs.start_switch()
    for _ in range(2):
        assert "could not create the socket" in container.check().text
        with pytest.raises(RuntimeError, match="restart ovs-vswitchd"):
            _restore(container)
    lab.ovs.kill_switch()
    with pytest.raises(RuntimeError, match="ovs-vswitchd is not running"):
        _restore(container)
    lab.ovs.start_switch()
    _restored(container)
    container.delete()
    assert lab.leftovers() == []


def test_no_socket_of_a_killed_switch_is_left(own_lab: OvsLab) -> None:
    lab = own_lab
    container = lab.attach(vhost(host=SERVER))
    for _ in range(2):
        lab.ovs.kill_switch()
        lab.ovs.start_switch()
    container.delete()
    assert lab.leftovers() == []
    assert list(lab.ovs.dir.glob("uc*")) == []


def test_kernel_containers_keep_their_veth(own_lab: OvsLab, tmp_path: Path) -> None:
    lab = own_lab
    network = kernel("veth", "10.40.0.0/24", tmp_path, "our0", bridge={"create": True})
    one, two = lab.attach(network), lab.attach(network)
    inside = [lab.node.links(each.netns) for each in (one, two)]
    lab.ovs.vsctl("del-br", "our0")
    for each in (one, two):
        _restored(each)
    assert [lab.node.links(each.netns).keys() for each in (one, two)] == [i.keys() for i in inside]
    address = two.result["ips"][0]["address"].split("/")[0]
    lab.node.ping(one.netns, address)
    lab.node.run(["ip", "link", "set", one.port, "down"])
    _restored(one)
    lab.ovs.vsctl("del-port", one.port)
    _restored(one)
    lab.node.ping(one.netns, address)
    # The whole pair.
    lab.node.run(["ip", "link", "delete", one.port])
    _restored(one)
    lab.node.ping(one.netns, address)
    for each in (one, two):
        each.delete()
    assert lab.leftovers() == []
    assert lab.ovs.bridges() == ["br0"]


def test_a_tap_comes_back_into_its_container(own_lab: OvsLab, tmp_path: Path) -> None:
    lab = own_lab
    network = kernel("tap", "10.41.0.0/24", tmp_path)
    one, two = lab.attach(network), lab.attach(network)
    lab.ovs.vsctl("del-port", one.port)
    _restored(one)
    lab.node.ping(one.netns, two.result["ips"][0]["address"].split("/")[0])
    for each in (one, two):
        each.delete()
    assert lab.leftovers() == []


@pytest.mark.parametrize("kind", ["veth", "tap"])
def test_a_limit_that_was_taken_away_is_put_back(lab: OvsLab, tmp_path: Path, kind: str) -> None:
    limits: Any = {"ingressRate": 8_000_000, "egressRate": 8_000_000}
    one = lab.attach(kernel(kind, "10.42.0.0/24", tmp_path) | {"bandwidth": limits})
    ofport = lab.ovs.vsctl("get", "Interface", one.port, "ofport")
    for queue in ("root", "ingress"):
        lab.node.enter(one.netns, ["tc", "qdisc", "del", "dev", "eth0", queue])
        _restored(one)
    assert lab.ovs.vsctl("get", "Interface", one.port, "ofport") == ofport
    one.delete()
    assert list(lab.node.links(one.netns)) == ["lo"]


def test_limits_do_not_outlive_a_port_that_was_deleted_by_hand(lab: OvsLab) -> None:
    limits: Any = {"bandwidth": {"ingressRate": 8_000_000, "ingressBurst": 800_000}}
    one, two = lab.attach(vhost(**limits)), lab.attach(vhost(**limits))
    for each in (one, two):
        lab.ovs.vsctl("del-port", each.port)
    _restored(one)
    assert len((lab.ovs.vsctl("--bare", "--columns=_uuid", "list", "QoS") or "").split()) == 2
    for each in (one, two):
        each.delete()
    assert lab.ovs.vsctl("--bare", "--columns=_uuid", "list", "QoS") == ""


@pytest.fixture
def engine(own_lab: OvsLab) -> Iterator[OvsHostEngine]:
    """An engine as the daemon keeps it."""
    context = EngineContext(settings=OvsSettings(db=own_lab.ovs.db, timeout=2), lock=NotImplemented)
    with closing(OvsHostEngine(context)) as engine:
        yield engine


@pytest.fixture
def conf(engine: OvsHostEngine) -> EngineConf:
    raw = {"iftype": "vhostuser", "bridge": {"bridgeName": "br0"}}
    return config.engine_conf(raw, "host", engine.info, {})


def test_generation(own_lab: OvsLab, engine: OvsHostEngine, conf: EngineConf) -> None:
    lab = own_lab
    first = engine.generation(conf)
    assert first
    lab.attach(vhost()).delete()
    assert engine.generation(conf) == first
    lab.ovs.kill_switch()
    lab.ovs.start_switch()
    assert engine.generation(conf) not in (first, "")
    lab.ovs.stop_server()
    with pytest.raises(DataplaneUnavailable):
        engine.generation(conf)
    lab.ovs.start_server()
    assert engine.generation(conf)


def test_an_end_is_told_from_a_restart(
    own_lab: OvsLab, engine: OvsHostEngine, conf: EngineConf
) -> None:
    lab = own_lab
    for end in (lab.ovs.kill_switch, lab.ovs.stop_switch):
        lifeline = engine.lifeline(conf)
        assert lifeline is not None
        waiting = select.poll()
        waiting.register(*lifeline)
        engine.generation(conf)
        assert not waiting.poll(0)
        end()
        assert waiting.poll(20_000)
        os.close(lifeline.descriptor)
        for question in (engine.lifeline, engine.generation):
            with pytest.raises(DataplaneUnavailable, match="ovs-vswitchd is not running"):
                question(conf)
        lab.ovs.start_switch()


def test_where_nothing_tells_of_the_process(own_lab: OvsLab, tmp_path: Path) -> None:
    """The database is reached through another path without a pid file beside it."""
    (tmp_path / "db.sock").symlink_to(own_lab.ovs.db.removeprefix("unix:"))
    context = EngineContext(
        settings=OvsSettings(db=f"unix:{tmp_path}/db.sock", timeout=2), lock=NotImplemented
    )
    with closing(OvsHostEngine(context)) as engine:
        conf = _of_bridge(engine, "br0")
        assert engine.generation(conf) == ""
        assert engine.lifeline(conf) is None


def test_few_connections_are_kept(own_lab: OvsLab, engine: OvsHostEngine, conf: EngineConf) -> None:
    with ThreadPoolExecutor(32) as pool:
        list(pool.map(lambda _: engine.generation(conf), range(200)))
    assert 1 <= _connections() <= 4
    engine.close()
    assert _connections() == 0
    del own_lab


def test_one_that_waits_keeps_nobody_waiting(
    own_lab: OvsLab, engine: OvsHostEngine, conf: EngineConf
) -> None:
    own_lab.ovs.kill_switch()
    with ThreadPoolExecutor(2) as pool:
        waiting = pool.submit(engine.status, conf)
        poll(lambda: _connections() == 1, "the first one to wait")
        assert list(engine.attachments("net", conf)) == []
        assert not waiting.done()
        assert isinstance(waiting.exception(), DataplaneUnavailable)


def test_a_connection_is_as_good_after_an_error(engine: OvsHostEngine, conf: EngineConf) -> None:
    for _ in range(3):
        with pytest.raises(DataplaneUnavailable, match="nosuch"):
            engine.status(_of_bridge(engine, "nosuch"))
        with engine._database(conf) as db:
            assert settings(db)["dpdk_initialized"]


def _of_bridge(engine: OvsHostEngine, name: str) -> EngineConf:
    raw = {"iftype": "vhostuser", "bridge": {"bridgeName": name}}
    return config.engine_conf(raw, "host", engine.info, {})


def _connections() -> int:
    """Return the number of open sockets of this process."""
    return sum(
        "socket:" in os.readlink(f"/proc/self/fd/{number}")
        for number in os.listdir("/proc/self/fd")
        if os.path.islink(f"/proc/self/fd/{number}")
    )
