"""`ctr run --cni`: a client that calls DEL without a namespace, or not at all."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from lab.client_lab import GATEWAY, NETWORK
from lab.images import WAIT
from lab.node import poll

if TYPE_CHECKING:
    from collections.abc import Callable

    from lab.client_lab import ClientLab
    from lab.containerd import Containerd

pytestmark = pytest.mark.own_process("a lab node has namespaces of its own")


def test_a_container_has_its_address_and_leaves_nothing(
    client_lab: ClientLab, start_containerd: Callable[[], Containerd]
) -> None:
    client_lab.network(chained=[client_lab.spy.chained()])
    script = f"ip addr show eth0 && ping -c 1 -W 5 {GATEWAY}"
    done = start_containerd().ctr_run("one", ["/bin/sh", "-c", script], "--rm")
    assert "inet 10.77.0.2/24" in done.stdout
    (add,) = client_lab.spy.calls("ADD")
    assert add.env["CNI_CONTAINERID"] == "default-one"
    assert add.netns.startswith("/proc/")
    (delete,) = client_lab.spy.calls("DEL")
    assert delete.netns == ""
    assert "prevResult" in delete.conf
    client_lab.assert_clean()


def test_an_add_that_fails_later_in_the_chain_is_undone(
    client_lab: ClientLab, start_containerd: Callable[[], Containerd]
) -> None:
    client_lab.network(chained=[client_lab.spy.chained(fail=["ADD"])])
    containerd = start_containerd()
    done = containerd.ctr_run("one", ["/bin/true"], check=False)
    assert done.returncode != 0
    assert "the spy says no" in done.stderr
    # ctr keeps the task, and the interface lives in its namespace: DEL came without its path
    assert [call.netns for call in client_lab.spy.calls("DEL")] == [""]
    client_lab.assert_clean()


@pytest.mark.parity
def test_what_a_detached_container_leaks_is_collected(
    client_lab: ClientLab, start_containerd: Callable[[], Containerd]
) -> None:
    """Containerd 1.6's ctr sends no DEL for a detached container: only GC frees its lease."""
    client_lab.network(chained=[client_lab.spy.chained()])
    containerd = start_containerd()
    containerd.ctr_run("one", WAIT, "-d")
    containerd.ctr_run("two", WAIT, "-d")
    assert client_lab.leases == ["10.77.0.2", "10.77.0.3"]
    containerd.ctr("task", "kill", "-s", "KILL", "one")
    poll(lambda: containerd.ctr("task", "rm", "one", check=False).returncode == 0, "one's end")
    containerd.ctr("containers", "rm", "one")
    assert client_lab.leases == ["10.77.0.2", "10.77.0.3"]
    client_lab.libcni().gc(NETWORK, valid=[("default-two", "eth0")])
    assert client_lab.leases == ["10.77.0.3"]
    assert len(client_lab.node.veths()) == 1
    containerd.ctr("task", "exec", "--exec-id", "ping", "two", "ping", "-c", "1", GATEWAY)
    client_lab.libcni().gc(NETWORK, valid=[])
    client_lab.assert_clean()
