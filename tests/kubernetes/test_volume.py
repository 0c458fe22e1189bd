"""The pod's volume as shared directory: its selection, and protection from hostile pods."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest

from kubernetes.conftest import listing
from lab.kubernetes_api import ARGS, UID
from userspace_cni.config.settings import Settings
from userspace_cni.runtime.places import Places

if TYPE_CHECKING:
    from pathlib import Path

    from kubernetes.conftest import PodLab


def _spec(volume: dict[str, Any], name: str = "shared-dir", **mount: Any) -> dict[str, Any]:
    """Return the parts of a pod's spec with a volume, mounted as *mount* says."""
    mounted = {"name": name, "mountPath": "/mnt/sockets/", **mount}
    return {
        "volumes": [{"name": "other", "emptyDir": {}}, {"name": name, **volume}],
        "containers": [
            {"name": "sidecar"},
            {"name": "part", "volumeMounts": [{**mounted, "mountPath": "/x", "subPath": "x"}]},
            {"name": "app", "volumeMounts": [{"name": "other", "mountPath": "/y"}, mounted]},
            {"name": "late", "volumeMounts": [{**mounted, "mountPath": "/z"}]},
        ],
    }


def _socket_path(result: dict[str, Any]) -> str:
    return str(result["interfaces"][-1]["socketPath"])


def test_the_first_container_that_has_it_whole_says_where(pod_lab: PodLab) -> None:
    pod_lab.api.create(**_spec({"emptyDir": {"medium": "Memory"}}))
    assert _socket_path(pod_lab.add(pod_lab.conf())) == "/mnt/sockets/eth0.sock"
    assert pod_lab.api.annotations["userspace/mapped-dir"] == "/mnt/sockets/"


def test_an_init_container_alone_may_have_it(pod_lab: PodLab) -> None:
    spec = _spec({"emptyDir": {}})
    pod_lab.api.create(volumes=spec["volumes"], containers=[], initContainers=spec["containers"])
    assert _socket_path(pod_lab.add(pod_lab.conf())) == "/mnt/sockets/eth0.sock"


def test_the_volume_may_have_another_name(pod_lab: PodLab) -> None:
    pod_lab.api.create(**_spec({"emptyDir": {}}, "sockets"))
    volume = pod_lab.mount_volume(pod_lab.volume.with_name("sockets"))
    conf = pod_lab.conf(sharedVolume="sockets")
    pod_lab.add(conf)
    assert listing(volume) == ["eth0.json", "eth0.sock"]
    pod_lab.call("DEL", conf).succeeded()
    pod_lab.assert_clean()


@pytest.mark.parametrize("name", ["", "../x", "a/b", "-x", "X", "a" * 64, 7])
def test_the_network_cannot_name_what_is_no_volume(pod_lab: PodLab, name: object) -> None:
    refused = pod_lab.call("ADD", pod_lab.conf(sharedVolume=name))
    assert refused.code == 7
    assert "sharedVolume: expected" in refused.text


def test_without_the_volume_it_is_the_containers_own_directory(pod_lab: PodLab) -> None:
    pod_lab.api.create(volumes=[], containers=[])
    refused = pod_lab.call("ADD", pod_lab.conf())
    assert refused.code == 7
    assert "the pod has no volume 'shared-dir'" in refused.text
    assert "containerDir" in refused.text
    pod_lab.assert_clean()
    conf = pod_lab.conf(containerDir="/c")
    assert _socket_path(pod_lab.add(conf)) == "/c/eth0.sock"
    assert pod_lab.api.annotations["userspace/mapped-dir"] == "/c/"
    assert listing(pod_lab.shared_dir / "c1") == ["eth0.json", "eth0.sock"]
    refused = pod_lab.call("ADD", pod_lab.conf(containerDir="/d"), ifname="net1")
    assert refused.code == 7
    assert "'/c/', and that of net1 in '/d/'" in refused.text
    pod_lab.add(pod_lab.conf(text="abstract"), ifname="net2")
    assert pod_lab.api.annotations["userspace/mapped-dir"] == "/c/"
    pod_lab.call("DEL", conf).succeeded()
    pod_lab.call("DEL", pod_lab.conf(text="abstract"), ifname="net2").succeeded()
    pod_lab.assert_clean()


def test_a_uid_that_the_runtime_does_not_tell_is_the_api_s(pod_lab: PodLab) -> None:
    pod_lab.add(pod_lab.conf(), args=ARGS.replace(f"K8S_POD_UID={UID};", ""))
    assert listing(pod_lab.volume) == ["eth0.json", "eth0.sock"]


@pytest.mark.parametrize("uid", ["../../../tmp", "", "a/b", ".", None, 7, "a\n"])
def test_a_uid_that_is_none_is_refused(pod_lab: PodLab, uid: Any) -> None:
    pod_lab.api.create(uid=uid)
    refused = pod_lab.call("ADD", pod_lab.conf(), args=ARGS.replace(f"K8S_POD_UID={UID};", ""))
    assert refused.code == 11
    assert "which no pod can have" in refused.text
    pod_lab.assert_clean()


@pytest.mark.parametrize(
    "path", ["relative", "", "/", "/a/../b", "/a\nb", "/a:b", "/a\x00", 7, None, "/" + "a" * 5000]
)
def test_a_mount_path_that_is_none_is_refused(pod_lab: PodLab, path: object) -> None:
    pod_lab.api.create(**_spec({"emptyDir": {}}, mountPath=path))
    # All containers mount it there.
    for container in pod_lab.api.pod()["spec"]["containers"]:
        for mount in container.get("volumeMounts", ()):
            mount["mountPath"] = path
    refused = pod_lab.call("ADD", pod_lab.conf())
    assert refused.code == 7
    assert "volume shared-dir of pod shop/till-0 is mounted at" in refused.text
    pod_lab.assert_clean()


