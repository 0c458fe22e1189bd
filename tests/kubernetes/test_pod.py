"""The hand-over to a pod through its volume and annotations."""

from __future__ import annotations

import json
import stat
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from kubernetes.conftest import listing
from lab.kubernetes_api import ARGS, MOUNT, TOKEN, UID
from userspace_cni.agent.sources import Sources, read
from userspace_cni.api import CustomPort

if TYPE_CHECKING:
    from kubernetes.conftest import PodLab

HTTP_REFUSALS = {
    403: (7, "grant it get on pods, and patch on pods/status: no patch for you"),
    422: (7, "answered 422 to PATCH of pod shop/till-0 no patch for you"),
    429: (11, "answered 429"),
    500: (11, "answered 500"),
    503: (11, "answered 503"),
}


@pytest.mark.parity
def test_the_volume_has_the_socket_and_the_annotations_tell_of_it(
    pod_lab: PodLab, tmp_path: Path
) -> None:
    info = tmp_path / "devinfo/net"
    conf = pod_lab.conf(runtimeConfig={"CNIDeviceInfoFile": str(info)})
    mode = stat.S_IMODE(pod_lab.volume.stat().st_mode)
    result = pod_lab.add(conf)
    assert listing(pod_lab.volume) == ["eth0.json", "eth0.sock"]
    assert listing(pod_lab.shared_dir) == []
    assert stat.S_IMODE(pod_lab.volume.stat().st_mode) == mode
    assert result["interfaces"][-1]["socketPath"] == f"{MOUNT}/eth0.sock"
    assert json.loads(info.read_text())["memif"]["path"] == f"{MOUNT}/eth0.sock"
    assert pod_lab.document()["pod"] == {"namespace": "shop", "name": "till-0", "uid": UID}
    annotations = pod_lab.api.annotations
    assert annotations.keys() == {
        "theirs",
        "userspace/configuration-data",
        "userspace/mapped-dir",
    }
    assert annotations["userspace/mapped-dir"] == f"{MOUNT}/"
    (entry,) = pod_lab.api.entries
    assert (entry["containerId"], entry["ifName"], entry["name"]) == ("c1", "eth0", "net")
    assert entry["config"]["memif"]["socketfile"] == "eth0.sock"

    pod_lab.call("CHECK", conf | {"prevResult": result}).succeeded()
    pod_lab.call("DEL", conf).succeeded()
    assert pod_lab.volume.is_dir()
    pod_lab.assert_clean()
    requests = list(pod_lab.api.requests)
    pod_lab.call("DEL", conf).succeeded()
    assert [
        request for request in pod_lab.api.requests[len(requests) :] if "PATCH" in request
    ] == []


def test_the_agent_reads_what_was_written(pod_lab: PodLab, tmp_path: Path) -> None:
    conf = pod_lab.conf(version="1.0.0", ipam=pod_lab.lab.host_local())
    pod_lab.add(conf)
    pod_lab.add(pod_lab.conf(name="other", text="abstract"), ifname="net1")
    annotations = pod_lab.downward_api(tmp_path / "annotations")
    found = read(Sources(directories=(), annotations=str(annotations)))
    assert found.problems == ()
    eth0, net1 = found.documents
    assert (eth0.network, eth0.handoff.socket) == ("net", f"{MOUNT}/eth0.sock")
    assert [str(ip.address) for ip in eth0.handoff.ips] == ["10.66.0.2/24"]
    assert (net1.network, net1.handoff.socket) == ("other", "@net1")
    told = read(Sources(directories=(str(pod_lab.volume),), annotations="/nowhere"))
    assert told.problems == ()
    assert told.documents[0].handoff.socket == f"{pod_lab.volume}/eth0.sock"
    pod_lab.call("DEL", conf).succeeded()
    assert [entry["ifName"] for entry in pod_lab.api.entries] == ["net1"]
    pod_lab.call("DEL", pod_lab.conf(name="other", text="abstract"), ifname="net1").succeeded()
    pod_lab.assert_clean()


def test_a_port_of_another_kind_is_annotated(pod_lab: PodLab, tmp_path: Path) -> None:
    conf = pod_lab.conf(text="device")
    pod_lab.add(conf)
    annotations = pod_lab.downward_api(tmp_path / "annotations")
    (told,) = read(Sources(directories=(), annotations=str(annotations))).documents
    assert told.handoff.port == CustomPort(kind="vdpa", values={"path": "/dev/vdpa0"})
    pod_lab.call("DEL", conf).succeeded()
    pod_lab.assert_clean()


