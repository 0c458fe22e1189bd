"""Work inside a network namespace."""

from __future__ import annotations

import os
import subprocess
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from userspace_cni import netns as namespaces
from userspace_cni.cni.errors import CniError, Code

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

OWN = "/proc/thread-self/ns/net"


def _current() -> int:
    return os.stat(OWN).st_ino


def test_a_call_runs_inside_and_its_caller_stays_outside(netns: str) -> None:
    before, threads = _current(), threading.active_count()
    inside = namespaces.call(netns, _current)
    assert inside == os.stat(netns).st_ino != before
    assert namespaces.call(netns, dict, [("a", 1)], b=2) == {"a": 1, "b": 2}
    assert (_current(), threading.active_count()) == (before, threads)


def test_what_the_function_raises_is_raised_outside_and_no_thread_is_left(netns: str) -> None:
    before, threads = _current(), threading.active_count()

    def fail() -> None:
        raise ZeroDivisionError(_current())

    with pytest.raises(ZeroDivisionError) as caught:
        namespaces.call(netns, fail)
    assert caught.value.args == (os.stat(netns).st_ino,)
    assert (_current(), threading.active_count()) == (before, threads)


def test_calls_can_be_nested_and_concurrent(netns: str) -> None:
    with open(OWN) as own:
        there = f"/proc/self/fd/{own.fileno()}"
        assert namespaces.call(netns, namespaces.call, there, _current) == _current()


def test_the_caller_is_back_whatever_happens(netns: str) -> None:
    before = _current()
    with pytest.raises(ZeroDivisionError):
        namespaces.call(netns, divmod, 1, 0)
    assert _current() == before


def test_our_own_namespace_is_refused_by_any_name(netns: str) -> None:
    namespaces.require_foreign(netns)
    for path in (OWN, f"/proc/{os.getpid()}/ns/net"):
        with pytest.raises(CniError) as caught:
            namespaces.require_foreign(path)
        assert caught.value.code == Code.INVALID_NETNS
        assert path in caught.value.msg


@pytest.mark.parametrize("kind", ["file", "directory", "fifo", "uts", "missing", "dangling"])
def test_what_is_no_network_namespace_is_code_4(tmp_path: Path, kind: str) -> None:
    path = tmp_path / kind
    match kind:
        case "file":
            path.touch()
        case "directory":
            path.mkdir()
        case "fifo":
            os.mkfifo(path)
        case "uts":
            path.symlink_to("/proc/self/ns/uts")
        case "dangling":
            path.symlink_to("nothing")
    with pytest.raises(CniError) as refused:
        namespaces.require_foreign(str(path))
    with pytest.raises(CniError) as failed:
        namespaces.call(str(path), _current)
    for caught in (refused, failed):
        assert caught.value.code == Code.INVALID_ENVIRONMENT
        assert str(path) in caught.value.msg
    assert not namespaces.exists(str(path))


def test_an_empty_path_is_no_network_namespace_and_not_gone() -> None:
    with pytest.raises(CniError) as caught:
        namespaces.identity("")
    assert caught.value.code == Code.INVALID_ENVIRONMENT
    assert not namespaces.exists("")
    assert not namespaces.is_gone("", "")


def test_existing_namespaces_exist(netns: str) -> None:
    assert namespaces.exists(netns)
    assert namespaces.exists(OWN)


def test_no_descriptor_is_left_open(netns: str) -> None:
    before = len(os.listdir("/proc/self/fd"))
    namespaces.call(netns, _current)
    namespaces.require_foreign(netns)
    namespaces.exists(netns)
    assert len(os.listdir("/proc/self/fd")) == before


@contextmanager
def _named(name: str) -> Iterator[str]:
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        yield f"/run/netns/{name}"
    finally:
        subprocess.run(["ip", "netns", "delete", name], check=True)


def test_a_namespace_with_the_same_path_device_and_inode_is_another() -> None:
    name = f"ucni-{os.getpid()}"
    with _named(name) as path:
        before, inode = namespaces.identity(path), os.stat(path).st_ino
        assert namespaces.identity(path) == before
    for _ in range(200):
        with _named(name) as path:
            if os.stat(path).st_ino != inode:
                continue  # the kernel has given the number to somebody else first
            assert namespaces.identity(path) != before
            assert namespaces.is_gone(path, before)
            with namespaces.pinned(path, before) as there:
                assert not there
            return
    pytest.fail("no inode was used again")


def test_an_identity_of_old_is_compared_as_of_old(netns: str) -> None:
    found = os.stat(netns)
    assert not namespaces.is_gone(netns, f"{found.st_dev}:{found.st_ino}")
    assert namespaces.is_gone(netns, f"{found.st_dev}:{found.st_ino + 1}")


def test_an_identity_of_another_boot_is_another(netns: str) -> None:
    cookie, _, _ = namespaces.identity(netns).partition("@")
    assert namespaces.is_gone(netns, f"{cookie}@00000000-0000-0000-0000-000000000000")


def test_what_is_pinned_is_worked_in_wherever_its_path_leads(netns: str, tmp_path: Path) -> None:
    path = tmp_path / "netns"
    path.symlink_to(netns)
    identity, inode = namespaces.identity(str(path)), os.stat(path).st_ino
    before = len(os.listdir("/proc/self/fd"))
    with namespaces.pinned(str(path), identity) as there:
        assert there
        path.unlink()
        path.symlink_to(OWN)
        assert namespaces.call(str(path), _current) == inode
        assert not namespaces.is_gone(str(path), identity)
        assert namespaces.is_gone(str(path), identity, afresh=True)
    assert namespaces.is_gone(str(path), identity)
    assert len(os.listdir("/proc/self/fd")) == before


def test_what_is_out_of_sight_is_not_gone(netns: str, tmp_path: Path) -> None:
    identity = namespaces.identity(netns)
    assert not namespaces.is_gone(netns, identity)
    assert namespaces.is_gone(netns, "0:0")
    assert namespaces.is_gone(f"/proc/{2**22 + 1}/ns/net", identity)
    assert namespaces.is_gone(str(tmp_path / "c1"), identity)
    # A daemon in a container that /run/netns is not mounted into.
    assert not namespaces.is_gone(str(tmp_path / "netns" / "c1"), identity)
    (tmp_path / "c1").touch()
    assert not namespaces.is_gone(str(tmp_path / "c1"), identity)
