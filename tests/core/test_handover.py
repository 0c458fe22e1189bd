"""The directory shared with a container, which may be hostile."""

from __future__ import annotations

import errno
import json
import os
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from lab.plugin import remove_views
from userspace_cni.api import attachment_id
from userspace_cni.cni.errors import CheckFailed, CniError
from userspace_cni.handover import ContainerDirectory, published


@pytest.fixture
def directory(tmp_path: Path) -> ContainerDirectory:
    made = ContainerDirectory(tmp_path / "base", "c1", None)
    made.provide()
    return made


@pytest.fixture
def short() -> Iterator[Path]:
    """A directory with a short path for sockets; mounts below it are removed."""
    with tempfile.TemporaryDirectory(prefix="ucni-") as path:
        try:
            yield Path(path)
        finally:
            remove_views(Path(path))


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


def test_a_socket_from_elsewhere_is_moved(directory: ContainerDirectory, tmp_path: Path) -> None:
    source = tmp_path / "switch.sock"
    with _listening(str(source), socket.SOCK_STREAM):
        os.link(source, f"{directory.path}/eth0.sock")  # somebody has not got any further
        directory.take(str(source), "eth0.sock")
        assert not source.exists()
        assert directory.is_served("eth0.sock")
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(f"{directory.path}/eth0.sock")
    assert not directory.is_served("eth0.sock")
    with _listening(str(source), socket.SOCK_STREAM):
        with pytest.raises(CniError, match="File exists"):
            directory.take(str(source), "eth0.sock")
        assert source.exists()
    with pytest.raises(CniError, match="different file systems"):
        directory.take("/proc/self/stat", "eth1.sock")


def test_a_switch_has_a_short_path_that_goes_with_the_directory(short: Path) -> None:
    base = short / ("long" * 25)
    directory = ContainerDirectory(base, "c1", short / "s")
    directory.provide()
    path = directory.socket("eth0.sock")
    with _listening(path, socket.SOCK_STREAM):
        assert (base / "c1/eth0.sock").exists()
    directory.require_view()
    directory.provide()
    directory.withdraw("eth0", _document()["id"])
    assert list((short / "s").iterdir()) == []
    with pytest.raises(CheckFailed, match="is not mounted at"):
        directory.require_view()


@pytest.mark.parametrize("trusted", [False, True])
def test_a_switch_follows_no_link_of_the_container(short: Path, *, trusted: bool) -> None:
    views = None if trusted else short / "s"
    victim = ContainerDirectory(short / "base", "victim", views)
    attacker = ContainerDirectory(short / "base", "attacker", views)
    for directory in (victim, attacker):
        directory.provide()
    Path(attacker.path, "net1.sock").symlink_to("../victim/net1.sock")
    Path(attacker.path, "below").symlink_to("../victim")
    with (
        _listening(f"{victim.path}/net1.sock", socket.SOCK_STREAM),
        socket.socket(socket.AF_UNIX) as switch,
    ):
        assert switch.connect_ex(victim.socket("net1.sock")) == 0
    outcomes = []
    with _listening(f"{victim.path}/net2.sock", socket.SOCK_STREAM):
        for name in ("net1.sock", "below/net2.sock"):
            with socket.socket(socket.AF_UNIX) as switch:
                outcomes.append(switch.connect_ex(attacker.socket(name)))
    assert outcomes == ([errno.ECONNREFUSED, 0] if trusted else [errno.ELOOP, errno.ELOOP])
    for directory in (victim, attacker):
        directory.discard()
    assert list(short.glob("*/*")) == []


def test_a_view_goes_where_links_are_followed_meanwhile(short: Path) -> None:
    ContainerDirectory(short / "base", "c1", short / "s").provide()
    (view,) = (short / "s").iterdir()
    later = ContainerDirectory(short / "base", "c1", short / "s", follow_links=True)
    assert later.socket("eth0.sock") == f"{later.path}/eth0.sock"
    later.withdraw("eth0", _document()["id"])
    assert not view.exists()
    assert not later.is_left()


def test_a_directory_of_the_same_name_gets_a_view_of_its_own(short: Path) -> None:
    directory = ContainerDirectory(short / "base", "c1", short / "s")
    directory.provide()
    shutil.rmtree(directory.path)
    with pytest.raises(CheckFailed):
        directory.require_view()
    directory.provide()
    with _listening(directory.socket("eth0.sock"), socket.SOCK_STREAM):
        assert Path(directory.path, "eth0.sock").exists()
    # An earlier version left this.
    directory.discard()
    Path(directory.socket("")).symlink_to(directory.path)
    directory.provide()
    directory.require_view()
    directory.discard()