def test_interfaces_that_come_and_go_at_once_are_all_told(pod_lab: PodLab) -> None:
    ifnames = ["net1", "net2", "net3", "net4"]

    def each(command: str) -> list[int]:
        with ThreadPoolExecutor() as pool:
            outcomes = pool.map(
                lambda ifname: pod_lab.call(command, pod_lab.conf(), ifname=ifname), ifnames
            )
            return [outcome.status for outcome in outcomes]

    assert each("ADD") == [0, 0, 0, 0]
    assert sorted(entry["ifName"] for entry in pod_lab.api.entries) == ifnames
    assert each("DEL") == [0, 0, 0, 0]
    pod_lab.assert_clean()


def test_somebody_who_is_faster_is_no_error(pod_lab: PodLab) -> None:
    pod_lab.api.meddling = 3
    pod_lab.add(pod_lab.conf())
    assert len(pod_lab.api.entries) == 1
    pod_lab.api.meddling = 1000
    refused = pod_lab.call("ADD", pod_lab.conf(), ifname="net1")
    assert refused.code == 11
    assert "others changed the pod 10 times" in refused.text
    assert [entry["ifName"] for entry in pod_lab.api.entries] == ["eth0"]
    assert listing(pod_lab.volume) == ["eth0.json", "eth0.sock"]


@pytest.mark.parity
def test_what_a_sandbox_left_is_dropped_by_the_next(pod_lab: PodLab) -> None:
    pod_lab.add(pod_lab.conf(), container="old")
    pod_lab.api.refusal = (500, b"")
    pod_lab.call("DEL", pod_lab.conf(), container="old").succeeded()
    assert [entry["containerId"] for entry in pod_lab.api.entries] == ["old"]
    pod_lab.api.refusal = None
    pod_lab.add(pod_lab.conf(), container="new")
    assert [entry["containerId"] for entry in pod_lab.api.entries] == ["new"]
    pod_lab.call("DEL", pod_lab.conf(), container="old").succeeded()
    assert [entry["containerId"] for entry in pod_lab.api.entries] == ["new"]


def test_a_sandbox_that_could_not_be_removed_is_not_in_the_way_of_the_next(
    pod_lab: PodLab,
) -> None:
    pod_lab.add(pod_lab.conf(), container="old")
    pod_lab.lab.switch_down()
    pod_lab.call("DEL", pod_lab.conf(), container="old").succeeded()
    assert pod_lab.call("ADD", pod_lab.conf(), container="new").code == 11
    assert pod_lab.lab.states() == {"old": "deleting"}
    pod_lab.lab.switch_up()
    pod_lab.add(pod_lab.conf(), container="new")
    assert pod_lab.lab.states() == {"new": "attached"}
    assert [entry["containerId"] for entry in pod_lab.api.entries] == ["new"]
    pod_lab.call("DEL", pod_lab.conf(), container="new").succeeded()
    pod_lab.assert_clean()


@pytest.mark.parametrize("left", ["{", "7", '{"a": 1}', "[7]", "[" * 100_000, "null"])
def test_annotations_that_are_none_of_ours_are_replaced(pod_lab: PodLab, left: str) -> None:
    pod_lab.api.annotations["userspace/configuration-data"] = left
    pod_lab.add(pod_lab.conf())
    assert len(pod_lab.api.entries) == 1
    pod_lab.call("DEL", pod_lab.conf()).succeeded()
    pod_lab.assert_clean()


# -- failures


@pytest.mark.parametrize("status", HTTP_REFUSALS)
def test_an_add_that_the_server_refuses_leaves_no_trace(pod_lab: PodLab, status: int) -> None:
    body = json.dumps({"message": "no patch for you"}).encode()
    pod_lab.api.refusal = (status, body)
    conf = pod_lab.conf(version="1.0.0", ipam=pod_lab.lab.host_local())
    refused = pod_lab.call("ADD", conf)
    code, text = HTTP_REFUSALS[status]
    assert refused.code == code
    assert text in refused.text
    pod_lab.assert_clean()


def test_a_patch_without_an_answer_is_taken_back(pod_lab: PodLab) -> None:
    pod_lab.api.dropped = 1
    refused = pod_lab.call("ADD", pod_lab.conf())
    assert refused.code == 11
    assert "cannot be reached" in refused.text
    pod_lab.assert_clean()


