"""Failures leave nothing of ours behind, and do not remove anything else."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from lab.conf import host_local, leases
from lab.node import poll
from lab.ovs import DPDK, PLAIN
from lab.ovs_lab import TIMEOUT, Container, OvsLab, complete, kernel, make, memif, vhost
from lab.plugin import Outcome, attachments
from userspace_cni.cni import request
from userspace_cni.config import settings
from userspace_cni.handover import ContainerDirectory
from userspace_cni.runtime import Runtime

pytestmark = pytest.mark.own_process("a lab node has namespaces of its own")


@pytest.mark.one_process("the daemon retries by itself: tests/daemon/test_reconcile.py")
def test_a_database_that_is_down(own_lab: OvsLab) -> None:
    lab = own_lab
    container, late = lab.attach(vhost()), lab.container(vhost())
    lab.ovs.stop_server()
    status = container.call("STATUS")
    assert status.code == 50
    assert "db.sock" in status.text
    assert late.call("ADD").code == 11
    assert container.check().code == 11
    container.delete()
    assert [one["state"] for one in attachments(lab.plugin)] == ["deleting"]
    lab.ovs.start_server()
    container.call("STATUS").succeeded()
    # The next request that reaches the switch executes the postponed DEL.
    late.add()
    late.delete()
    assert attachments(lab.plugin) == []
    assert lab.leftovers() == []


def test_a_switch_that_is_down(own_lab: OvsLab, tmp_path: Path) -> None:
    lab = own_lab
    there = lab.attach(vhost())
    lab.set_timeout(1)
    lab.ovs.kill_switch()
    assert there.call("STATUS").code == 50
    for config in (vhost(), memif(), kernel("veth", "10.30.0.0/24", tmp_path)):
        outcome = lab.container(config).call("ADD")
        assert outcome.code == 11
        assert "ovs-vswitchd" in outcome.text
    assert lab.ovs.ports("br0") == [there.port]
    # The database is changed; ovs-vswitchd applies it when it is back.
    there.delete()
    lab.ovs.start_switch()
    lab.set_timeout(TIMEOUT)
    there.call("STATUS").succeeded()
    assert lab.leftovers() == []


@pytest.mark.parametrize("config", [vhost(), memif()], ids=["vhostuser", "memif"])
def test_a_switch_that_was_killed_and_restarted(own_lab: OvsLab, config: dict[str, Any]) -> None:
    lab = own_lab
    container = lab.attach(config)
    lab.ovs.kill_switch()
    lab.ovs.start_switch()
    container.delete()
    container.add()
    container.check().succeeded()
    container.delete()
    assert lab.leftovers() == []


@pytest.mark.parametrize(
    ("program", "remedy"),
    [(DPDK, "other_config:dpdk-init=true"), (PLAIN, "openvswitch-switch-dpdk")],
    ids=["not-initialized", "not-built-in"],
)
def test_a_switch_without_dpdk_says_how_to_get_it(
    tmp_path: Path, stack: ExitStack, program: str, remedy: str
) -> None:
    lab = make(tmp_path, stack, dpdk=False, program=program)
    lab.ovs.add_bridge("br0")
    for iftype, network in (("vhostuser", vhost), ("memif", memif)):
        container = lab.container(network())
        for command, code in (("STATUS", 50), ("ADD", 11)):
            outcome = container.call(command)
            assert outcome.code == code
            assert remedy in outcome.text
            assert iftype in outcome.text
    assert lab.leftovers() == []
    lab.attach(kernel("veth", "10.31.0.0/24", tmp_path)).delete()


def test_a_port_name_that_is_taken(lab: OvsLab) -> None:
    container = lab.attach(vhost())
    name = container.port
    container.delete()
    lab.ovs.vsctl("add-port", "br0", name, "--", "set", "Interface", name, "type=internal")
    outcome = container.call("ADD")
    assert outcome.code == 102
    assert name in outcome.text
    container.delete()
    assert lab.ovs.ports("br0") == [name]
    lab.ovs.vsctl("del-port", name)


def test_a_port_that_the_switch_refuses(lab: OvsLab) -> None:
    # More than DPDK's memif driver supports.
    config = memif(host={"memif": {"secret": "s3cret", "bufferSize": 65536}})
    outcome = lab.container(config).call("ADD")
    assert outcome.code == 102
    assert "Error attaching device" in outcome.text
    assert "s3cret" not in outcome.out + outcome.err
    assert lab.leftovers() == []


def test_a_socket_that_somebody_listens_on(lab: OvsLab) -> None:
    container = lab.container(memif(), name="occupied")
    directory = lab.plugin.run_dir / "shared/occupied"
    directory.mkdir(parents=True)
    with closing(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)) as somebody:
        somebody.bind(str(directory / "eth0.sock"))
        somebody.listen()
        outcome = container.call("ADD")
    assert outcome.code == 103
    assert "somebody listens on it" in outcome.text
    assert lab.leftovers() == []


@pytest.mark.parity
def test_a_bridge_that_is_missing(lab: OvsLab) -> None:
    container = lab.container(vhost("nobridge"))
    for command, code in (("STATUS", 50), ("ADD", 102)):
        outcome = container.call(command)
        assert outcome.code == code
        assert "ovs-vsctl add-br nobridge" in outcome.text


def test_a_bridge_of_ours_goes_with_its_last_port(lab: OvsLab) -> None:
    config = vhost("ours", bridge={"create": True})
    one, two = lab.attach(config), lab.attach(config)
    assert lab.ovs.get("Bridge", "ours", "datapath_type") == "netdev"
    one.delete()
    assert "ours" in lab.ovs.bridges()
    two.delete()
    assert "ours" not in lab.ovs.bridges()


def test_a_bridge_of_ours_with_a_port_of_others_stays(lab: OvsLab) -> None:
    container = lab.attach(vhost("ours", bridge={"create": True}))
    lab.ovs.vsctl("add-port", "ours", "theirs", "--", "set", "Interface", "theirs", "type=internal")
    container.delete()
    assert lab.ovs.ports("ours") == ["theirs"]
    lab.ovs.vsctl("del-br", "ours")


def test_an_administrators_bridge_stays(lab: OvsLab) -> None:
    lab.attach(vhost(bridge={"create": True})).delete()
    assert lab.ovs.bridges() == ["br0"]


def test_the_kernels_datapath_is_refused_where_the_kernel_has_none(
    lab: OvsLab, tmp_path: Path
) -> None:
    bridge = {"create": True, "datapathType": "system"}
    config = kernel("veth", "10.32.0.0/24", tmp_path, "sys0", bridge=bridge)
    outcome = lab.container(config).call("ADD")
    if Path("/sys/module/openvswitch").exists():
        assert outcome.status == 0
        lab.attached[-1].delete()
    else:
        assert outcome.code == 102
        assert "modprobe openvswitch" in outcome.text
    assert lab.leftovers() == []


def test_a_port_for_a_controller(lab: OvsLab) -> None:
    lab.ovs.add_bridge("br-int")
    config = vhost("br-int", host={"netType": "none", "ovs": {"ifaceIdFromArgs": True}})
    config["host"].pop("bridge")
    config["args"] = {"cni": {"ovnPort": "logical-1"}}
    container = lab.container(config)
    pod = "IgnoreUnknown=1;K8S_POD_NAMESPACE=ns;K8S_POD_NAME=pod;K8S_POD_UID=u-1"
    flows = lab.node.run(["ovs-ofctl", "dump-flows", f"unix:{lab.ovs.dir}/br-int.mgmt"]).stdout
    container.result = container.call("ADD", args=pod).result
    ids = lab.ovs.get("Interface", container.port, "external_ids")
    for expected in ("iface-id=logical-1", "pod-name=pod", "pod-namespace=ns", "pod-uid=u-1"):
        assert expected in ids.replace('"', "")
    after = lab.node.run(["ovs-ofctl", "dump-flows", f"unix:{lab.ovs.dir}/br-int.mgmt"]).stdout
    assert len(after.splitlines()) == len(flows.splitlines())
    container.delete()
    lab.ovs.vsctl("del-br", "br-int")


def test_a_pod_names_no_logical_port_unless_its_network_lets_it(lab: OvsLab) -> None:
    container = lab.attach(vhost(args={"cni": {"ovnPort": "logical-1"}}))
    assert "iface-id" not in lab.ovs.get("Interface", container.port, "external_ids")
    container.delete()


@pytest.mark.parity
def test_check_sees_what_was_changed(lab: OvsLab) -> None:
    container = lab.attach(vhost(bridge={"vlanId": 5}))
    container.check().succeeded()
    for table, change, back in (
        ("Port", "tag=6", "tag=5"),
        ("Interface", "mtu_request=1400", "mtu_request=1500"),
        ("Interface", "options:vhost-server-path=/x", None),
    ):
        lab.ovs.vsctl("set", table, container.port, change)
        assert container.check().code == 104
        if back:
            lab.ovs.vsctl("set", table, container.port, back)
            container.check().succeeded()
    lab.ovs.vsctl("del-port", container.port)
    assert container.check().code == 104
    container.delete()


@pytest.mark.parity
def test_gc_removes_what_nobody_knows_any_more(lab: OvsLab) -> None:
    keep, lose = lab.attach(vhost()), lab.attach(vhost())
    forgotten = lab.attach(memif())
    state = lab.plugin.state_dir / "attachments.db"
    # As if the disk with the store had been lost.
    state.unlink()
    valid = [{"containerID": keep.name, "ifname": "eth0"}]
    config = vhost() | {"cni.dev/valid-attachments": valid}
    lab.call("GC", keep, config=complete(config)).succeeded()
    assert lab.ovs.ports("br0") == [keep.port]
    shared = lab.plugin.run_dir / "shared"
    assert [path.name for path in shared.iterdir()] == [keep.name]
    for container in (keep, lose, forgotten):
        container.delete()


def test_an_add_that_the_store_has_forgotten_is_left_alone(lab: OvsLab, tmp_path: Path) -> None:
    container = lab.attach(vhost(ipam=host_local("10.26.0.0/24", tmp_path / "ipam")))
    (lab.plugin.state_dir / "attachments.db").unlink()
    assert container.call("ADD").code == 103
    assert lab.ovs.ports("br0") == [container.port]
    assert leases(tmp_path / "ipam") == ["10.26.0.2"]
    assert container.document.exists()
    container.delete()


@pytest.mark.parametrize("kind", ["veth", "tap"])
def test_a_kernel_port_that_the_store_has_forgotten_keeps_its_address(
    lab: OvsLab, tmp_path: Path, kind: str
) -> None:
    container = lab.attach(kernel(kind, "10.27.0.0/24", tmp_path))
    taken = leases(tmp_path)
    (lab.plugin.state_dir / "attachments.db").unlink()
    for _ in range(2):
        assert container.call("ADD").status
        assert leases(tmp_path) == taken
    assert lab.ovs.ports("br0") == [container.port]
    container.delete()
    assert leases(tmp_path) == []


# -- the shared directory


def test_a_look_whether_somebody_listens_does_not_hang_the_switch(lab: OvsLab) -> None:
    """DPDK's memif driver waits forever for a peer that connects and leaves without sending."""
    container = lab.attach(memif())
    base, name = os.path.split(container.interface["socketPath"])
    directory = ContainerDirectory(Path(base).parent, container.name, lab.plugin.run_dir / "s")
    assert not directory.discard_stale(name)
    container.delete()
    lab.attach(vhost()).delete()  # ovs-vswitchd answers


