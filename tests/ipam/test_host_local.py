"""Our host-local together with the executable, killed anywhere, and with its additional verbs."""

from __future__ import annotations

import itertools
import os
import resource
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from fcntl import LOCK_EX, flock
from pathlib import Path
from typing import Any

import pytest

from ipam.twins import NETWORK, Call, by_engine, by_executable, contents, engine, network
from userspace_cni.cni.errors import CniError, Code
from userspace_cni.cni.result import Result
from userspace_cni.ipam import Chooser
from userspace_cni.ipam.host_local import leases
from userspace_cni.ipam.in_process import InProcess

_CLIENTS = 16
_ROUNDS = 12
Do = Callable[[dict[str, Any], Call], Result | str | None]


def _ours() -> Do:
    chooser = Chooser(("host-local",))
    return lambda conf, call: by_engine(chooser, conf, call)


def _engine(conf: dict[str, Any], **keys: Any) -> InProcess:
    keys = {"cni.dev/valid-attachments": [], **keys}
    found = engine(Chooser(("host-local",)), {**conf, **keys}, Call("GC", "", ""))
    assert found is not None
    return found


def _addresses(answer: Result | str | None) -> list[str]:
    assert isinstance(answer, Result), answer
    return [str(ip.address.ip) for ip in answer.ips]


def test_clients_of_both_kinds_at_once_share_the_addresses(tmp_path: Path) -> None:
    conf = network({"ranges": [[{"subnet": "10.77.0.0/26"}], [{"subnet": "fd77::/64"}]]}, tmp_path)
    # Like two daemons; threads of one daemon share the cache.
    ways = [_ours(), by_executable, _ours(), by_executable]
    held: dict[str, str] = {}
    guard = threading.Lock()

    def client(number: int) -> None:
        do = ways[number % len(ways)]
        for turn in range(_ROUNDS):
            call = Call("ADD", f"c{number}-{turn}")
            found = _addresses(do(conf, call))
            with guard:
                assert not held.keys() & {*found}
                held.update(dict.fromkeys(found, call.container))
            if turn % 4:
                with guard:
                    for one in found:
                        del held[one]
                assert do(conf, Call("DEL", call.container)) is None

    with ThreadPoolExecutor(_CLIENTS) as pool:
        for done in [pool.submit(client, number) for number in range(_CLIENTS)]:
            done.result()
    found = contents(tmp_path / NETWORK)
    del found["lock"], found["last_reserved_ip.0"], found["last_reserved_ip.1"]
    assert found == {one: f"{whose}\r\neth0".encode() for one, whose in held.items()}


# -- killed


class _Killer:
    """Replaces a module whose functions make system calls; ends the process before one of them."""

    def __init__(self, module: Any, left: list[int]) -> None:
        self._module = module
        self._left = left

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._module, name)
        return self.before(found) if callable(found) else found

    def before(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def called(*args: Any, **keys: Any) -> Any:
            self._left[0] -= 1
            if self._left[0] < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **keys)

        return called


def _killed_after(survived: int, conf: dict[str, Any], call: Call) -> bool:
    """Run *call* in a process that is killed after some system calls; return whether it was."""
    child = os.fork()
    if child == 0:
        killer = _Killer(os, [survived])
        setattr(leases, "os", killer)  # noqa: B010  to mypy a module is no variable
        setattr(leases, "flock", killer.before(flock))  # noqa: B010
        _ours()(conf, call)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


def _all_that_is_free(conf: dict[str, Any], do: Do) -> list[str]:
    found: list[str] = []
    for number in itertools.count():
        answer = do(conf, Call("ADD", f"more{number}"))
        if answer == "exhausted":
            return sorted(found)
        found += _addresses(answer)
    raise AssertionError


