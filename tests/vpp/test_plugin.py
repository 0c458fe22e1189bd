"""The plugin called as by a runtime, with VPP."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from lab.plugin import attachments
from lab.vpp import api_dir
from lab.vpp_lab import VppLab, conf, ips
from userspace_cni.api import attachment_id
from userspace_cni_vpp import connection
from userspace_cni_vpp.sections import BridgeSection

if TYPE_CHECKING:
    from lab.plugin import Outcome, Plugin

#: The example of the predecessor's README, as written there.
PREDECESSOR = """
{
  "cniVersion": "0.3.1",
  "type": "userspace",
  "name": "memif-network",
  "if0name": "net0",
  "host": {
    "engine": "vpp",
    "iftype": "memif",
    "netType": "bridge",
    "memif": {
      "role": "master",
      "mode": "ethernet"
    },
    "bridge": {
      "bridgeId": 4
    }
  },
  "container": {
    "engine": "vpp",
    "iftype": "memif",
    "netType": "interface",
    "memif": {
      "role": "slave",
      "mode": "ethernet"
    }
  },
  "ipam": {
    "type": "host-local",
    "subnet": "192.168.210.0/24",
    "routes": [
      {
        "dst": "0.0.0.0/0"
      }
    ]
  }
}
"""


def configure(plugin: Plugin, lab: VppLab) -> None:
    plugin.settings(
        f'[engines.vpp]\napi_socket = "{lab.vpp.path}"\napi_dir = "{api_dir()}"\ntimeout = 3\n'
    )


def call(
    plugin: Plugin, command: str, config: dict[str, Any], netns: str, container: str = "c1"
) -> Outcome:
    return plugin.call(command, config, netns=netns, container=container)


@pytest.mark.parity
def test_the_predecessors_example(lab: VppLab, plugin: Plugin, tmp_path: Path) -> None:
    configure(plugin, lab)
    config = json.loads(PREDECESSOR)
    config["ipam"]["dataDir"] = str(tmp_path / "leases")  # not the machine's own
    netns = lab.container().path
    results = {c: call(plugin, "ADD", config, netns, c).result for c in ("c1", "c2")}
    domain = lab.switch.domain(4)
    assert domain is not None
    assert len(domain.members) == 2
    for container, result in results.items():
        host, inside = result["interfaces"]
        assert host["name"].startswith("memif")
        assert inside["name"] == "net0"
        assert inside["sandbox"] == netns
        assert result["ips"][0]["address"].startswith("192.168.210.")
        path = plugin.run_dir / "shared" / container / "eth0.json"
        document = json.loads(path.read_text())
        assert (document["interface"], document["netType"]) == ("net0", "interface")
        assert document["memif"]["role"] == "client"
        assert path.with_name(document["memif"]["socket"]).is_socket()
        assert document["routes"][0]["dst"] == "0.0.0.0/0"
    for container in results:
        call(plugin, "DEL", config, netns, container).succeeded()
        call(plugin, "DEL", config, netns, container).succeeded()
    assert not list((tmp_path / "leases").glob("**/192.*"))
    assert attachments(plugin) == []
    lab.assert_clean()


@pytest.mark.parity
def test_check_and_gc(lab: VppLab, plugin: Plugin) -> None:
    configure(plugin, lab)
    config = {
        "cniVersion": "1.1.0", "name": "blue", "type": "userspace",
        "host": {"engine": "vpp", "iftype": "memif", "bridge": {"bridgeName": "blue"}},
    }  # fmt: skip
    netns = lab.container().path
    result = call(plugin, "ADD", config, netns).result
    call(plugin, "STATUS", config, "").succeeded()
    call(plugin, "CHECK", config | {"prevResult": result}, netns).succeeded()
    call(plugin, "ADD", config, netns, "c2").result  # noqa: B018
    valid = [{"containerID": "c1", "ifname": "eth0"}]
    call(plugin, "GC", config | {"cni.dev/valid-attachments": valid}, "").succeeded()
    assert len(lab.tags()) == 1
    call(plugin, "GC", config | {"cni.dev/valid-attachments": []}, "").succeeded()
    lab.assert_clean()


_RESTORE = """
import sys
from contextlib import closing
from userspace_cni.config import settings
from userspace_cni.runtime import Runtime
with closing(Runtime(settings.load())) as runtime:
    print(runtime.restore(sys.argv[1]))
