"""Ports of a kind that core does not know work everywhere like core's own kinds."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from attrs import evolve
from jsonschema import Draft202012Validator

from core import example_lab
from userspace_cni import agent
from userspace_cni.agent import environment
from userspace_cni.api import CONTAINER_ENGINES, HOST_ENGINES, CustomPort

if TYPE_CHECKING:
    from core.example_lab import ExampleLab
    from userspace_cni.handover import Document

SCHEMA = Path(__file__).parents[2] / "docs/handoff.schema.json"

#: An engine whose ports have a socket ("af_xdp") or none ("vdpa").
XDP = """
from attrs import evolve
from example_engine import ExampleContainerEngine, ExampleHostEngine
from userspace_cni.api import CheckFailed, CustomPort

INFO = evolve(ExampleHostEngine.info, name="xdp", interface_types=("af_xdp", "vdpa"))

def port_of(attachment, conf):
    if conf.iftype == "af_xdp":
        return CustomPort(
            kind="af_xdp",
            socket=f"{attachment.directory.path}/{attachment.ifname}.sock",
            role="client",
            values={"device": "ens1", "queues": (3, 4), "busy-poll": True},
        )
    path = "/dev/vhost-vdpa-0"
    device = {"parent-device": "vdpa0", "driver": "vhost", "path": path}
    return CustomPort(
        kind="vdpa", values={"path": path}, device_info={"type": "vdpa", "vdpa": device}
    )

class Host(ExampleHostEngine):
    info = INFO

    def add(self, attachment, conf, undo):
        port = super().add(attachment, conf, undo)
        if conf.iftype == "af_xdp":
            attachment.directory.provide()
        return evolve(port, port=port_of(attachment, conf))

    def check(self, attachment, conf, port):
        super().check(attachment, conf, port)
        if port.port != port_of(attachment, conf):
            raise CheckFailed(f"another port came back: {port.port} {port.port.values}")

class Container(ExampleContainerEngine):
    info = INFO
    where = "container"

    def prepare(self, attachment, conf, port):
        return evolve(super().prepare(attachment, conf, port), port=port.port)
"""
#: Restores the attachment with an ID, as the daemon does.
RESTORE = """
import sys
from userspace_cni.config import settings
from userspace_cni.runtime import Runtime
runtime = Runtime(settings.load())
print(runtime.restore(sys.argv[1]))
runtime.close()
"""


@pytest.fixture(scope="session")
def xdp_interpreter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return example_lab.make_venv(
        tmp_path_factory.mktemp("xdp") / "venv",
        {"lab_xdp": XDP},
        {HOST_ENGINES: "xdp = lab_xdp:Host", CONTAINER_ENGINES: "xdp = lab_xdp:Container"},
    )


@pytest.fixture
def xdp(lab: ExampleLab, xdp_interpreter: Path) -> ExampleLab:
    """The plugin with a third-party engine that is not installed for this process."""
    lab.plugin.interpreted_by(xdp_interpreter)
    lab.plugin.settings(f'[engines.xdp]\ndirectory = "{lab.switch}"\n')
    return evolve(lab, engine="xdp")


def _conf(lab: ExampleLab, iftype: str, **keys: Any) -> dict[str, Any]:
    return lab.conf(host={"engine": "xdp", "iftype": iftype}, **keys)


def _read(lab: ExampleLab) -> Document:
    """Read the container's hand-over file with the agent's library."""
    directory = lab.plugin.run_dir / "shared/c1"
    (document,) = agent.interfaces(str(directory), str(directory / "no-annotations"))
    return document


def test_a_port_with_a_socket_lives(xdp: ExampleLab, xdp_interpreter: Path) -> None:
    conf = _conf(xdp, "af_xdp", legacyFile=True)
    result = xdp.add(conf)
    socket = f"{xdp.plugin.run_dir}/shared/c1/eth0.sock"
    assert result["interfaces"][-1]["socketPath"] == socket

    raw = json.loads((xdp.plugin.run_dir / "shared/c1/eth0.json").read_text())
    Draft202012Validator(json.loads(SCHEMA.read_text())).validate(raw)
    values = {"device": "ens1", "queues": [3, 4], "busy-poll": True}
    port = CustomPort(kind="af_xdp", socket=socket, role="client", values=values)
    assert raw["port"] == {
        "kind": "af_xdp", "socket": "eth0.sock", "role": "client", "values": values,
    }  # fmt: skip
    document = _read(xdp)
    assert document.handoff.port == port
    assert {
        "USERSPACE_CNI_ETH0_KIND": "af_xdp",
        "USERSPACE_CNI_ETH0_SOCKET": socket,
        "USERSPACE_CNI_ETH0_ROLE": "client",
        "USERSPACE_CNI_ETH0_PORT_DEVICE": "ens1",
        "USERSPACE_CNI_ETH0_PORT_QUEUES": "[3, 4]",
        "USERSPACE_CNI_ETH0_PORT_BUSY_POLL": "true",
    }.items() <= environment.variables([document]).items()
    (former,) = (xdp.plugin.run_dir / "shared/c1").glob("configData-*")
    assert json.loads(former.read_text())["config"]["port"] == raw["port"]

    (record,) = xdp.records()
    assert record.port is not None
    assert record.port.port == port
    xdp.call("CHECK", conf | {"prevResult": result}).succeeded()
    (file,) = xdp.switch.iterdir()
    file.unlink()
    restored = subprocess.run(
        [xdp_interpreter, "-c", RESTORE, record.id],
        env=xdp.plugin.env,
        capture_output=True,
        check=True,
        text=True,
    )
    assert "is gone" in restored.stdout
    assert file.exists()
    assert xdp.records() == [record]
    xdp.call("CHECK", conf | {"prevResult": result}).succeeded()
    xdp.call("DEL", conf).succeeded()
    xdp.assert_clean()
    assert not (xdp.plugin.run_dir / "shared/c1").exists()


def test_a_port_without_a_socket_is_handed_over_with_its_device(
    xdp: ExampleLab, tmp_path: Path
) -> None:
    info = tmp_path / "device-info"
    conf = _conf(xdp, "vdpa", runtimeConfig={"CNIDeviceInfoFile": str(info)})
    result = xdp.add(conf)
    assert "socketPath" not in result["interfaces"][-1]
    port = CustomPort(kind="vdpa", values={"path": "/dev/vhost-vdpa-0"})
    assert _read(xdp).handoff.port == port
    assert json.loads(info.read_text()) == {
        "type": "vdpa",
        "version": "1.1.0",
        "vdpa": {"parent-device": "vdpa0", "driver": "vhost", "path": "/dev/vhost-vdpa-0"},
    }
    xdp.call("CHECK", conf | {"prevResult": result}).succeeded()
    (xdp.plugin.run_dir / "shared/c1/eth0.json").unlink()
    lost = xdp.call("CHECK", conf | {"prevResult": result})
    assert "hand-over file" in lost.text
    xdp.call("DEL", conf).succeeded()
    assert not info.exists()
    xdp.assert_clean()
    assert not (xdp.plugin.run_dir / "shared/c1").exists()


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"kind": "memif"}, "class of its own"),
        ({"kind": "AF_XDP"}, "lower-case"),
        ({"kind": "x", "values": {"a": {1, 2}}}, "that JSON can hold"),
        ({"kind": "x", "values": {"a": float("nan")}}, "that JSON can hold"),
        ({"kind": "x", "device_info": {"type": "vdpa"}}, "Device Information"),
    ],
)
def test_what_is_no_port_is_told_to_the_engine(values: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        CustomPort(**values)