@pytest.mark.parametrize("kind", ["vhostuser", "memif", "veth", "tap"])
def test_two_networks_with_one_name_of_the_interface(
    lab: OvsLab, tmp_path: Path, kind: str
) -> None:
    networks: dict[str, Any] = {"vhostuser": vhost, "memif": memif}
    network = networks.get(kind, partial(kernel, kind, "10.30.0.0/24", tmp_path))
    one = lab.attach(network() | {"if0name": "net0"})
    _refused(one, network() | {"if0name": "net0"}, "net0")


@pytest.mark.parametrize(
    ("network", "section"), [(vhost, "vhost"), (memif, "memif")], ids=["vhostuser", "memif"]
)
def test_two_networks_with_one_socket(lab: OvsLab, network: Any, section: str) -> None:
    one = lab.attach(network())
    outcome = _refused(one, network(host={section: {"socketfile": "eth0.sock"}}), "eth0.sock")
    assert "socketfile" in outcome.text


def _refused(one: Container, second: dict[str, Any], what: str) -> Outcome:
    """Attach the container to another network, which must fail and change nothing."""
    lab = one.lab
    two = Container(lab, one.name, one.netns, complete(second | {"name": "other"}), "eth1")
    outcome = two.call("ADD")
    assert outcome.code == 103
    assert what in outcome.text
    one.check().succeeded()
    assert lab.ovs.ports("br0") == [one.port]
    one.delete()
    return outcome


