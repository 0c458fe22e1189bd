"""podman with its CNI backend."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from lab.client_lab import GATEWAY, NETWORK
from lab.node import poll

if TYPE_CHECKING:
    from collections.abc import Callable

    from lab.client_lab import ClientLab
    from lab.podman import Podman

pytestmark = pytest.mark.own_process("a lab node has namespaces of its own")

_PING = ("ping", "-c", "1", "-W", "5")


def _address(podman: Podman, name: str, network: str = NETWORK) -> str:
    listed = json.loads(podman("inspect", name).stdout)
    return str(listed[0]["NetworkSettings"]["Networks"][network]["IPAddress"])


@pytest.mark.parity
def test_containers_reach_each_other_and_the_gateway(
    client_lab: ClientLab, start_podman: Callable[[], Podman]
) -> None:
    client_lab.network(chained=[client_lab.spy.chained()])
    podman = start_podman()
    for name in ("left", "right"):
        podman.run(name)
    podman.execute("left", *_PING, _address(podman, "right"))
    podman.execute("right", *_PING, _address(podman, "left"))
    podman.execute("left", *_PING, GATEWAY)
    for name in ("left", "right"):
        podman.remove(name)
    deletes = client_lab.spy.calls("DEL")
    assert len(deletes) == 2
    assert all(call.netns.startswith("/run/netns/") for call in deletes)
    client_lab.assert_clean()


def test_the_network_is_listed(client_lab: ClientLab, start_podman: Callable[[], Podman]) -> None:
    """Podman calls VERSION of every plugin, with dummy values in the environment."""
    client_lab.network()
    done = start_podman()("network", "ls", "--format", "{{.Name}} {{.Driver}}")
    assert f"{NETWORK} userspace" in done.stdout.splitlines()
    assert "level=warning" not in done.stderr
    dummies = dict.fromkeys(("CNI_NETNS", "CNI_IFNAME", "CNI_PATH", "CNI_CONTAINERID"), "dummy")
    answer = client_lab.node.run(
        [str(client_lab.plugin.bin_dir / "userspace")],
        env={**client_lab.plugin.env, **dummies, "CNI_COMMAND": "VERSION"},
        stdin='{"cniVersion":"1.0.0"}',
    )
    assert {"0.4.0", "1.0.0"} <= set(json.loads(answer.stdout)["supportedVersions"])


def test_address_and_mac_by_request(
    client_lab: ClientLab, start_podman: Callable[[], Podman]
) -> None:
    client_lab.network(capabilities={"ips": True, "mac": True}, macFromArgs=True)
    podman = start_podman()
    podman.run("one", "--ip", "10.77.0.77", "--mac-address", "02:00:00:00:00:77")
    shown = podman.execute("one", "ip", "addr", "show", "eth0")
    assert "inet 10.77.0.77/24" in shown
    assert "link/ether 02:00:00:00:00:77" in shown
    podman.execute("one", *_PING, GATEWAY)
    podman.remove("one")
    client_lab.assert_clean()


def test_published_port_survives_a_reload(
    client_lab: ClientLab, start_podman: Callable[[], Podman]
) -> None:
    client_lab.network(
        capabilities={"ips": True},
        chained=[{"type": "portmap", "capabilities": {"portMappings": True}}],
    )
    podman = start_podman()
    podman.run("web", "-p", "18080:80")
    podman("exec", "-d", "web", "httpd", "-f", "-p", "80", "-h", "/etc")
    wget = ["busybox", "wget", "-q", "-O", "-", f"http://{GATEWAY}:18080/passwd"]

    def answers() -> bool:
        return client_lab.node.run(wget, check=False).returncode == 0

    poll(answers, "an answer by host port")
    before = _address(podman, "web")
    podman("network", "reload", "web")
    poll(answers, "an answer after the reload")
    assert _address(podman, "web") == before
    podman.remove("web")
    client_lab.assert_clean()


def test_a_second_network(client_lab: ClientLab, start_podman: Callable[[], Podman]) -> None:
    client_lab.network()
    client_lab.network(name="other", subnet="10.78.0.0/24", default_route=False)
    podman = start_podman()
    podman.run("one")
    podman("network", "connect", "other", "one")
    assert "inet 10.78.0.2/24" in podman.execute("one", "ip", "addr", "show", "eth1")
    podman("network", "disconnect", "other", "one")
    assert client_lab.leases == ["10.77.0.2"]
    podman.remove("one")
    client_lab.assert_clean()
