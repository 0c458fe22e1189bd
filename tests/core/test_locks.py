"""Locks between processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from userspace_cni.cni.errors import CniError, Code
from userspace_cni.locks import Locks

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_HOLD = """
import signal, sys
from pathlib import Path
from userspace_cni.locks import Locks
with Locks(Path(sys.argv[1]), 1).hold("a"):
    print("held", flush=True)
    signal.pause()
"""


def test_a_lock_excludes_and_is_free_afterwards(tmp_path: Path) -> None:
    directory = tmp_path / "not" / "there" / "yet"
    locks, other = Locks(directory, 0.05), Locks(directory, 0.05)
    with locks.hold("a"), locks.hold("b"):
        with pytest.raises(CniError) as caught, other.hold("a"):
            pass
        with other.hold_if_free("a") as held:
            assert not held
    assert caught.value.code == Code.TRY_AGAIN_LATER
    assert "'a'" in caught.value.msg
    with locks.hold_if_free("a") as held:
        assert held
    assert list(directory.iterdir()) == []
    assert directory.stat().st_mode & 0o027 == 0


def test_a_thread_may_take_its_lock_again(tmp_path: Path) -> None:
    locks = Locks(tmp_path, 0.05)

    def is_free() -> bool:
        with locks.hold_if_free("a") as held:
            return held

    with ThreadPoolExecutor(1) as pool:
        with locks.hold("a") as outer:
            with locks.hold("a") as inner, locks.hold_if_free("a") as held:
                assert (inner, held) == (outer, True)
            assert not pool.submit(is_free).result(), "the inner one has freed it"
            assert locks.held("a") == outer
        assert pool.submit(is_free).result()
    assert (locks._turns, list(tmp_path.iterdir())) == ({}, [])


def test_a_lock_is_freed_by_an_exception(tmp_path: Path) -> None:
    locks = Locks(tmp_path, 0.05)
    with pytest.raises(ZeroDivisionError), locks.hold("a"):
        raise ZeroDivisionError
    with locks.hold("a"):
        pass


def test_a_lock_is_freed_by_the_death_of_its_holder(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", _HOLD, tmp_path], stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(CniError), Locks(tmp_path, 0.05).hold("a"):
            pass
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    with Locks(tmp_path, 5).hold("a"):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["", "../../etc/passwd", "ü" * 400, "a b\nc"])
def test_any_text_is_a_name(tmp_path: Path, name: str) -> None:
    with Locks(tmp_path, 1).hold(name):
        (file,) = tmp_path.iterdir()
        assert file.is_file()


def test_a_counter_under_a_lock_loses_nothing(tmp_path: Path) -> None:
    """Many threads, each with its own Locks object, behave like processes."""
    counter = tmp_path / "counter"
    counter.write_text("0")

    def count(_: int) -> None:
        for _ in range(10):
            with Locks(tmp_path / "locks", 30).hold("counter"):
                counter.write_text(str(int(counter.read_text()) + 1))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(count, range(8)))
    assert counter.read_text() == "80"


def test_a_symbolic_link_in_the_place_of_a_lock_is_not_followed(tmp_path: Path) -> None:
    locks = Locks(tmp_path / "locks", 0.05)
    with locks.hold("a"):
        (file,) = (tmp_path / "locks").iterdir()
    victim = tmp_path / "victim"
    os.symlink(victim, file)
    with pytest.raises(CniError) as caught, locks.hold("a"):
        pass
    assert caught.value.code == Code.IO_FAILURE
    assert not victim.exists()


@contextmanager
def _mounted(path: Path) -> Iterator[None]:
    """Make *path* a mount point: nobody can remove it then."""
    subprocess.run(["mount", "--bind", path, path], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", path], check=True)


def test_a_file_that_cannot_be_removed_fails_nobody(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    locks = Locks(tmp_path, 0.05)
    with locks.hold("a"):
        (file,) = tmp_path.iterdir()
    file.touch()
    with _mounted(file):
        with locks.hold("a"):
            pass
        assert str(file) in caplog.text
        with locks.hold_if_free("a") as held:
            assert held
    assert list(tmp_path.iterdir()) == [file]
    locks.sweep()
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_cannot_be_locked_is_code_5_with_its_path(tmp_path: Path) -> None:
    locks = Locks(tmp_path / "locks", 0.05)
    (tmp_path / "locks").mkdir()
    with locks.hold("a"):
        (file,) = (tmp_path / "locks").iterdir()
    file.mkdir()
    before = len(os.listdir("/proc/self/fd"))
    for use in (locks.hold, locks.hold_if_free):
        with pytest.raises(CniError) as caught, use("a"):
            pass
        assert caught.value.code == Code.IO_FAILURE
        assert str(file) in caught.value.msg
        assert "run_dir" in caught.value.details
    locks.sweep()
    assert len(os.listdir("/proc/self/fd")) == before


def test_what_the_dead_left_is_swept_and_what_the_living_hold_is_not(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", _HOLD, tmp_path], stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        locks = Locks(tmp_path, 1)
        locks.sweep()
        (file,) = tmp_path.iterdir()
        with locks.hold("mine"):
            locks.sweep()
            assert len(list(tmp_path.iterdir())) == 2
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    assert list(tmp_path.iterdir()) == [file]
    locks.sweep()
    assert list(tmp_path.iterdir()) == []
    Locks(tmp_path / "not there", 1).sweep()


def test_threads_take_turns_and_nothing_is_remembered(tmp_path: Path) -> None:
    locks = Locks(tmp_path, 30)
    inside: list[int] = []

    def work(number: int) -> None:
        with locks.hold(f"name {number % 3}"):
            inside.append(number % 3)
            assert inside.count(number % 3) == 1
            inside.remove(number % 3)

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(work, range(300)))
    assert (locks._turns, list(tmp_path.iterdir())) == ({}, [])


def test_a_thread_that_waits_too_long_gives_up_and_may_come_again(tmp_path: Path) -> None:
    locks = Locks(tmp_path, 0.05)

    def vain() -> int:
        with pytest.raises(CniError) as refused, locks.hold("x"):
            pass
        with locks.hold_if_free("x") as held:
            assert not held
        return refused.value.code

    with ThreadPoolExecutor(1) as pool:
        with locks.hold("x"):
            assert pool.submit(vain).result() == Code.TRY_AGAIN_LATER
        with locks.hold_if_free("x") as held:
            assert held
    assert locks._turns == {}
