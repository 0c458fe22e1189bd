"""Fixtures: a node of a cluster, with an API server, and an engine whose ports are sockets."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from attrs import evolve, frozen

from core import example_lab
from core.conftest import netns
from core.example_lab import ExampleLab
from lab.kubernetes_api import ARGS, UID, Authority, KubernetesApi
from userspace_cni.api import CONTAINER_ENGINES, HOST_ENGINES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lab.plugin import Outcome, Plugin

__all__ = ["netns"]

#: The example engine with a socket for each port. The container engine "failing" refuses them all.
PLUG = """
import socket
from attrs import evolve
from example_engine import ExampleContainerEngine, ExampleHostEngine, Note
from userspace_cni.api import CustomPort, Memif

INFO = evolve(ExampleHostEngine.info, name="plug", interface_types=("memif",))

class Host(ExampleHostEngine):
    info = INFO

    def add(self, attachment, conf, undo):
        port = super().add(attachment, conf, undo)
        if conf.section(Note).text == "abstract":
            return evolve(port, port=Memif(role="client", socket=f"@{attachment.ifname}"))
        if conf.section(Note).text == "device":
            return evolve(port, port=CustomPort(kind="vdpa", values={"path": "/dev/vdpa0"}))
        attachment.directory.provide()
        name = f"{attachment.ifname}.sock"
        attachment.directory.discard_stale(name)
        path = attachment.directory.socket(name)
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path)
        return evolve(port, port=Memif(role="client", socket=path))

class Container(ExampleContainerEngine):
    info = INFO
    where = "container"

    def prepare(self, attachment, conf, port):
        return evolve(super().prepare(attachment, conf, port), port=port.port)

class Failing(Container):
    info = evolve(INFO, name="failing")
    where = "node"

    def add(self, handoff):
        raise ZeroDivisionError("by design")
"""


@frozen(kw_only=True)
class PodLab:
    """A node, its API server with one pod, and the pod's hand-over."""

    lab: ExampleLab
    api: KubernetesApi
    kubeconfig: Path
    kubelet_dir: Path
    shared_dir: Path

    def conf(self, *, text: str = "", **keys: Any) -> dict[str, Any]:
        """Return a network whose ports are sockets, changed by *keys*."""
        host = {"engine": "plug", "iftype": "memif", "note": {"text": text}}
        own = {"kubeconfig": str(self.kubeconfig), "sharedDir": str(self.shared_dir)}
        return self.lab.conf(**{"host": host, **own, **keys})

    def call(self, command: str, config: object, **keys: Any) -> Outcome:
        return self.lab.call(command, config, **{"args": ARGS, **keys})

    def add(self, config: object, **keys: Any) -> dict[str, Any]:
        return self.call("ADD", config, **keys).result

    @property
    def volume(self) -> Path:
        """The emptyDir of the pod."""
        return self.kubelet_dir / f"pods/{UID}/volumes/kubernetes.io~empty-dir/shared-dir"

    def mount_volume(self, path: Path | None = None) -> Path:
        """Create a volume as the kubelet does."""
        volume = path or self.volume
        volume.mkdir(parents=True)
        volume.chmod(0o777)
        return volume

    def document(self, ifname: str = "eth0") -> dict[str, Any]:
        document = json.loads((self.volume / f"{ifname}.json").read_text())
        assert isinstance(document, dict)
        return document

    def downward_api(self, path: Path) -> Path:
        """Write the pod's annotations as the kubelet does."""
        lines = (f"{key}={json.dumps(value)}\n" for key, value in self.api.annotations.items())
        path.write_text("".join(lines))
        return path

    def assert_node_clean(self) -> None:
        """Fail if anything is left on the node."""
        self.lab.assert_clean()
        volumes = [*self.kubelet_dir.glob("pods/*/volumes/*/*/*")]
        views = [*(self.lab.plugin.run_dir / "s").glob("*")]
        shared = [path for path in self.shared_dir.glob("**/*") if not path.is_dir()]
        assert (volumes, views, shared) == ([], [], [])

    def assert_clean(self) -> None:
        """Fail if anything is left of any container."""
        self.assert_node_clean()
        assert self.api.annotations == {"theirs": "stays"}


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.make(tmp_path_factory.mktemp("authority") / "own")


@pytest.fixture
def api(authority: Authority) -> Iterator[KubernetesApi]:
    """A running API server that has a pod."""
    with KubernetesApi(authority).running() as api:
        api.create()
        yield api


@pytest.fixture(scope="session")
def plug_interpreter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An interpreter that also has the engine "plug"."""
    return example_lab.make_venv(
        tmp_path_factory.mktemp("plug") / "venv",
        {"lab_plug": PLUG},
        {
            HOST_ENGINES: "plug = lab_plug:Host",
            CONTAINER_ENGINES: "plug = lab_plug:Container\nfailing = lab_plug:Failing",
        },
    )


@pytest.fixture
def pod_lab(
    plugin: Plugin, tmp_path: Path, netns: str, api: KubernetesApi, plug_interpreter: Path
) -> PodLab:
    """A node of a cluster, and a pod whose volume is mounted."""
    lab = example_lab.make(plugin, tmp_path, netns)
    kubelet_dir = tmp_path / "kubelet"
    settings = Path(plugin.env["USERSPACE_CNI_CONFIG"])
    tables = settings.read_text()
    settings.write_text(f'kubelet_dir = "{kubelet_dir}"\n{tables}')
    plugin.settings(f'[engines.plug]\ndirectory = "{lab.switch}"\n')
    plugin.interpreted_by(plug_interpreter)
    shared_dir = tmp_path / "shared"
    shared_dir.mkdir()
    pods = PodLab(
        lab=evolve(lab, engine="plug"),
        api=api,
        kubeconfig=api.kubeconfig(tmp_path / "kubeconfig"),
        kubelet_dir=kubelet_dir,
        shared_dir=shared_dir,
    )
    pods.mount_volume()
    return pods


def listing(path: Path) -> list[str]:
    return sorted(os.listdir(path))
