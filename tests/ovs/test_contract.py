"""What every host engine must do, done by this one."""

from __future__ import annotations

from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from lab import contract
from lab.ovs_lab import OvsLab
from userspace_cni import config, netns
from userspace_cni.engine import Attachment, Node
from userspace_cni.handover import ContainerDirectory
from userspace_cni.locks import Locks
from userspace_cni_ovs.host import OvsHostEngine


@pytest.mark.parametrize("iftype", OvsHostEngine.info.interface_types)
@pytest.mark.parametrize("story", [contract.host_engine_life, contract.host_engine_undo])
def test_the_contract_of_a_host_engine(
    lab: OvsLab, tmp_path: Path, iftype: str, story: Any
) -> None:
    def directory(path: str) -> ContainerDirectory:
        base, _, container_id = path.rpartition("/")
        return ContainerDirectory(Path(base), container_id, None)  # the switch is elsewhere

    engine = OvsHostEngine(
        Node(
            settings={"db": lab.ovs.db, "timeout": 4},
            lock=Locks(tmp_path / "locks", 10).hold,
            directory=directory,
        )
    )
    name = f"{iftype}-{story.__name__.rpartition('_')[2]}"
    attachment = Attachment(
        network="contract",
        container_id=name,
        ifname="eth0",
        netns=str(lab.node.path(lab.node.netns(name))),
        interface="eth0",
        directory=directory(f"{lab.node.dir}/contract/{name}"),
    )
    raw = {"iftype": iftype, "bridge": {"bridgeName": "contract", "create": True}}
    conf = config.engine_conf(raw, "host", engine.info, {})
    with closing(engine):
        story(engine, attachment, conf, partial(netns.call, f"/proc/{lab.node.pid}/ns/net"))
    assert lab.leftovers() == []
