"""The directory that a container shares with the node, which the container may fill with traps."""

from __future__ import annotations

import json
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from userspace_cni.cni.errors import CheckFailed, CniError
from userspace_cni.engine import attachment_id
from userspace_cni.handover import ContainerDirectory, published


@pytest.fixture
def directory(tmp_path: Path) -> ContainerDirectory:
    made = ContainerDirectory(tmp_path / "base", "c1", tmp_path / "s")
    made.provide()
    return made


_SOCKET = {"socket": "x.sock"}


@pytest.mark.parametrize(
    ("first", "second", "words"),
    [
        ({"interface": "net0"}, {"interface": "net0"}, ("net0", "if0name")),
        ({"memif": _SOCKET}, {"memif": _SOCKET}, ("x.sock", "socketfile")),
        ({"memif": _SOCKET}, {"vhostUser": _SOCKET}, ("x.sock", "socketfile")),
    ],
    ids=["interface", "socket", "socket-of-another-kind"],
)
def test_two_attachments_of_a_container_share_nothing(
    directory: ContainerDirectory, first: Any, second: Any, words: tuple[str, str]
) -> None:
    directory.publish("eth0", _document() | first)
    directory.publish("eth0", _document() | first)  # itself, as a restore does
    with pytest.raises(CniError) as caught:
        directory.publish("eth1", _document("eth1") | second)
    assert caught.value.code == 103
    assert all(word in str(caught.value) for word in ("eth0", *words))
    directory.publish("eth1", _document("eth1") | {"interface": "net1", "memif": {"socket": 7}})


def _document(ifname: str = "eth0", network: str = "n") -> dict[str, Any]:
    return {"id": attachment_id(network, "c1", ifname), "network": network}


@contextmanager
def _listening(path: str, kind: socket.SocketKind) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, kind) as server:
        server.bind(path)
        server.listen()
        yield server


def test_it_lasts_until_the_last_interface_goes(directory: ContainerDirectory) -> None:
    path = Path(directory.path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o750
    for ifname in ("eth0", "eth1"):
        directory.publish(ifname, _document(ifname))
    assert json.loads((path / "eth0.json").read_text()) == _document()
    directory.withdraw("eth0", _document()["id"])
    directory.require("eth1", _document("eth1"))
    directory.withdraw("eth1", _document("eth1")["id"])
    assert not path.exists()
    directory.withdraw("eth1", _document("eth1")["id"])


def test_what_the_container_put_there_stays(directory: ContainerDirectory) -> None:
    (Path(directory.path) / "theirs").write_text("theirs")
    directory.withdraw("eth0", _document()["id"])
    assert os.listdir(directory.path) == ["theirs"]


def test_another_attachments_file_stays(directory: ContainerDirectory) -> None:
    directory.publish("eth0", _document(network="other"))
    with pytest.raises(CniError) as caught:
        directory.publish("eth0", _document())
    assert caught.value.code == 103
    directory.withdraw("eth0", _document()["id"])
    directory.require("eth0", _document(network="other"))


@pytest.mark.parametrize("trap", ["link", "fifo", "directory", "garbage", "absent"])
def test_a_trap_in_place_of_the_file(
    directory: ContainerDirectory, tmp_path: Path, trap: str
) -> None:
    precious = tmp_path / "precious"
    precious.write_text(json.dumps(_document()))
    name = Path(directory.path) / "eth0.json"
    match trap:
        case "link":
            name.symlink_to(precious)
        case "fifo":
            os.mkfifo(name)
        case "directory":
            name.mkdir()
        case "garbage":
            name.write_bytes(b"\xff{")
    with pytest.raises(CheckFailed):
        directory.require("eth0", _document())
    directory.withdraw("eth0", _document()["id"])
    assert precious.exists()


@pytest.mark.parametrize("trap", ["link", "file"])
def test_a_trap_in_place_of_the_directory(tmp_path: Path, trap: str) -> None:
    target = tmp_path / "target"
    target.mkdir()
    (target / "eth0.sock").write_text("precious")
    base = tmp_path / "base"
    base.mkdir()
    if trap == "link":
        (base / "c1").symlink_to(target)
    else:
        (base / "c1").write_text("file")
    directory = ContainerDirectory(base, "c1", tmp_path / "s")
    with pytest.raises(CniError, match="no directory has its name"):
        directory.provide()
    with pytest.raises(CniError, match="no directory has its name"):
        directory.publish("eth0", _document())
    directory.withdraw("eth0", _document()["id"])
    assert not directory.discard_stale("eth0.sock")
    assert os.listdir(target) == ["eth0.sock"]


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_SEQPACKET])
def test_only_a_stale_socket_is_removed(
    directory: ContainerDirectory, kind: socket.SocketKind
) -> None:
    path = f"{directory.path}/eth0.sock"
    with _listening(path, kind) as listener:
        assert not directory.discard_stale("eth0.sock")
        listener.setblocking(False)
        with pytest.raises(BlockingIOError):
            listener.accept()  # it has not noticed the look
    assert directory.discard_stale("eth0.sock")
    assert not directory.discard_stale("eth0.sock")
    Path(path).write_text("no socket")
    assert not directory.discard_stale("eth0.sock")
    directory.withdraw("eth0", _document()["id"])
    assert Path(path).exists()


def test_access_is_given_to_sockets_alone(directory: ContainerDirectory, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("")
    precious.chmod(0o600)
    (Path(directory.path) / "eth0.sock").symlink_to(precious)
    with pytest.raises(CniError):
        directory.grant("eth0.sock", user="4711")
    assert stat.S_IMODE(precious.stat().st_mode) == 0o600
    with pytest.raises(CniError, match="nobody-has-this-name"):
        directory.provide(user="nobody-has-this-name")


def test_a_socket_from_elsewhere_is_linked(directory: ContainerDirectory, tmp_path: Path) -> None:
    source = str(tmp_path / "switch.sock")
    with _listening(source, socket.SOCK_STREAM):
        directory.link(source, "eth0.sock")
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(f"{directory.path}/eth0.sock")
        with pytest.raises(CniError, match="File exists"):
            directory.link(source, "eth0.sock")
    with pytest.raises(CniError, match="different file systems"):
        directory.link("/proc/self/stat", "eth1.sock")


def test_a_long_path_gets_an_alias_that_goes_with_it(tmp_path: Path) -> None:
    base = tmp_path / ("long" * 25)
    directory = ContainerDirectory(base, "c1", tmp_path / "s")
    directory.provide()
    short = directory.socket("eth0.sock")
    assert len(short) <= 107
    with _listening(short, socket.SOCK_STREAM):
        assert (base / "c1/eth0.sock").exists()
    directory.withdraw("eth0", _document()["id"])
    assert list((tmp_path / "s").iterdir()) == []
    with pytest.raises(CniError, match="longer than 107 bytes"):
        ContainerDirectory(base, "c1", tmp_path / "s").socket("x" * 100)


def test_a_file_counts_only_where_it_belongs(directory: ContainerDirectory) -> None:
    base = Path(directory.path).parent
    directory.publish("eth0", _document())
    # What a container could write to point at another.
    directory.publish("eth1", _document() | {"id": attachment_id("n", "c2", "eth1")})
    directory.publish("eth2", _document("eth2", network="other"))
    assert list(published(base, "n")) == [("c1", "eth0")]
    assert list(published(base / "absent", "n")) == []
