"""Work inside a network namespace."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING

import pytest

from userspace_cni import netns as namespaces
from userspace_cni.cni.errors import CniError, Code

if TYPE_CHECKING:
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


def test_existing_namespaces_exist(netns: str) -> None:
    assert namespaces.exists(netns)
    assert namespaces.exists(OWN)


def test_no_descriptor_is_left_open(netns: str) -> None:
    before = len(os.listdir("/proc/self/fd"))
    namespaces.call(netns, _current)
    namespaces.require_foreign(netns)
    namespaces.exists(netns)
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