@pytest.mark.parametrize(
    ("spec", "problem"),
    [
        ({"volumes": [{"name": "shared-dir", "emptyDir": {}}]}, "is mounted by no container"),
        (_spec({"emptyDir": {}}, subPath="x"), "is mounted by no container"),
        (_spec({"configMap": {"name": "x"}}), "is a configMap, expected an emptyDir"),
        (_spec({"hostPath": {}}), "is the hostPath None"),
        (_spec({"hostPath": 7}), "is the hostPath None"),
        (_spec({"hostPath": {"path": "/etc"}}), "is the hostPath '/etc'"),
    ],
)
def test_a_volume_that_cannot_be_used_is_an_error(
    pod_lab: PodLab, spec: dict[str, Any], problem: str
) -> None:
    pod_lab.api.create(**({"containers": []} | spec))
    refused = pod_lab.call("ADD", pod_lab.conf())
    assert refused.code == 7
    assert problem in refused.text
    pod_lab.assert_clean()


@pytest.mark.parity
def test_a_host_path_below_the_shared_directory_is_used(pod_lab: PodLab) -> None:
    volume = pod_lab.mount_volume(pod_lab.shared_dir / "till")
    pod_lab.api.create(**_spec({"hostPath": {"path": f"{volume}/", "type": "Directory"}}))
    assert _socket_path(pod_lab.add(pod_lab.conf())) == "/mnt/sockets/eth0.sock"
    assert listing(volume) == ["eth0.json", "eth0.sock"]
    # Another pod may share it but cannot take names that are in use.
    refused = pod_lab.call("ADD", pod_lab.conf(), container="c2")
    assert refused.code == 103
    assert listing(volume) == ["eth0.json", "eth0.sock"]
    pod_lab.call("DEL", pod_lab.conf()).succeeded()
    assert volume.is_dir()
    pod_lab.assert_clean()


@pytest.mark.parametrize("below", ["", "a/b", "../out", ".", "..", "a/../b", "-x"])
def test_a_host_path_anywhere_else_is_refused(pod_lab: PodLab, below: str) -> None:
    pod_lab.api.create(**_spec({"hostPath": {"path": f"{pod_lab.shared_dir}/{below}"}}))
    refused = pod_lab.call("ADD", pod_lab.conf())
    assert refused.code == 7
    assert f"expected a directory directly below {pod_lab.shared_dir}" in refused.text
    pod_lab.assert_clean()


@pytest.mark.parametrize("trap", ["link", "file", "absent"])
def test_a_volume_that_is_no_directory_is_not_followed(
    pod_lab: PodLab, tmp_path: Path, trap: str
) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    volume = pod_lab.shared_dir / "till"
    if trap == "link":
        volume.symlink_to(precious)
    elif trap == "file":
        volume.write_text("")
    pod_lab.api.create(**_spec({"hostPath": {"path": str(volume)}}))
    refused = pod_lab.call("ADD", pod_lab.conf())
    assert refused.code == 5
    assert f"cannot use the shared directory {volume}" in refused.text
    assert listing(precious) == []
    assert pod_lab.lab.ports() == []


def test_what_the_container_put_there_stays(pod_lab: PodLab) -> None:
    (pod_lab.volume / "theirs").write_text("")
    pod_lab.add(pod_lab.conf())
    pod_lab.call("DEL", pod_lab.conf()).succeeded()
    assert listing(pod_lab.volume) == ["theirs"]
    assert listing(pod_lab.lab.plugin.run_dir / "s") == []


def test_a_volume_has_one_view_for_all_interfaces(pod_lab: PodLab) -> None:
    """The path of an emptyDir is always too long for a socket's address."""
    assert (
        len(f"/var/lib/kubelet/pods/{UID}/volumes/kubernetes.io~empty-dir/shared-dir/net1.sock")
        > 107
    )
    pod_lab.add(pod_lab.conf())
    pod_lab.add(pod_lab.conf(), ifname="net1")
    (view,) = (pod_lab.lab.plugin.run_dir / "s").iterdir()
    assert view.samefile(pod_lab.volume)
    pod_lab.call("DEL", pod_lab.conf()).succeeded()
    assert (view / "net1.sock").is_socket()
    pod_lab.call("DEL", pod_lab.conf(), ifname="net1").succeeded()
    pod_lab.assert_clean()


def test_an_engine_finds_the_volume_by_its_view(pod_lab: PodLab) -> None:
    pod_lab.add(pod_lab.conf())
    (view,) = (pod_lab.lab.plugin.run_dir / "s").iterdir()
    places = Places(Settings(run_dir=pod_lab.lab.plugin.run_dir))
    assert places.at(str(view)).discard_stale("eth0.sock")
    assert listing(pod_lab.volume) == ["eth0.json"]


def test_a_removal_in_the_volume_is_not_done_by_another_networks_configuration(
    pod_lab: PodLab,
) -> None:
    lab = pod_lab.lab
    pod_lab.add(pod_lab.conf())
    lab.switch_down()
    pod_lab.call("DEL", pod_lab.conf()).succeeded()
    lab.switch_up()
    # As a version wrote it that knew another key.
    unusable = pod_lab.conf(host={**pod_lab.conf()["host"], "engin": "plug"})
    with closing(sqlite3.connect(lab.plugin.state_dir / "attachments.db")) as db, db:
        db.execute("UPDATE attachment SET config = ?", (json.dumps(unusable),))
    pod_lab.add(pod_lab.conf(name="other"), ifname="net1")
    (removed,) = (record for record in lab.records() if record.network != "other")
    assert removed.state == "deleting"
