"""The agent's output for programs: EAL arguments, variables, JSON."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve
from jsonschema import Draft202012Validator

from agent.conftest import CUSTOM, MEMIF, VHOST, Container, document
from userspace_cni.agent import command, eal, environment
from userspace_cni.cni.errors import CniError
from userspace_cni.handover import load

SCHEMA = Path(__file__).parents[2] / "docs/handoff.schema.json"


def _eal(*contents: dict[str, Any]) -> list[str]:
    return eal.arguments(load(content, "/run/x") for content in contents)


def test_memif_arguments() -> None:
    port = evolve(MEMIF, secret="s3cret", ring_size=512)
    assert _eal(document(port=port), document("net2", evolve(MEMIF, role="server"))) == [
        (
            "--vdev=net_memif0,role=client,id=7,socket=/run/x/net1.sock,socket-abstract=no,"
            "mac=02:00:00:00:00:01,rsize=9,bsize=2048,secret=s3cret"
        ),
        (
            "--vdev=net_memif1,role=server,id=7,socket=/run/x/net2.sock,socket-abstract=no,"
            "mac=02:00:00:00:00:01,rsize=10,bsize=2048"
        ),
    ]


def test_memif_arguments_of_zero_copy() -> None:
    (vdev, more) = _eal(document(port=evolve(MEMIF, zero_copy=True)))
    assert ",zero-copy=yes" in vdev
    assert more == "--single-file-segments"
    # Only the client supports zero copy.
    assert len(_eal(document(port=evolve(MEMIF, zero_copy=True, role="server")))) == 1


def test_memif_arguments_of_an_abstract_socket() -> None:
    content = document()
    content["memif"]["socket"] = "@userspace-cni-1"
    (vdev,) = _eal(content)
    assert ",socket=userspace-cni-1,socket-abstract=yes," in vdev


def test_virtio_user_arguments_of_both_modes() -> None:
    other = document("net2", evolve(VHOST, mode="client", queues=1))
    assert _eal(document(port=VHOST), other) == [
        "--vdev=net_virtio_user0,mac=02:00:00:00:00:01,path=/run/x/net1.sock,queues=2,server=1",
        "--vdev=net_virtio_user1,mac=02:00:00:00:00:01,path=/run/x/net2.sock,queues=1",
        "--single-file-segments",
    ]


@pytest.mark.parametrize(("size", "fits"), [(60, True), (107, True), (108, False), (200, False)])
def test_a_path_that_no_socket_can_have_is_refused(size: int, fits: bool) -> None:
    directory = "/" + "d" * (size - len("//net1.sock"))
    found = load(document(), directory)
    assert len(found.handoff.socket) == size
    if fits:
        assert f"socket={found.handoff.socket}," in eal.arguments([found])[0]
    else:
        with pytest.raises(CniError, match="mount the directory at a shorter path"):
            eal.arguments([found])


@pytest.mark.parametrize("name", ["a,role=server", "a b", "$(id)", "a'b"])
def test_nothing_is_smuggled_into_an_argument(name: str) -> None:
    content = document()
    content["memif"]["socket"] = name
    with pytest.raises(CniError, match="socket"):
        _eal(content)
    content = document(port=evolve(MEMIF, secret=name))
    with pytest.raises(CniError) as caught:
        _eal(content)
    assert name not in str(caught.value)


@pytest.mark.parametrize("mode", ["ip", "inject-punt"])
def test_dpdk_has_no_other_mode(mode: Any) -> None:
    with pytest.raises(CniError, match=mode):
        _eal(document(port=evolve(MEMIF, mode=mode)))


def test_variables_survive_a_shell() -> None:
    content = document(port=evolve(MEMIF, secret="s3 c$ret'"))
    values = environment.variables([load(content, "/run/x y"), load(document("net10"), "/d")])
    assert values["USERSPACE_CNI_INTERFACES"] == "net1 net10"
    assert values["USERSPACE_CNI_NET1_RX_QUEUES"] == "2"
    assert values["USERSPACE_CNI_NET10_SOCKET"] == "/d/net10.sock"
    assert "USERSPACE_CNI_NET10_SECRET" not in values
    prefix = "USERSPACE_CNI_NET1"
    script = f'set -eu; eval "$1"; printf "%s|%s" "${prefix}_SOCKET" "${prefix}_SECRET"'
    done = subprocess.run(
        ["sh", "-c", script, "sh", environment.shell(values)],
        check=True,
        capture_output=True,
        text=True,
    )
    assert done.stdout == "/run/x y/net1.sock|s3 c$ret'"


def test_variables_never_mean_two_interfaces() -> None:
    with pytest.raises(CniError, match=r"net\.1 and net-1"):
        environment.variables(load(document(name), "/d") for name in ("net-1", "net.1"))


def _main(container: Container, *arguments: str) -> int:
    return command.main([*container.arguments, *arguments])


def test_json_is_the_document_with_paths(
    container: Container, capsys: pytest.CaptureFixture[str]
) -> None:
    content = document(port=evolve(MEMIF, secret="s3cret"))
    container.hand_over(content)
    assert _main(container, "show", "--json") == 0
    (shown,) = json.loads(capsys.readouterr().out)
    content["memif"]["socket"] = f"{container.directory}/net1.sock"
    assert shown == content
    assert _main(container, "show") == 0
    said = capsys.readouterr()
    assert f"net1  fast  memif client {container.directory}/net1.sock" in said.out
    assert "s3cret" not in said.out + said.err


@pytest.mark.parametrize("what", ["eal-args", "env"])
@pytest.mark.parametrize("port", [VHOST, evolve(MEMIF, role="server")], ids=["vhost-user", "memif"])
def test_the_socket_of_an_application_that_was_killed_is_removed(
    container: Container, port: Any, what: str
) -> None:
    path = container.directory / "net1.sock"
    kind = socket.SOCK_STREAM if port is VHOST else socket.SOCK_SEQPACKET
    container.hand_over(document(port=port))
    with socket.socket(socket.AF_UNIX, kind) as application:
        application.bind(str(path))
        application.listen()
        assert _main(container, what) == 0
        assert path.is_socket()
    assert _main(container, "show") == 0
    assert path.is_socket()
    assert _main(container, what, "net1") == 0
    assert not path.exists()


@pytest.mark.parametrize("port", [evolve(VHOST, mode="client"), MEMIF], ids=["vhost-user", "memif"])
def test_the_socket_of_a_switch_stays(container: Container, port: Any) -> None:
    path = container.directory / "net1.sock"
    container.hand_over(document(port=port))
    with socket.socket(socket.AF_UNIX) as switch:
        switch.bind(str(path))
    assert _main(container, "eal-args") == 0
    assert path.is_socket()


def test_nothing_but_a_socket_is_removed(container: Container, tmp_path: Path) -> None:
    path, elsewhere = container.directory / "net1.sock", tmp_path / "elsewhere"
    container.hand_over(document(port=VHOST))
    path.write_text("precious")
    assert _main(container, "eal-args") == 0
    assert path.read_text() == "precious"
    path.unlink()
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(elsewhere))
    path.symlink_to(elsewhere)
    assert _main(container, "eal-args") == 0
    assert path.is_symlink()
    assert elsewhere.is_socket()


def test_named_interfaces_alone(container: Container, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("net1", "net2", "net10"):
        container.hand_over(document(name))
    assert _main(container, "eal-args", "net10", "net1") == 0
    lines = capsys.readouterr().out.splitlines()
    assert ["net10.sock" in lines[0], "net1.sock" in lines[1], len(lines)] == [True, True, 2]
    assert _main(container, "env", "net1") == 0
    assert "NET10" not in capsys.readouterr().out


@pytest.mark.parametrize("what", ["eal-args", "env", "show"])
def test_status_tells_missing_from_unusable(
    container: Container, capsys: pytest.CaptureFixture[str], what: str
) -> None:
    assert _main(container, what) == 3
    assert "no interface was handed over" in capsys.readouterr().err
    container.hand_over(document("net1"))
    assert _main(container, what, "net10") == 3
    assert "net10 was not handed over to this container (handed over: net1)" in (
        capsys.readouterr().err
    )
    (container.directory / "net2.json").write_text("{")
    assert _main(container, what) == 1
    assert "net2.json: is not JSON" in capsys.readouterr().err
    assert _main(container, what, "net1") == 0
    with pytest.raises(SystemExit, match="2"):
        _main(container, "--timeout", "-1")


def test_the_program_is_installed(container: Container) -> None:
    container.hand_over(document())
    program = Path(sys.executable).with_name("userspace-cni-agent")
    done = subprocess.run(
        [program, *container.arguments, "eal-args"], check=True, capture_output=True, text=True
    )
    assert done.stdout.startswith("--vdev=net_memif0,role=client,")


def test_a_container_needs_nothing_of_the_node() -> None:
    script = """
