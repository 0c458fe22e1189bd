"""`userspace-cni run`, which does for a command what a runtime does for a container."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from lab.client_lab import GATEWAY, NETWORK
from lab.node import poll

if TYPE_CHECKING:
    from lab.client_lab import ClientLab

pytestmark = pytest.mark.own_process("a lab node has namespaces of its own")

_PROGRAM = str(Path(sys.executable).with_name("userspace-cni"))


def _line(lab: ClientLab, *command: str, networks: tuple[str, ...] = (NETWORK,)) -> list[str]:
    named = [word for network in networks for word in ("--network", network)]
    return [
        _PROGRAM, "run", "--cni-conf-dir", str(lab.conf_dir),
        "--cni-bin-dir", str(lab.plugin.bin_dir), *named, "--", *command,
    ]  # fmt: skip


def _run(
    lab: ClientLab, *command: str, networks: tuple[str, ...] = (NETWORK,)
) -> subprocess.CompletedProcess[str]:
    return lab.node.run(_line(lab, *command, networks=networks), env=lab.plugin.env, check=False)


def test_the_command_is_attached_and_its_status_passed_on(client_lab: ClientLab) -> None:
    client_lab.network(chained=[client_lab.spy.chained()])
    script = f"ip -4 addr show eth0; ip link show lo; ping -c 1 -W 5 {GATEWAY}; exit 7"
    done = _run(client_lab, "sh", "-c", script)
    assert done.returncode == 7, done.stderr
    assert "inet 10.77.0.2/24" in done.stdout
    assert "lo: <LOOPBACK,UP" in done.stdout
    assert "1 packets transmitted, 1 " in done.stdout
    (add,), (delete,) = (client_lab.spy.calls(verb) for verb in ("ADD", "DEL"))
    assert add.env["CNI_CONTAINERID"] == delete.env["CNI_CONTAINERID"]
    assert "prevResult" in add.conf
    assert "prevResult" in delete.conf
    client_lab.assert_clean()


def test_several_networks(client_lab: ClientLab) -> None:
    client_lab.network()
    client_lab.network(name="other", subnet="10.78.0.0/24", default_route=False)
    done = _run(client_lab, "ip", "-4", "-o", "addr", networks=(NETWORK, "other"))
    assert "eth0    inet 10.77.0.2/24" in done.stdout
    assert "eth1    inet 10.78.0.2/24" in done.stdout
    client_lab.assert_clean()


@pytest.mark.parity
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_reaches_the_command_and_then_all_is_detached(
    client_lab: ClientLab, number: signal.Signals
) -> None:
    client_lab.network()
    ready = client_lab.node.dir / "ready"
    script = f"trap 'exit 9' TERM INT; touch {ready}; while :; do sleep 0.1; done"
    # The program itself, not nsenter before it, gets the signal.
    line = client_lab.node.command(_line(client_lab, "sh", "-c", script))
    process = subprocess.Popen(line, env={**os.environ, **client_lab.plugin.env})
    with process:
        try:
            poll(ready.exists, "the command runs")
            assert client_lab.leases == ["10.77.0.2"]
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
            for child in children.split():
                os.kill(int(child), number)
            assert process.wait(20) == 9
        finally:
            process.kill()
    client_lab.assert_clean()


def test_a_command_that_dies_of_a_signal(client_lab: ClientLab) -> None:
    client_lab.network()
    assert _run(client_lab, "sh", "-c", "kill -KILL $$").returncode == 128 + signal.SIGKILL
    client_lab.assert_clean()


def test_a_command_that_cannot_be_had(client_lab: ClientLab) -> None:
    client_lab.network()
    done = _run(client_lab, "no-such-command")
    assert (done.returncode, done.stdout) == (127, "")
    assert "no-such-command: No such file or directory" in done.stderr
    assert _run(client_lab, "/").returncode == 126
    client_lab.assert_clean()


def test_an_add_that_fails_is_undone(client_lab: ClientLab) -> None:
    client_lab.network(chained=[client_lab.spy.chained(fail=["ADD"])])
    done = _run(client_lab, "touch", str(client_lab.node.dir / "ran"))
    assert done.returncode == 1
    assert "the spy says no" in done.stderr
    assert len(client_lab.spy.calls("DEL")) == 1
    assert not (client_lab.node.dir / "ran").exists()
    client_lab.assert_clean()


def test_a_network_that_is_not_there_is_named(client_lab: ClientLab) -> None:
    client_lab.network()
    done = _run(client_lab, "true", networks=("blue",))
    assert done.returncode == 1
    assert (
        f"there is no network 'blue' in {client_lab.conf_dir}: networks there: lab" in done.stderr
    )


def test_a_plugin_that_is_not_there_is_named(client_lab: ClientLab) -> None:
    client_lab.network(chained=[{"type": "frob"}])
    done = _run(client_lab, "true")
    assert done.returncode == 1
    assert "by plugin frob: it is in none of" in done.stderr
    client_lab.assert_clean()
