"""The hand-over on a node with OVS-DPDK, and its use by containers."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from lab.container import AGENT, MOUNT
from lab.node import poll
from lab.ovs_lab import Container, OvsLab, complete, make, memif, vhost
from lab.testpmd import PROGRAM, Console, command_line
from userspace_cni import agent

SCHEMA = Path(__file__).parents[2] / "docs/handoff.schema.json"


@pytest.fixture(scope="module")
def shared_lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OvsLab]:
    """A node with OVS-DPDK, for all tests of the module."""
    with ExitStack() as stack:
        lab = make(tmp_path_factory.mktemp("ovs"), stack)
        lab.ovs.add_bridge("br0")
        yield lab


@pytest.fixture
def lab(shared_lab: OvsLab) -> Iterator[OvsLab]:
    """The module's lab; detach a test's attachments and check that nothing is left."""
    yield shared_lab
    died = shared_lab.ovs.revive()
    shared_lab.detach_all()
    assert (died, shared_lab.leftovers()) == ("", [])


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    """A stack that ends applications before their ports are removed."""
    with ExitStack() as stack:
        yield stack


def _one_more(container: Container, ifname: str, config: dict[str, Any] | None = None) -> Container:
    """Return another interface of the same container without attaching it."""
    lab = container.lab
    own = container.config if config is None else complete(config)
    return Container(lab, container.name, container.netns, own, ifname)


def _directory(container: Container, base: Path | None = None) -> Path:
    return (base or container.lab.plugin.run_dir / "shared") / container.name


def _application(
    container: Container, directory: Path, queues: int, *names: str, peer: str = ""
) -> Console:
    """Start testpmd with the agent's arguments and *directory* mounted as in a container."""
    prefix = f"{container.name}-{os.getpid()}"
    line = command_line(["AGENT"], queues, "--forward-mode=rxonly", prefix=prefix, peer=peer)
    before, after = shlex.join([PROGRAM, *line]).split("AGENT")
    script = (
        f"set -e; mkdir -p {MOUNT}; mount --bind {directory} {MOUNT}; "
        f"arguments=$({AGENT} --directory {MOUNT} eal-args {' '.join(names)}); "
        f"exec {before}$arguments{after}"
    )
    enter = ["nsenter", f"--net={container.netns}", "unshare", "--mount", "sh", "-c", script]
    return Console(container.lab.node, enter, queues)


# -- applications


@pytest.mark.parametrize("size", [60, 107, 108, 200])
@pytest.mark.parametrize(("network", "queues"), [(vhost, 1), (memif, 2)])
def test_paths_of_every_length(
    lab: OvsLab,
    stack: ExitStack,
    size: int,
    network: Callable[..., dict[str, Any]],
    queues: int,
) -> None:
    name = f"p{size}{network.__name__}"
    root = f"{lab.node.dir}/"
    base = root + "d" * (size - len(f"{root}/{name}/eth0.sock"))
    config = network(sharedDir=base, containerDir=MOUNT)
    one = lab.attach(config, name=name)
    other = lab.attach(network())
    document = json.loads((Path(base) / name / "eth0.json").read_text())
    port = document.get("memif") or document["vhostUser"]
    assert len(f"{base}/{name}/{port['socket']}") == size
    assert one.interface["socketPath"] == f"{MOUNT}/eth0.sock"
    mac = [container.interface["mac"] for container in (one, other)]
    sender = stack.enter_context(_application(one, Path(base) / name, queues, peer=mac[1]))
    receiver = stack.enter_context(_application(other, _directory(other), queues, peer=mac[0]))
    if network is vhost:
        for container in (one, other):
            lab.ovs.until_link(container.port)
    lab.traffic(sender, receiver)
    stack.close()
    one.delete()
    assert not (Path(base) / name).exists()