def test_a_mount_that_cannot_be_made_is_explained(short: Path) -> None:
    directory = ContainerDirectory(short / "base", "c1", short / "s")
    (short / "s").write_text("no directory")
    with pytest.raises(CniError, match="follow_links = true"):
        directory.provide()


def test_what_has_no_address_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CniError, match="takes 107") as caught:
        ContainerDirectory(tmp_path, "c1", tmp_path / "s").socket("x" * 100)
    assert caught.value.code == 7
    inside = ContainerDirectory(tmp_path, "c1", Path("/s"), container_dir=f"/{'x' * 100}")
    with pytest.raises(CniError, match="containerDir") as caught:
        inside.socket("eth0.sock")
    assert caught.value.code == 7


def test_all_that_the_container_left_goes_with_it(short: Path) -> None:
    directory = ContainerDirectory(short / "base", "c1", short / "s")
    directory.provide()
    precious = short / "precious"
    precious.mkdir()
    (precious / "file").write_text("")
    path = Path(directory.path)
    (path / "link").symlink_to(precious)
    (path / "file").write_text("theirs")
    (path / ".hidden").mkdir(mode=0)
    os.mkfifo(path / "fifo")
    os.mknod(path / "device", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    # Deeper than the limits of paths and of the stack.
    below = os.open(path, os.O_DIRECTORY)
    for _ in range(2000):
        os.mkdir("directory-with-a-long-name", dir_fd=below)
        deeper = os.open("directory-with-a-long-name", os.O_DIRECTORY, dir_fd=below)
        os.close(below)
        below = deeper
    os.close(below)
    directory.discard()
    assert not path.exists()
    assert list((short / "s").iterdir()) == []
    assert (precious / "file").exists()


#: Reads the hand-over file of eth0 in a directory, and prints what was opened for that.
_LOOK = """
import os, sys
from pathlib import Path
from userspace_cni.handover import ContainerDirectory
opened = []
def note(event, arguments):
    if event == "open" and not arguments[2] & (os.O_PATH | os.O_DIRECTORY):
        opened.append(str(arguments[0]))
directory = ContainerDirectory(Path(sys.argv[1]), "c1", None)
directory.holds("eth0", "warm")
sys.addaudithook(note)
directory.holds("eth1", "id")
directory.withdraw("eth1", "id")
print(opened)
"""


@pytest.mark.parametrize("kind", [stat.S_IFCHR, stat.S_IFIFO, stat.S_IFREG])
def test_a_device_of_the_container_is_not_opened(directory: ContainerDirectory, kind: int) -> None:
    """Opening a terminal would make it the controlling terminal; opening a FIFO wakes a writer."""
    os.mknod(f"{directory.path}/eth1.json", kind | 0o666, os.makedev(1, 3))
    command = [sys.executable, "-c", _LOOK, str(Path(directory.path).parent)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert (done.stdout == "[]\n") == (kind != stat.S_IFREG), done.stdout


def test_many_files_of_a_container_take_no_time(directory: ContainerDirectory) -> None:
    """20,000 files of a megabyte once made every GC of the node take a minute."""
    first = f"{directory.path}/0.json"
    Path(first).write_text(json.dumps({"network": "n", "more": [0] * (1 << 18)}))
    for number in range(1, 20_000):
        os.link(first, f"{directory.path}/{number:x}.json")
    begin = time.monotonic()
    assert list(published(Path(directory.path).parent, "n", ())) == []
    assert time.monotonic() - begin < 10  # sixty and more before
    directory.discard()
    assert not Path(directory.path).exists()


def test_a_file_counts_only_where_it_belongs(directory: ContainerDirectory) -> None:
    base = Path(directory.path).parent
    directory.publish("eth0", _document())
    # A container could write this to refer to another container.
    directory.publish("eth1", _document() | {"id": attachment_id("n", "c2", "eth1")})
    directory.publish("eth2", _document("eth2", network="other"))
    assert list(published(base, "n", ())) == [("c1", "eth0")]
    assert list(published(base, "n", {_document()["id"]})) == []
    assert list(published(base / "absent", "n", ())) == []
