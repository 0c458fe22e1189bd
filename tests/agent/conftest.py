"""Fixtures: a container's view of its hand-over files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve, frozen

from lab.attachments import attachment
from userspace_cni.api import CustomPort, Handoff, Memif, VhostUser
from userspace_cni.handover import dump

MEMIF = Memif(role="client", socket="/node/net1.sock", id=7, rx_queues=2, tx_queues=2)
VHOST = VhostUser(mode="server", socket="/node/net1.sock", queues=2)
CUSTOM = CustomPort(kind="af_xdp", socket="/node/net1.sock", role="client", values={"queues": [3]})


def document(
    interface: str = "net1",
    port: Memif | VhostUser | CustomPort = MEMIF,
    engine: str = "dpdk",
    **more: Any,
) -> dict[str, Any]:
    """Return the content of a hand-over file, as the node writes it."""
    told_of = attachment(network="fast", ifname=interface)
    port = evolve(port, socket=f"/node/{interface}.sock")
    handoff = Handoff(
        interface=interface,
        iftype="memif" if isinstance(port, Memif) else "vhostuser",
        net_type="none",
        mac="02:00:00:00:00:01",
        mtu=1500,
        port=port,
    )
    return dump(told_of, handoff, engine) | more


@frozen
class Container:
    """The two places from which an agent reads."""

    directory: Path
    annotations: Path

    @property
    def arguments(self) -> list[str]:
        return ["--directory", str(self.directory), "--annotations", str(self.annotations)]

    def hand_over(self, content: dict[str, Any], name: str = "") -> Path:
        """Write a hand-over file atomically, as the node does."""
        file = self.directory / (name or f"{content['interface']}.json")
        draft = file.with_name(f".{file.name}.draft")
        draft.write_text(json.dumps(content))
        return draft.replace(file)

    def annotate(self, **values: Any) -> None:
        """Write the annotations as the kubelet does, in a directory behind a symbolic link."""
        data = self.annotations.with_name("..data")
        data.mkdir(exist_ok=True)
        lines = (f"{key}={json.dumps(value)}\n" for key, value in values["of_pod"].items())
        (data / "annotations").write_text("".join(lines))
        if not self.annotations.is_symlink():
            self.annotations.symlink_to("..data/annotations")


@pytest.fixture
def container(tmp_path: Path) -> Container:
    directory = tmp_path / "shared"
    directory.mkdir()
    podinfo = tmp_path / "podinfo"
    podinfo.mkdir()
    return Container(directory, podinfo / "annotations")