@pytest.mark.parametrize("then", ["DEL", "executable", "GC"])
@pytest.mark.parametrize("killed", ["ADD", "DEL"])
def test_killed_anywhere_no_address_is_lost(tmp_path: Path, killed: str, then: str) -> None:
    for survived in itertools.count():
        conf = network(
            {"ranges": [[{"subnet": "10.77.0.0/29"}], [{"subnet": "fd77::/125"}]]},
            tmp_path / str(survived),
        )
        directory = tmp_path / str(survived) / NETWORK
        do = _ours()
        others = _addresses(do(conf, Call("ADD", "other")))
        if killed == "DEL":
            assert _addresses(do(conf, Call("ADD", "victim")))
        was_killed = _killed_after(survived, conf, Call(killed, "victim"))
        for one in others:
            assert (directory / one).read_bytes() == b"other\r\neth0"
        if then == "GC":
            _engine(conf).gc(lambda: {("other", "eth0")})
        else:
            free = by_executable if then == "executable" else do
            assert free(conf, Call("DEL", "victim")) is None
        expected = {"lock", "last_reserved_ip.0", "last_reserved_ip.1", *others}
        left = {*contents(directory)}
        assert left - expected <= {".new"}, survived
        free = by_executable if survived % 2 else _ours()
        usable = {f"10.77.0.{n}" for n in range(2, 7)} | {f"fd77::{n}" for n in range(2, 8)}
        found = _all_that_is_free(conf, free)
        assert {f"10.77.0.{n}" for n in range(2, 7)} - {*others} <= {*found} <= usable - {*others}
        if not was_killed:
            break
    assert survived > (6 if killed == "DEL" else 20)


# -- verbs that the executable does not support


_SMALL: dict[str, Any] = {"ranges": [[{"subnet": "10.77.0.0/29"}]]}


def test_gc_frees_what_no_valid_attachment_has(tmp_path: Path) -> None:
    conf = network(_SMALL, tmp_path)
    directory = tmp_path / NETWORK
    for container in ("c1", "c2", "c3"):
        by_executable(conf, Call("ADD", container))
    (directory / "10.77.0.5").write_bytes(b"older")
    (directory / "10.77.0.6").write_bytes(b"gone")
    (directory / "10.77.0.9").touch()  # as if an executable had been killed between two steps
    (directory / "README").write_bytes(b"c1\r\neth0")
    before = contents(directory)
    _engine(conf).gc(lambda: {("c1", "eth0"), ("c2", "net1"), ("older", "eth0")})
    after = contents(directory)
    assert {*before} - {*after} == {"10.77.0.3", "10.77.0.4", "10.77.0.6", "10.77.0.9"}
    assert after == {name: before[name] for name in after}
    _engine(conf).gc(set)
    assert {*contents(directory)} == {"lock", "last_reserved_ip.0", "README"}


def test_gc_asks_what_is_valid_when_nobody_can_allocate(tmp_path: Path) -> None:
    conf = network(_SMALL, tmp_path)
    do = _ours()
    do(conf, Call("ADD", "c1"))
    added = threading.Thread(target=do, args=(conf, Call("ADD", "c2")))

    def valid() -> set[tuple[str, str]]:
        added.start()
        added.join(0.2)
        assert added.is_alive()
        return {("c1", "eth0")}

    _engine(conf).gc(valid)
    added.join(10)
    assert do(conf, Call("CHECK", "c2")) is None


def test_status_tells_that_a_range_set_is_exhausted(tmp_path: Path) -> None:
    conf = network(_SMALL, tmp_path)
    _engine(conf).status()
    assert not [*tmp_path.iterdir()]
    do = _ours()
    for number in range(4):
        do(conf, Call("ADD", f"c{number}"))
    _engine(conf).status()
    do(conf, Call("ADD", "last"))
    with pytest.raises(CniError) as caught:
        _engine(conf).status()
    assert caught.value.code == Code.NOT_AVAILABLE
    assert "no address is left in the range set 10.77.0.1-10.77.0.6" in str(caught.value)
    assert str(tmp_path / NETWORK) in str(caught.value)
    do(conf, Call("DEL", "c2"))
    _engine(conf).status()


# -- errors


def test_a_lock_that_is_held_is_told(tmp_path: Path) -> None:
    conf = network(_SMALL, tmp_path)
    by_executable(conf, Call("ADD"))
    lock = tmp_path / NETWORK / "lock"
    ipam = _engine(conf)
    ipam.instead_of.timeout = 0.2
    with lock.open() as held:
        flock(held, LOCK_EX)
        with pytest.raises(CniError) as caught:
            ipam.delete()
    assert caught.value.code == Code.TRY_AGAIN_LATER
    assert str(lock) in str(caught.value)