def test_an_add_that_fails_afterwards_takes_the_annotations_out(pod_lab: PodLab) -> None:
    failing = pod_lab.conf(container={"engine": "failing", "iftype": "memif"})
    assert pod_lab.call("ADD", failing).code == 999
    assert "PATCH till-0" in pod_lab.api.requests
    pod_lab.assert_clean()


@pytest.mark.parametrize("way", ["down", "silent", "gone", "refusing", "no kubeconfig"])
def test_del_removes_all_on_the_node_without_the_server(pod_lab: PodLab, way: str) -> None:
    conf = pod_lab.conf(version="1.0.0", ipam=pod_lab.lab.host_local(), logLevel="info")
    pod_lab.add(conf)
    match way:
        case "down":
            pod_lab.api.stop_listening()
        case "silent":
            pod_lab.api.hang = True
        case "gone":
            pod_lab.api.pods.clear()
        case "refusing":
            pod_lab.api.answer = (403, b"{}")
        case "no kubeconfig":
            pod_lab.kubeconfig.unlink()
    deleted = pod_lab.call("DEL", conf)
    deleted.succeeded()
    assert ("annotations of pod shop/till-0 are left" in deleted.err) is (way != "gone")
    assert TOKEN not in deleted.err
    pod_lab.assert_node_clean()


def test_del_works_when_the_kubelet_has_removed_the_volume(pod_lab: PodLab) -> None:
    pod_lab.add(pod_lab.conf())
    for path in pod_lab.volume.iterdir():
        path.unlink()
    pod_lab.volume.rmdir()
    pod_lab.call("DEL", pod_lab.conf()).succeeded()
    pod_lab.assert_clean()


@pytest.mark.one_process("the runtime is called here")
def test_restore_needs_no_server(pod_lab: PodLab, tmp_path: Path, plug_interpreter: Path) -> None:
    info = tmp_path / "devinfo/net"
    pod_lab.add(pod_lab.conf(runtimeConfig={"CNIDeviceInfoFile": str(info)}))
    told = pod_lab.document(), json.loads(info.read_text()), pod_lab.api.entries
    for path in (info, *pod_lab.volume.iterdir()):
        path.unlink()
    pod_lab.api.stop_listening()
    (record,) = pod_lab.lab.records()
    program = (
        "import sys; from userspace_cni import runtime; from userspace_cni.config import settings\n"
        "sys.exit(not runtime.Runtime(settings.load()).restore(sys.argv[1]))"
    )
    command = [str(plug_interpreter), "-I", "-c", program, record.id]
    subprocess.run(command, env=dict(pod_lab.lab.plugin.env), check=True)
    assert listing(pod_lab.volume) == ["eth0.json", "eth0.sock"]
    assert (pod_lab.document(), json.loads(info.read_text()), pod_lab.api.entries) == told


def test_gc_takes_them_back_too(pod_lab: PodLab) -> None:
    conf = pod_lab.conf() | {"cni.dev/valid-attachments": []}
    pod_lab.add(pod_lab.conf())
    pod_lab.call("GC", conf, args="").succeeded()
    pod_lab.assert_clean()
    pod_lab.add(pod_lab.conf())
    pod_lab.api.stop_listening()
    pod_lab.call("GC", conf, args="").succeeded()
    pod_lab.assert_node_clean()


@pytest.mark.parametrize("way", ["down", "silent", "garbage", "redirect", "no object", "huge"])
def test_an_add_without_the_server_begins_nothing(pod_lab: PodLab, way: str) -> None:
    match way:
        case "down":
            pod_lab.api.stop_listening()
        case "silent":
            pod_lab.api.hang = True
        case "garbage":
            pod_lab.api.answer = (200, b"\xff{")
        case "redirect":
            pod_lab.api.answer = (307, b"")
        case "no object":
            pod_lab.api.answer = (200, b"[]")
        case "huge":
            pod_lab.api.answer = (200, b" " * (5 << 20))
    refused = pod_lab.call("ADD", pod_lab.conf())
    assert refused.code == (7 if way == "redirect" else 11)
    assert f"the API server 127.0.0.1:{pod_lab.api.port}" in refused.text
    assert TOKEN not in refused.out + refused.err
    pod_lab.assert_clean()