def test_ten_interfaces_and_net1_beside_net10(lab: OvsLab) -> None:
    first = lab.container(vhost(), name="ten", ifname="net1")
    containers = [first, *(_one_more(first, f"net{number}") for number in range(2, 11))]
    # The order of attaching differs from that of the names.
    for container in reversed(containers):
        container.add()
    directory = _directory(first)
    with _application(first, directory, 1) as all_ten:
        shown = all_ten.command("show port summary all")
        macs = [container.interface["mac"].upper() for container in containers]
        assert [line.split()[1] for line in shown.splitlines() if "net_virtio_user" in line] == macs
        # As the server of each port, testpmd waits for the switch before its prompt.
        assert all_ten.log.count("waiting for client connection") == len(containers)
    with _application(first, directory, 1, "net10") as one:
        shown = one.command("show port summary all")
        assert macs[9] in shown
        assert macs[0] not in shown
    containers[0].delete()
    left = [document.handoff.interface for document in agent.interfaces(str(directory))]
    assert left == [f"net{number}" for number in range(2, 11)]
    for container in containers[1:]:
        container.delete()


def test_both_kinds_side_by_side(lab: OvsLab) -> None:
    two_queues = vhost(host={"vhost": {"queues": 2}})
    first = lab.attach(two_queues, name="both", ifname="net1")
    second = _one_more(first, "net2", memif() | {"name": "other"}).add()
    with _application(first, _directory(first), 2) as application:
        shown = application.command("show port summary all")
        assert first.interface["mac"].upper() in shown
        assert second.interface["mac"].upper() in shown


def test_a_container_that_starts_again_finds_its_ports(lab: OvsLab, stack: ExitStack) -> None:
    one, two = (lab.attach(vhost()) for _ in range(2))
    macs = [container.interface["mac"] for container in (one, two)]
    sender = stack.enter_context(_application(one, _directory(one), 1, peer=macs[1]))
    for _ in range(2):
        with _application(two, _directory(two), 1, peer=macs[0]) as receiver:
            for container in (one, two):
                lab.ovs.until_link(container.port)
            lab.traffic(sender, receiver)
        lab.ovs.until_link(two.port, "down")


# -- formats of the hand-over


def test_the_document_is_as_its_schema_says(lab: OvsLab) -> None:
    args = "K8S_POD_NAMESPACE=default;K8S_POD_NAME=web;K8S_POD_UID=u1"
    validator = Draft202012Validator(json.loads(SCHEMA.read_text()))
    for network in (vhost(), memif(host={"memif": {"secret": "s3cret"}})):
        container = lab.container(network)
        lab.attached.append(container)
        container.result = container.call("ADD", args=args).result
        document = json.loads(container.document.read_text())
        validator.validate(document)
        assert document["pod"] == {"namespace": "default", "name": "web", "uid": "u1"}
        assert (document["engine"], document["network"]) == ("dpdk", "net")
        (found,) = agent.interfaces(str(container.document.parent))
        assert found.pod is not None
        assert found.pod.name == "web"
        container.delete()


def _with_device_info(network: dict[str, Any], path: Path) -> dict[str, Any]:
    return network | {
        "capabilities": {"CNIDeviceInfoFile": True},
        "runtimeConfig": {"CNIDeviceInfoFile": str(path)},
        "containerDir": MOUNT,
    }


def test_device_info_goes_with_its_attachment(lab: OvsLab) -> None:
    path = lab.node.dir / "devinfo/cni/default-fast"
    container = lab.attach(_with_device_info(vhost(), path))
    assert json.loads(path.read_text()) == {
        "type": "vhost-user",
        "version": "1.1.0",
        "vhost-user": {"mode": "server", "path": f"{MOUNT}/eth0.sock"},
    }
    assert container.interface["socketPath"] == f"{MOUNT}/eth0.sock"
    container.check().succeeded()
    container.delete()
    assert os.listdir(path.parent) == []
    container.delete()