import sys
from userspace_cni.agent import command
command.main(["--directory", "/nowhere", "--annotations", "/nowhere/a", "show"])
print(*sys.modules)
"""
    # The measurement of coverage imports sqlite3 itself.
    environ = {name: value for name, value in os.environ.items() if "COVERAGE" not in name}
    done = subprocess.run(
        [sys.executable, "-I", "-c", script],
        check=True,
        capture_output=True,
        text=True,
        env=environ,
    )
    unwanted = {
        *("userspace_cni.runtime", "userspace_cni.store", "userspace_cni.ipam"),
        *("userspace_cni.netns", "sqlite3", "asyncio", "pyroute2", "stevedore.driver"),
    }
    assert {*done.stdout.split()} & unwanted == set()


# -- the published schema


def test_the_schema_is_one_and_describes_documents() -> None:
    schema = json.loads(SCHEMA.read_text())
    Draft202012Validator.check_schema(schema)
    validator = Draft202012Validator(schema)
    full = document(
        port=evolve(MEMIF, secret="x"), bridge="b", pod={"namespace": "a", "name": "b", "uid": ""}
    )
    vhost, custom = document(port=VHOST), document(port=CUSTOM)
    for content in (full, vhost, custom):
        validator.validate(content)
    told = {*document(), *vhost, *custom, *full, "ips", "routes", "dns"}
    assert told == schema["properties"].keys()
    for kind, content in (("memif", full), ("vhostUser", vhost), ("port", custom)):
        assert content[kind].keys() == schema["properties"][kind]["properties"].keys()


@pytest.mark.parametrize(
    "change", [{"version": 2}, {"memif": {"role": "king"}}, {"id": "x"}, {"interface": ""}]
)
def test_the_schema_refuses(change: dict[str, Any]) -> None:
    validator = Draft202012Validator(json.loads(SCHEMA.read_text()))
    assert not validator.is_valid(document() | change)