@pytest.mark.parametrize("message", [TOKEN, f"x {TOKEN} y", "a\nb\x1b[2J" + "z" * 10_000])
def test_what_the_server_says_is_told_with_care(pod_lab: PodLab, message: str) -> None:
    pod_lab.api.answer = (403, json.dumps({"message": message}).encode())
    refused = pod_lab.call("ADD", pod_lab.conf(logLevel="debug"))
    assert refused.code == 7
    assert "may not get pod shop/till-0" in refused.text
    assert TOKEN not in refused.out + refused.err
    assert "\x1b" not in refused.text
    assert len(refused.text) < 1000


def test_the_token_is_in_no_log(pod_lab: PodLab, tmp_path: Path) -> None:
    log = tmp_path / "plugin.log"
    conf = pod_lab.conf(logLevel="debug", logFile=str(log))
    errors = [pod_lab.call("ADD", conf).err, pod_lab.call("DEL", conf).err]
    pod_lab.api.answer = (500, TOKEN.encode())
    errors.append(pod_lab.call("ADD", conf).out)
    assert TOKEN not in "".join(errors) + log.read_text()
    records = (pod_lab.lab.plugin.state_dir / "attachments.db").read_bytes()
    assert TOKEN.encode() not in records


# -- which pod


def test_another_pod_of_that_name_is_not_told(pod_lab: PodLab) -> None:
    pod_lab.add(pod_lab.conf())
    pod_lab.api.create(uid="another")
    refused = pod_lab.call("ADD", pod_lab.conf(), ifname="net1")
    assert refused.code == 11
    assert "has the uid 'another'" in refused.text
    pod_lab.call("DEL", pod_lab.conf()).succeeded()
    pod_lab.assert_clean()
    assert pod_lab.api.pod()["metadata"]["resourceVersion"] == "1"


def test_a_pod_that_is_not_there_is_named(pod_lab: PodLab) -> None:
    pod_lab.api.pods.clear()
    refused = pod_lab.call("ADD", pod_lab.conf())
    assert refused.code == 11
    assert 'pods "till-0" not found' in refused.text


@pytest.mark.parametrize(
    "args",
    [
        ARGS.replace("till-0", "../secrets/x"),
        ARGS.replace("shop", "a/b"),
        ARGS.replace("shop", ".."),
        ARGS.replace(UID, "../../x"),
        ARGS.replace("till-0", "Till%2f"),
    ],
)
def test_names_that_no_pod_has_reach_nobody(pod_lab: PodLab, args: str) -> None:
    refused = pod_lab.call("ADD", pod_lab.conf(), args=args)
    assert refused.code == 4
    assert "K8S_POD_" in refused.text
    pod_lab.call("DEL", pod_lab.conf(), args=args).succeeded()
    assert pod_lab.api.requests == []


def test_outside_a_pod_nobody_is_asked(pod_lab: PodLab) -> None:
    pod_lab.add(pod_lab.conf(), args="")
    assert listing(pod_lab.shared_dir / "c1") == ["eth0.json", "eth0.sock"]
    pod_lab.call("DEL", pod_lab.conf(), args="").succeeded()
    assert pod_lab.api.requests == []
    pod_lab.assert_clean()


def test_a_kernels_interface_is_not_told(pod_lab: PodLab) -> None:
    conf = pod_lab.conf(host={"engine": "example", "iftype": "note"})
    pod_lab.add(conf)
    pod_lab.call("DEL", conf).succeeded()
    assert pod_lab.api.requests == ["GET till-0"]


def test_status_reads_the_kubeconfig(pod_lab: PodLab) -> None:
    pod_lab.call("STATUS", pod_lab.conf()).succeeded()
    pod_lab.kubeconfig.write_text("[")
    refused = pod_lab.call("STATUS", pod_lab.conf())
    assert refused.code == 7
    assert "is not YAML, line 1" in refused.text


def test_a_static_pod_is_known_by_its_mirror(pod_lab: PodLab) -> None:
    """The kubelet creates the mirror pod, and the API server gives it another UID."""
    mirror = pod_lab.api.create(uid="mirror")
    refused = pod_lab.call("ADD", pod_lab.conf())
    assert (refused.code, "another pod" in refused.text) == (11, True)
    mirror["metadata"]["annotations"]["kubernetes.io/config.hash"] = UID
    pod_lab.add(pod_lab.conf())
    pod_lab.call("DEL", pod_lab.conf()).succeeded()