def test_a_failed_add_puts_back_what_the_device_plugin_left(lab: OvsLab) -> None:
    path = lab.node.dir / "devinfo/cni/left"
    path.parent.mkdir(parents=True, exist_ok=True)
    left = {"type": "vhost-user", "version": "1.0.0"}
    path.write_text(json.dumps(left))
    # A result before 0.3.0 must have an address, so the ADD fails and is undone.
    container = lab.container(_with_device_info(vhost(), path) | {"cniVersion": "0.2.0"})
    assert container.call("ADD").code == 1
    assert json.loads(path.read_text()) == left


def test_gc_removes_the_device_info(lab: OvsLab) -> None:
    path = lab.node.dir / "devinfo/cni/gone"
    container = lab.attach(_with_device_info(vhost(), path) | {"legacyFile": True})
    assert path.exists()
    config = container.config | {"cni.dev/valid-attachments": []}
    lab.call("GC", container, config=config).succeeded()
    assert not path.exists()
    assert lab.leftovers() == []


def test_a_path_for_device_info_that_cannot_be_used(lab: OvsLab) -> None:
    container = lab.container(_with_device_info(vhost(), Path("/x/../y")))
    outcome = container.call("ADD")
    assert outcome.code == 7
    assert "runtimeConfig.CNIDeviceInfoFile" in outcome.text
    container.delete()


# -- app-netutil, another reader of the annotations


def _netutil_values(text: str) -> dict[str, str]:
    """Read annotations exactly as app-netutil does."""
    values = {}
    for line in text.splitlines():
        parts = line.strip().split("=")
        if len(parts) == 2:  # so a value with "=" is lost
            value = parts[1].replace("\\n", "").replace("\\", "").replace(" ", "")
            values[parts[0]] = value[1:-1]
    return values


def _netutil_ports(text: str) -> dict[str, tuple[str, str]]:
    """Return (role or mode, path) of each interface as app-netutil reads it."""
    values = _netutil_values(text)
    ports = {}
    for item in json.loads(values.get("userspace/configuration-data", "[]")):
        port = item["config"].get("memif") or item["config"]["vhost"]
        path = values["userspace/mapped-dir"] + port["socketfile"]
        ports[item["ifName"]] = (port.get("role") or port["mode"], path)
    for status in json.loads(values.get("k8s.v1.cni.cncf.io/network-status", "[]")):
        if info := status.get("device-info"):
            port = info[info["type"]]
            ports[status["interface"]] = (port.get("role") or port["mode"], port["path"])
    return ports


def _annotation(key: str, value: str) -> str:
    return f"{key}={json.dumps(value)}\n"


@pytest.mark.parametrize(
    ("network", "role"), [(vhost(), "server"), (memif(), "slave")], ids=["vhostuser", "memif"]
)
def test_app_netutil_reads_what_multus_makes_of_it(
    lab: OvsLab, tmp_path: Path, network: dict[str, Any], role: str
) -> None:
    path = lab.node.dir / f"devinfo/cni/netutil-{role}"
    container = lab.attach(_with_device_info(network, path), ifname="net1")
    interface = container.interface
    status = {
        "name": "default/net",
        "interface": interface["name"],
        "mac": interface["mac"],
        "mtu": interface["mtu"],
        "dns": {},
        "device-info": json.loads(path.read_text()),
    }
    text = _annotation("k8s.v1.cni.cncf.io/network-status", json.dumps([status], indent=4))
    assert _netutil_ports(text) == {"net1": (role, f"{MOUNT}/net1.sock")}
    # Our own agent reads the same.
    file = tmp_path / "annotations"
    file.write_text(text)
    (found,) = agent.interfaces(str(tmp_path / "absent"), str(file))
    assert found.handoff.socket == f"{MOUNT}/net1.sock"
    assert found.handoff.mac == interface["mac"]


