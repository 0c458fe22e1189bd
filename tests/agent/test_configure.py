"""The agent with a VPP: simulated, and real if the machine has one."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.conftest import Container, document
from lab import vpp_lab
from lab.agent_lab import Inside
from lab.node import poll
from lab.vpp_lab import KINDS, TRAFFIC_KINDS, VppLab, conf
from userspace_cni.agent import command
from userspace_cni.agent.sources import DIRECTORY_VARIABLE
from userspace_cni_vpp.sections import BridgeSection, MemifSection

SECRET = conf(
    "memif", "bridge", bridge=BridgeSection(bridge_id=4), memif=MemifSection(secret="s3cret")
)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "inside" in metafunc.fixturenames:
        metafunc.parametrize("lab", KINDS, indirect=True)


@pytest.fixture
def lab(request: pytest.FixtureRequest) -> Iterator[VppLab]:
    """A host with a private VPP."""
    yield from vpp_lab.make(request.param)


@pytest.fixture
def inside(lab: VppLab) -> Inside:
    return Inside(lab)


def _until(inside: Inside, count: int) -> None:
    poll(lambda: len(inside.interfaces) == count, f"{count} interfaces\n{inside.log}")


def test_once_and_again(inside: Inside) -> None:
    inside.attach("net1", "10.9.0.2/24", SECRET)
    inside.attach("net10", "10.8.0.3/24")
    for _ in range(2):
        assert inside.agent("--once") == 0, inside.log.read_text()
        assert len(inside.interfaces) == 2
        assert inside.ready.exists()
    log = inside.log.read_text()
    # The second run had nothing to do.
    assert log.count("net1: configured, memif client") == 1
    assert "s3cret" not in log


def test_one_interface_alone(inside: Inside) -> None:
    inside.attach("net1", "10.9.0.2/24")
    inside.attach("net10", "10.8.0.3/24")
    assert inside.agent("--interface", "net1") == 0
    (tag,) = inside.interfaces
    assert "net1" in tag
    assert "net10" not in tag
    assert inside.agent("--interface", "net2") == 3
    assert not inside.ready.exists()


def test_what_comes_and_goes_is_followed(inside: Inside) -> None:
    first = inside.attach("net1", "10.9.0.2/24")
    with inside.watching():
        poll(inside.ready.exists, "ready")
        assert len(inside.interfaces) == 1
        inside.attach("net2", "10.8.0.3/24")
        _until(inside, 2)
        first.delete()
        _until(inside, 1)
        assert "net2" in inside.interfaces[0]
        # An unreadable hand-over must not remove anything.
        directory = Path(inside.environ[DIRECTORY_VARIABLE])
        (directory / "net3.json").write_text("{")
        poll(lambda: not inside.ready.exists(), "not ready")
        assert len(inside.interfaces) == 1
        (directory / "net3.json").unlink()
        poll(inside.ready.exists, "ready again")
    # The interfaces stay when the agent ends, because applications use them.
    assert len(inside.interfaces) == 1


def test_a_restarted_vpp_gets_its_interfaces_back(inside: Inside) -> None:
    inside.attach("net1", "10.9.0.2/24")
    with inside.watching():
        poll(inside.ready.exists, "ready")
        inside.vpp.kill()
        poll(lambda: not inside.ready.exists(), "not ready")
        inside.netns.call(inside.vpp.start)
        poll(inside.ready.exists, "ready again")
        _until(inside, 1)
    log = inside.log.read_text()
    assert (log.count("net1: configured"), log.count("net1: restored")) == (1, 1)
    assert log.count("ERROR") < 4


def test_a_restarted_agent_finds_everything_in_place(inside: Inside) -> None:
    inside.attach("net1", "10.9.0.2/24")
    assert inside.agent() == 0
    inside.ready.unlink()
    with inside.watching():
        poll(inside.ready.exists, "ready")
    assert inside.log.read_text().count("net1: configured") == 1


def test_waiting_for_interfaces_that_come_late(inside: Inside) -> None:
    inside.attach("net1", "10.9.0.2/24")
    process = subprocess.Popen(
        inside.command("--wait", "--interface", "net1", "--interface", "net2"),
        env=inside.environ,
        stderr=subprocess.PIPE,
    )
    with process:
        _until(inside, 1)
        assert process.poll() is None
        assert not inside.ready.exists()
        inside.attach("net2", "10.8.0.3/24")
        assert process.wait(20) == 0
    assert len(inside.interfaces) == 2
    assert inside.ready.exists()


@pytest.mark.parametrize("lab", TRAFFIC_KINDS, indirect=True)
def test_packets_pass_between_vpps_that_agents_configured(lab: VppLab) -> None:
    one, two = Inside(lab), Inside(lab)
    one.attach("net1", "10.9.0.2/24", SECRET)
    two.attach("net1", "10.9.0.3/24", SECRET)
    for inside in (one, two):
        assert inside.agent("--wait", "--interface", "net1") == 0
    assert one.vpp.ping("10.9.0.3")
    with two.watching():
        two.vpp.kill()
        two.netns.call(two.vpp.start)
        _until(two, 1)
        poll(lambda: one.vpp.ping("10.9.0.3"), "an answer of the restarted VPP")


def test_waiting_in_vain(container: Container, capsys: pytest.CaptureFixture[str]) -> None:
    container.hand_over(document("net1"))
    wait = ("--wait", "--timeout", "0.2", "--interface", "net1", "--interface", "net10")
    began = time.monotonic()
    assert command.main([*container.arguments, *wait]) == 3
    assert time.monotonic() - began < 5
    said = capsys.readouterr().err
    assert "not ready after 0.2 s" in said
    assert "net10 was not handed over" in said
    assert command.main([*container.arguments, "--wait", "--timeout", "0.2", "eal-args", "x"]) == 3


def test_applications_configure_themselves(
    container: Container, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    container.hand_over(document("net1"))
    ready = tmp_path / "ready"
    assert command.main([*container.arguments, "--ready-file", str(ready)]) == 0
    assert ready.exists()
    assert "the application configures itself" in capsys.readouterr().err


def test_an_engine_that_is_not_installed_is_named(
    container: Container, capsys: pytest.CaptureFixture[str]
) -> None:
    container.hand_over(document("net1", engine="frob"))
    assert command.main(container.arguments) == 1
    assert "container engine 'frob' is not installed" in capsys.readouterr().err


def test_who_says_no_engine_gets_the_default(
    container: Container, capsys: pytest.CaptureFixture[str]
) -> None:
    content = document("net1")
    del content["engine"]
    (container.directory / "net1.json").write_text(json.dumps(content))
    assert command.main([*container.arguments, "--engine", "frob"]) == 1
    assert "'frob' is not installed" in capsys.readouterr().err


def test_an_interface_of_the_kernel_was_finished_on_the_node(container: Container) -> None:
    container.hand_over(document("net1", engine="linux"))
    assert command.main(container.arguments) == 0