"""


@pytest.mark.one_process("the store is changed behind the daemon's back")
@pytest.mark.parametrize("iftype", ["memif", "vhostuser"])
def test_a_store_of_the_first_format_serves_its_attachments(
    sim: VppLab, plugin: Plugin, iftype: str
) -> None:
    configure(plugin, sim)
    config = {
        "cniVersion": "1.1.0", "name": "blue", "type": "userspace",
        "host": {"engine": "vpp", "iftype": iftype, "bridge": {"bridgeId": 4}},
    }  # fmt: skip
    netns = sim.container().path
    result = call(plugin, "ADD", config, netns).result
    with closing(sqlite3.connect(plugin.state_dir / "attachments.db")) as db:
        db.executescript(
            "ALTER TABLE attachment DROP COLUMN directory;"
            "ALTER TABLE attachment DROP COLUMN container_dir;"
            "PRAGMA user_version = 1;"
        )
    call(plugin, "CHECK", config | {"prevResult": result}, netns).succeeded()
    id_ = attachment_id("blue", "c1", "eth0")
    sim.call(sim.engine.delete, id_, conf(iftype, "bridge", bridge=BridgeSection(bridge_id=4)), "")
    assert call(plugin, "CHECK", config | {"prevResult": result}, netns).code == 104
    restored = subprocess.run(
        [sys.executable, "-c", _RESTORE, id_],
        env={**os.environ, **plugin.env},
        capture_output=True,
        check=True,
        text=True,
    )
    assert "gone" in restored.stdout
    call(plugin, "CHECK", config | {"prevResult": result}, netns).succeeded()
    call(plugin, "DEL", config, netns).succeeded()
    assert attachments(plugin) == []
    sim.assert_clean()


@pytest.mark.one_process("the daemon retries by itself: tests/daemon/test_reconcile.py")
def test_vpp_down_is_50_and_11_and_a_queued_del(lab: VppLab, plugin: Plugin) -> None:
    configure(plugin, lab)
    config = {
        "cniVersion": "1.1.0", "name": "blue", "type": "userspace",
        "host": {"engine": "vpp", "iftype": "memif", "bridge": {"bridgeId": 4}},
    }  # fmt: skip
    netns = lab.container().path
    call(plugin, "ADD", config, netns).result  # noqa: B018
    connection.disconnect()
    lab.vpp.kill()
    assert call(plugin, "STATUS", config, "").code == 50
    down = call(plugin, "ADD", config, netns, "c2")
    assert down.code == 11
    assert "api_socket" in down.text
    call(plugin, "DEL", config, netns).succeeded()
    (left,) = attachments(plugin)
    assert left["state"] == "deleting"
    lab.call(lab.vpp.start)
    # The next request executes the postponed DEL.
    call(plugin, "ADD", config, netns, "c3").result  # noqa: B018
    call(plugin, "DEL", config, netns, "c3").succeeded()
    lab.assert_clean()


@pytest.mark.parametrize(
    ("host", "path"),
    [
        ({"bridge": {"bridgeName": "0"}}, "host.bridge.bridgeName"),
        ({"bridge": {"bridgeId": 1 << 24}}, "host.bridge.bridgeId"),
        ({"bridge": {"bridgeId": 4, "vlanId": 4095}}, "host.bridge.vlanId"),
        ({"memif": {"ringSize": 1000}}, "host.memif.ringSize"),
        ({"memif": {"socketfile": "../x"}}, "host.memif.socketfile"),
        ({"memif": {"secret": "x" * 24}}, "host.memif.secret"),
        ({"memif": {"socket": "pipe"}}, "host.memif.socket"),
        ({"vpp": {"apiSocket": "api.sock"}}, "host.vpp.apiSocket"),
        ({"interface": {"addresses": ["10.0.0.1"]}}, "host.interface.addresses"),
        ({"vhost": {"mode": "both"}}, "host.vhost.mode"),
    ],
)
def test_values_that_cannot_be_used(plugin: Plugin, host: dict[str, Any], path: str) -> None:
    config = {
        "cniVersion": "1.1.0", "name": "blue", "type": "userspace",
        "host": {"engine": "vpp", "iftype": "memif", **host},
    }  # fmt: skip
    refused = plugin.call("ADD", config, netns="/proc/self/ns/net")
    assert refused.code == 7
    assert path in refused.text
    assert "x" * 24 not in refused.text


def test_an_add_has_few_milliseconds_of_its_own(sim: VppLab) -> None:
    """Measured on an open connection; it does not grow from ten to a thousand interfaces."""
    host = conf("memif", "bridge", bridge=BridgeSection(bridge_id=4))

    def median(rounds: int = 15) -> float:
        took = []
        for _ in range(rounds):
            attachment = sim.attachment(sim.container(), ips=ips("10.1.0.2/24"))
            begin = time.perf_counter()
            sim.add(attachment, host)
            took.append(time.perf_counter() - begin)
        return sorted(took)[rounds // 2]

    few = median()
    for _ in range(1000):
        sim.switch.create_loopback(bytes(6))
    # Allow for noise of a shared machine; the time must not grow with the interfaces.
    assert median() < 4 * few + 0.02