def test_a_directory_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / NETWORK).write_bytes(b"a file")
    with pytest.raises(CniError) as caught:
        _engine(network(_SMALL, tmp_path)).allocate()
    assert caught.value.code == Code.IO_FAILURE
    assert str(tmp_path / NETWORK) in str(caught.value)


def test_a_del_without_a_free_descriptor_does_not_claim_success(tmp_path: Path) -> None:
    conf = network(_SMALL, tmp_path)
    do = _ours()
    do(conf, Call("ADD"))
    lease = tmp_path / NETWORK / "10.77.0.2"
    ipam = _engine(conf)
    ipam.instead_of.environ = Call("DEL").environ()
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.open("/dev/null", os.O_RDONLY)
    os.close(lowest)
    for room in itertools.count():
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + room, limits[1]))
        try:
            ipam.delete()
        except CniError as error:
            told = error
        else:
            break
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        assert told.code == Code.IO_FAILURE
        assert "Too many open files" in str(told)
        assert lease.exists()
    assert room > 0
    assert not lease.exists()


@pytest.mark.parametrize("length", [1017, 1018, 1019, 100_000])
def test_a_long_container_id_keeps_its_address_until_its_del(tmp_path: Path, length: int) -> None:
    conf = network(_SMALL, tmp_path)
    container = "c" * length
    assert _addresses(_ours()(conf, Call("ADD", container))) == ["10.77.0.2"]
    _engine(conf).gc(lambda: {(container, "eth0")})
    assert _ours()(conf, Call("CHECK", container)) is None
    assert by_executable(conf, Call("CHECK", container)) is None
    assert _ours()(conf, Call("DEL", container)) is None
    assert not (tmp_path / NETWORK / "10.77.0.2").exists()


def test_asking_for_two_addresses_of_one_range_set_fails(tmp_path: Path) -> None:
    asked = {"runtimeConfig": {"ips": ["10.77.0.3", "10.77.0.4"]}}
    for do in (by_executable, _ours()):
        conf = network(_SMALL, tmp_path)
        assert do(conf, Call("ADD", keys=asked)) == "not given"
        assert {*contents(tmp_path / NETWORK)} == {"lock", "last_reserved_ip.0"}


def test_a_del_does_not_fail_for_what_it_does_not_need(tmp_path: Path) -> None:
    do = _ours()
    do(network(_SMALL, tmp_path), Call("ADD"))
    broken = network({"ranges": [[{"subnet": "10.77.0.1/31"}]]}, tmp_path)
    assert by_executable(broken, Call("DEL", args="IP=nonsense")) == "configuration"
    assert (tmp_path / NETWORK / "10.77.0.2").exists()
    assert do(broken, Call("DEL", args="IP=nonsense")) is None
    assert not (tmp_path / NETWORK / "10.77.0.2").exists()


# -- cost


def test_the_thousandth_lease_is_as_cheap_as_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = [0]

    class Counter(_Killer):
        def before(self, function: Callable[..., Any]) -> Callable[..., Any]:
            def called(*args: Any, **keys: Any) -> Any:
                asked[0] += 1
                return function(*args, **keys)

            return called

    monkeypatch.setattr(leases, "os", Counter(os, []))
    conf = network({"ranges": [[{"subnet": "10.77.0.0/16"}]]}, tmp_path)
    do = _ours()
    cost = []
    for number in range(1000):
        asked[0] = 0
        assert isinstance(do(conf, Call("ADD", f"c{number}")), Result)
        cost.append(asked[0])
    assert cost[-1] <= cost[1]
    asked[0] = 0
    assert do(conf, Call("DEL", "c500")) is None
    assert asked[0] <= cost[1]
    # A lease of another program is noticed, and everything is read once.
    assert isinstance(by_executable(conf, Call("ADD", "theirs")), Result)
    assert do(conf, Call("ADD", "theirs")) == "duplicate"
    asked[0] = 0
    assert isinstance(do(conf, Call("ADD", "again")), Result)
    assert asked[0] <= cost[1]