@pytest.mark.parametrize(
    ("network", "role"), [(vhost(), "server"), (memif(), "slave")], ids=["vhostuser", "memif"]
)
def test_app_netutil_reads_the_first_plugin_s_format(
    lab: OvsLab, tmp_path: Path, network: dict[str, Any], role: str
) -> None:
    container = lab.attach(
        network | {"legacyFile": True}, name=f"longer-than-twelve-{role}", ifname="net1"
    )
    directory = container.document.parent
    legacy = directory / "configData-longer-than--net1.json"
    data = json.loads(legacy.read_text())
    assert data["containerId"] == container.name
    assert data["config"]["engine"] == "ovs-dpdk"
    assert data["ipResult"] == {"cniVersion": "0.4.0"}
    text = _annotation("userspace/configuration-data", json.dumps([data], indent=4))
    text += _annotation("userspace/mapped-dir", f"{MOUNT}/")
    assert _netutil_ports(text) == {"net1": (role, f"{MOUNT}/net1.sock")}
    file = tmp_path / "annotations"
    file.write_text(text)
    (found,) = agent.interfaces(str(tmp_path / "absent"), str(file))
    assert found.handoff.socket == f"{MOUNT}/net1.sock"
    container.delete()
    assert not directory.exists()


# -- the container as an attacker


@pytest.mark.parametrize("trap", ["link", "hard link", "fifo", "huge"])
def test_a_trap_in_place_of_the_file_is_replaced(lab: OvsLab, trap: str) -> None:
    container = lab.container(vhost())
    directory = _directory(container)
    directory.mkdir(parents=True)
    precious, name = lab.node.dir / f"precious-{trap}", directory / "eth0.json"
    precious.write_text("precious")
    match trap:
        case "link":
            name.symlink_to(precious)
        case "hard link":
            name.hardlink_to(precious)
        case "fifo":
            os.mkfifo(name)
        case "huge":
            with name.open("wb") as stream:
                stream.truncate(1 << 33)
    container.add()
    assert not name.is_symlink()
    assert json.loads(name.read_text())["interface"] == "eth0"
    container.delete()
    assert precious.read_text() == "precious"
    assert precious.stat().st_nlink == 1


@pytest.mark.parametrize("trap", ["link", "hard link", "directory"])
def test_a_trap_in_place_of_the_socket_is_named(lab: OvsLab, trap: str) -> None:
    container = lab.container(memif())
    directory = _directory(container)
    directory.mkdir(parents=True)
    precious, name = lab.node.dir / f"precious-socket-{trap}", directory / "eth0.sock"
    precious.write_text("precious")
    precious.chmod(0o600)
    match trap:
        case "link":
            name.symlink_to(precious)
        case "hard link":
            name.hardlink_to(precious)
        case "directory":
            name.mkdir()
    outcome = container.call("ADD")
    assert outcome.status != 0
    assert "eth0.sock" in outcome.text
    assert precious.read_text() == "precious"
    assert precious.stat().st_mode & 0o777 == 0o600
    assert precious.stat().st_nlink == 1  # what the container has put there goes with its directory
    assert not directory.exists()


def test_a_directory_that_is_swapped_while_the_port_is_made(lab: OvsLab) -> None:
    """The container replaces the directory by a link to one of the host's directories."""
    target = lab.node.dir / "etc"
    target.mkdir()
    (target / "eth0.json").write_text("precious")
    base = lab.node.dir / "swapped"
    container = lab.container(vhost(sharedDir=str(base)))
    directory = base / container.name

    swapper = (
        f"while ! test -d {directory}; do :; done; "
        f"mv {directory} {base}/away; ln -s {target} {directory}"
    )
    process = lab.node.popen(["sh", "-c", swapper], log=lab.node.dir / "swapper.log")
    outcome = container.call("ADD")
    poll(lambda: process.poll() is not None, "the swapper's end")
    assert outcome.code == 5
    assert f"the shared directory {directory}" in outcome.text
    assert "no directory has its name" in outcome.text
    container.delete()
    assert os.listdir(target) == ["eth0.json"]
    assert (target / "eth0.json").read_text() == "precious"
    assert lab.ovs.ports("br0") == []
