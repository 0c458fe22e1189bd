"""containerd's CRI service, driven as a kubelet drives it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import grpc
import pytest

from lab.client_lab import GATEWAY
from lab.node import poll

if TYPE_CHECKING:
    from collections.abc import Callable

    from lab.client_lab import ClientLab
    from lab.cri import Cri
    from lab.plugin import Mode

pytestmark = pytest.mark.own_process("a lab node has namespaces of its own")

_PING = ("ping", "-c", "1", "-W", "5")


@pytest.mark.parity
def test_pods_reach_each_other_and_the_gateway(
    client_lab: ClientLab, start_cri: Callable[[], Cri]
) -> None:
    client_lab.network()
    cri = start_cri()
    sandboxes = [cri.run_sandbox(name) for name in ("left", "right")]
    left, right = (cri.start_container(sandbox) for sandbox in sandboxes)
    left_ip, right_ip = (cri.sandbox_ip(sandbox) for sandbox in sandboxes)
    assert f"inet {left_ip}/24" in cri.execute(left, ["ip", "addr", "show", "eth0"]).stdout
    for container, address in ((left, right_ip), (right, left_ip), (left, GATEWAY)):
        output = cri.execute(container, [*_PING, address])
        assert output.exit_code == 0, output
    for sandbox in sandboxes:
        cri.stop_sandbox(sandbox)
        cri.remove_sandbox(sandbox)
    client_lab.assert_clean()


def test_deletes_are_repeated_without_netns_and_result(
    client_lab: ClientLab, start_cri: Callable[[], Cri]
) -> None:
    client_lab.network(chained=[client_lab.spy.chained()])
    cri = start_cri()
    assert cri.status()["NetworkReady"].status
    sandbox = cri.run_sandbox("pod")
    cri.stop_sandbox(sandbox)
    client_lab.assert_clean()
    for _ in range(3):
        cri.stop_sandbox(sandbox)
    cri.remove_sandbox(sandbox)
    first, *others = client_lab.spy.calls("DEL")
    assert first.netns
    assert "prevResult" in first.conf
    assert len(others) == 4
    assert {call.netns for call in others} == {""}
    assert not any("prevResult" in call.conf for call in others)
    client_lab.assert_clean()


@pytest.mark.parity
def test_ten_pods_at_once(client_lab: ClientLab, start_cri: Callable[[], Cri]) -> None:
    client_lab.network()
    cri = start_cri()
    with ThreadPoolExecutor(10) as pool:
        sandboxes = list(pool.map(cri.run_sandbox, [f"pod{i}" for i in range(10)]))
        addresses = {cri.sandbox_ip(sandbox) for sandbox in sandboxes}
        assert len(addresses) == 10
        assert set(client_lab.leases) == addresses
        list(pool.map(cri.stop_sandbox, sandboxes))
        list(pool.map(cri.remove_sandbox, sandboxes))
    client_lab.assert_clean()


@pytest.mark.parity
@pytest.mark.parametrize("where", ["ipam", "chain"])
def test_an_add_killed_by_the_deadline_leaves_nothing(
    client_lab: ClientLab, start_cri: Callable[[], Cri], where: str, served_by: Mode
) -> None:
    # The DEL waits for what continues without its client: the daemon or an IPAM plugin.
    slow = {"ADD": 30 if served_by == "process" and where == "chain" else 6}
    if where == "ipam":  # the kill hits our plugin, waiting for its IPAM
        client_lab.network(ipam=client_lab.spy_ipam(sleep=slow))
    else:  # the kill hits the next plugin: ours has done its work
        client_lab.network(chained=[client_lab.spy.chained(sleep=slow)])
    cri = start_cri()
    with pytest.raises(grpc.RpcError) as failure:
        cri.run_sandbox("pod", timeout=1.5)
    assert failure.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    poll(lambda: client_lab.spy.calls("DEL"), "the DEL after the deadline")
    poll(lambda: not any(client_lab.remains().values()), "nothing remains")


def test_an_add_that_fails_later_in_the_chain_is_undone(
    client_lab: ClientLab, start_cri: Callable[[], Cri]
) -> None:
    client_lab.network(chained=[client_lab.spy.chained(fail=["ADD"])])
    cri = start_cri()
    with pytest.raises(grpc.RpcError, match="the spy says no"):
        cri.run_sandbox("pod")
    assert client_lab.spy.calls("DEL")
    client_lab.assert_clean()


def test_published_ports_and_bandwidth(client_lab: ClientLab, start_cri: Callable[[], Cri]) -> None:
    """The CRI writes keys of capabilities in Go's notation (HostPort), not in CNI's."""
    client_lab.network(
        chained=[
            {"type": "portmap", "capabilities": {"portMappings": True}},
            {"type": "bandwidth", "capabilities": {"bandwidth": True}},
            client_lab.spy.chained(capabilities={"portMappings": True, "bandwidth": True}),
        ]
    )
    cri = start_cri()
    sandbox = cri.run_sandbox(
        "web",
        ports=[{"container_port": 80, "host_port": 18080}],
        annotations={"kubernetes.io/ingress-bandwidth": "10M"},
    )
    cri.start_container(sandbox, ["/bin/httpd", "-f", "-p", "80", "-h", "/etc"])
    wget = ["busybox", "wget", "-q", "-O", "-", f"http://{GATEWAY}:18080/passwd"]
    poll(lambda: client_lab.node.run(wget, check=False).returncode == 0, "an answer by host port")
    (call,) = client_lab.spy.calls("ADD")
    assert call.conf["runtimeConfig"]["portMappings"][0]["HostPort"] == 18080
    assert call.conf["runtimeConfig"]["bandwidth"]["IngressRate"] == 10_000_000
    cri.stop_sandbox(sandbox)
    cri.remove_sandbox(sandbox)
    client_lab.assert_clean()


def test_the_bandwidth_of_a_pod(client_lab: ClientLab, start_cri: Callable[[], Cri]) -> None:
    client_lab.network(capabilities={"bandwidth": True})
    cri = start_cri()
    sandbox = cri.run_sandbox("pod", annotations={"kubernetes.io/egress-bandwidth": "10M"})
    assert "rate 10Mbit burst 125000b" in client_lab.node.run(["tc", "qdisc"]).stdout
    cri.remove_sandbox(sandbox)
    client_lab.assert_clean()


def test_a_capability_that_the_plugin_lacks_is_refused(
    client_lab: ClientLab, start_cri: Callable[[], Cri]
) -> None:
    client_lab.network(capabilities={"portMappings": True})
    cri = start_cri()
    with pytest.raises(grpc.RpcError, match="portMappings"):
        cri.run_sandbox("pod", ports=[{"container_port": 80, "host_port": 18080}])
    client_lab.assert_clean()
    cri.remove_sandbox(cri.run_sandbox("other"))  # the capability is declared, and not asked for
    client_lab.assert_clean()