def test_a_symbolic_link_in_place_of_the_directory_is_not_followed(
    lab: OvsLab, tmp_path: Path
) -> None:
    target = tmp_path / "target"
    target.mkdir()
    (target / "eth0.json").write_text("precious")
    shared = lab.plugin.run_dir / "shared"
    shared.mkdir(exist_ok=True)
    (shared / "evil").symlink_to(target)
    container = lab.container(vhost(), name="evil")
    outcome = container.call("ADD")
    assert outcome.code == 5
    assert "shared/evil" in outcome.text
    container.delete()
    assert [path.name for path in target.iterdir()] == ["eth0.json"]
    (shared / "evil").unlink()


def test_links_that_a_container_makes_lead_nowhere(lab: OvsLab, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("precious")
    container = lab.attach(memif())
    document = container.document
    document.unlink()
    document.symlink_to(precious)
    assert container.check().code == 104
    container.delete()
    assert precious.read_text() == "precious"


def test_a_long_path_gets_a_short_name(lab: OvsLab, tmp_path: Path) -> None:
    base = tmp_path / ("long" * 20)
    for config in (vhost(sharedDir=str(base)), memif(sharedDir=str(base))):
        container = lab.attach(config)
        assert len(container.interface["socketPath"]) > 107
        assert container.document.exists()
        container.check().succeeded()
        container.delete()
        assert list(base.iterdir()) == []


def test_the_directory_belongs_to_the_application(lab: OvsLab) -> None:
    container = lab.attach(memif(host={"memif": {"user": "1234", "group": "4321"}}))
    directory = container.document.parent.stat()
    sock = container.document.with_name("eth0.sock").stat()
    for found, mode in ((directory, 0o770), (sock, 0o660)):
        assert (found.st_uid, found.st_gid, found.st_mode & 0o777) == (1234, 4321, mode)
    assert container.document.stat().st_gid == 4321
    container.delete()


@pytest.mark.parity
def test_two_interfaces_of_one_container(lab: OvsLab) -> None:
    first = lab.attach(vhost(), name="twice", ifname="net1")
    second = Container(lab, "twice", first.netns, complete(memif()), "net10").add()
    names = {path.name for path in first.document.parent.iterdir()}
    assert names == {"net1.json", "net10.json", "net10.sock"}
    first.delete()
    assert second.document.exists()
    second.check().succeeded()
    second.delete()


# -- many at once


@contextmanager
def _runtime(lab: OvsLab) -> Iterator[Runtime]:
    runtime = Runtime(settings.load(lab.plugin.env))
    try:
        yield runtime
    finally:
        runtime.close()


def test_a_hundred_ports_at_once(own_lab: OvsLab) -> None:
    lab = own_lab
    netns = str(lab.node.path(lab.node.netns("many")))

    def work(number: int) -> None:
        bridge = f"our{number % 4}"
        config = complete(vhost(bridge, bridge={"create": True, "vlanId": 1 + number}))
        environ = {
            "CNI_CONTAINERID": f"many{number}",
            "CNI_NETNS": netns,
            "CNI_IFNAME": "eth0",
        }
        with _runtime(lab) as runtime:
            result = runtime.serve(request.parse({**environ, "CNI_COMMAND": "ADD"}, config))
            assert result is not None
            name = result["interfaces"][0]["name"]
            assert lab.ovs.vsctl("port-to-br", name) == bridge
            assert lab.ovs.get("Port", name, "tag") == str(1 + number)
            runtime.serve(request.parse({**environ, "CNI_COMMAND": "DEL"}, config))

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(work, range(100)))
    assert lab.ovs.bridges() == ["br0"]
    assert lab.leftovers() == []
    assert attachments(lab.plugin) == []


@pytest.mark.parity
def test_many_processes_at_once(lab: OvsLab) -> None:
    config = vhost("many", bridge={"create": True})
    containers = [lab.container(config) for _ in range(12)]
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(Container.add, containers))
        assert lab.ovs.ports("many") == sorted(one.port for one in containers)
        list(pool.map(Container.delete, containers))
    poll(lambda: lab.ovs.bridges() == ["br0"], "the bridge is removed")
    assert lab.leftovers() == []
