"""Tests of the engine contract. Subclass :class:`EngineContract`; see the package."""

from __future__ import annotations

import multiprocessing
from abc import ABC
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from typing import Any, ClassVar

import pytest

from userspace_cni import netns, registry
from userspace_cni.api import (
    Addresses,
    Attachment,
    ContainerEngine,
    Handoff,
    HostEngine,
    HostPort,
)
from userspace_cni.cni.errors import CheckFailed, CniError, Code, DataplaneUnavailable
from userspace_cni.config import engine_conf
from userspace_cni.testing import bench as benches
from userspace_cni.testing.bench import Bench
from userspace_cni.testing.faults import failing
from userspace_cni.testing.switch import Damage, Switch

#: Upper limit of external calls per ADD, to end the test if the engine loops forever.
_CALLS_MAX = 2000
_AT_ONCE = 6
_PROCESSES = 3
_LIVES = 3
#: How long a child process may take, in seconds.
_PROCESS_TIMEOUT = 120


class EngineContract(ABC):
    """The tests. Each test gets its own switch unless the fixture ``switch`` has a wider scope."""

    #: Network configuration with the parts ``host`` and, if the defaults do not fit, ``container``.
    network: ClassVar[Mapping[str, Any]]
    #: Whether each attachment has an IPv4 address and a gateway, as if from IPAM.
    addresses: ClassVar[bool] = False
    #: Whether the port exists only in the container's namespace, such as a tap or a macvlan. Such
    #: a port is not listed on the node and disappears with the namespace.
    inside: ClassVar[bool] = False

    @pytest.fixture
    def switch(self) -> Iterator[Switch]:
        """Yield a running switch. The engine's author overrides this fixture."""
        raise NotImplementedError("override the fixture `switch`; see userspace_cni.testing")

    @pytest.fixture
    def bench(self, switch: Switch) -> Iterator[Bench]:
        """Yield a test bench; afterwards fail if the test left anything in the switch."""
        before = sorted(switch.objects())
        with benches.bench(switch, self.network, addresses=self.addresses) as bench:
            yield bench
            after = bench.objects()
            bench.clean()  # other tests may share the switch
        assert after == before, "the test left something in the switch"

    # -- registration and metadata

    def test_it_is_announced_and_described(self, bench: Bench) -> None:
        engine = bench.place.engine
        name = self.network["host"]["engine"]
        registry.fitting(engine, HostEngine, "host", name)  # type: ignore[type-abstract]
        assert bench.conf.iftype in engine.info.interface_types
        assert bench.conf.net_type in engine.info.network_types
        container = self._container_engine(bench)
        registry.fitting(container, ContainerEngine, "container", container.info.name)  # type: ignore[type-abstract]

    def test_it_opens_nothing_before_it_is_asked(self, bench: Bench) -> None:
        with failing() as calls:
            engine = bench.place.engine(bench.place.context([]))
            key = engine.switch_key(bench.conf)
        engine.close()
        assert isinstance(key, str), f"switch_key returned {key!r}, which is no text"
        assert calls.count == 0, (
            "__init__ or switch_key made external calls (files, sockets, processes)"
        )

    # -- the life of a port

    def test_a_port_lives_and_leaves_nothing(self, bench: Bench) -> None:
        before = bench.objects()
        bench.call(bench.engine.status, bench.conf)
        attachment = bench.attachment()
        assert attachment.id not in bench.listed()

        port = bench.add(attachment)
        assert port.name, "HostPort.name is empty"
        assert bench.objects() != before, "Switch.objects() does not show the port"
        assert (attachment.id in bench.listed()) is not self.inside
        assert attachment.id not in bench.listed("contract-2"), "list ignores the network"
        bench.check(attachment, port)

        bench.delete(attachment)
        assert bench.objects() == before
        assert attachment.id not in bench.listed()

    def test_delete_may_be_repeated(self, bench: Bench) -> None:
        attachment = bench.attachment()
        bench.add(attachment)
        bench.delete(attachment)
        before = bench.objects()
        bench.delete(attachment)
        bench.call(bench.engine.delete, attachment.id, bench.conf, None)
        assert bench.objects() == before

    def test_tags_alone_suffice(self, bench: Bench) -> None:
        before = bench.objects()
        attachment = bench.attachment()
        bench.add(attachment)
        engine = bench.fresh_engine()
        assert (attachment.id in bench.listed(engine=engine)) is not self.inside
        path = attachment.netns if self.inside else None
        bench.call(engine.delete, attachment.id, bench.conf, path)
        bench.withdraw(attachment)
        assert bench.objects() == before

    def test_delete_touches_nothing_else(self, bench: Bench) -> None:
        mine, other = bench.attachment(), bench.attachment("contract-2")
        bench.add(mine)
        port = bench.add(other)
        before = bench.objects()
        bench.call(bench.engine.delete, "0123456789abcdef", bench.conf, None)
        assert bench.objects() == before, "delete of an unknown attachment removed something"
        bench.delete(mine)
        bench.check(other, port)
        assert (other.id in bench.listed("contract-2")) is not self.inside
        bench.delete(other)

    def test_an_attachment_is_not_made_twice(self, bench: Bench) -> None:
        """The store may be lost: what runs must not be taken over, and not be torn down."""
        attachment = bench.attachment()
        port = bench.add(attachment)
        with pytest.raises(CniError):
            bench.add(attachment)
        bench.check(attachment, port)
        bench.delete(attachment)

    def test_nothing_is_printed(self, bench: Bench, capfd: pytest.CaptureFixture[str]) -> None:
        """Standard output belongs to the CNI result."""
        attachment = bench.attachment()
        port = bench.add(attachment)
        bench.check(attachment, port)
        bench.listed()
        bench.delete(attachment)
        assert capfd.readouterr().out == ""

    # -- undo

    def test_undo_leaves_nothing(self, bench: Bench) -> None:
        before = bench.objects()
        attachment = bench.attachment()
        undo = ExitStack()
        bench.call(bench.engine.add, attachment, bench.conf, undo)
        bench.call(undo.close)
        assert bench.objects() == before
        bench.withdraw(attachment)

    def test_a_failure_at_each_call_leaves_nothing(self, bench: Bench) -> None:
        """Make each external call of ``add`` fail in turn."""
        warm = bench.attachment()  # so that modules are imported and connections are open
        bench.add(warm)
        bench.delete(warm)
        before = bench.objects()
        problems: list[str] = []
        attachment = bench.attachment()
        for number in range(1, _CALLS_MAX):
            undo = ExitStack()
            error: BaseException | None = None
            with failing(number) as fault:
                try:
                    bench.call(bench.engine.add, attachment, bench.conf, undo)
                except BaseException as raised:  # noqa: BLE001  judged below
                    error = raised
            where = f"call {number}, {fault.failed}"
            if error is not None and not isinstance(error, CniError):
                problems.append(f"{where}: raised {error!r}, which is not a CniError")
            if error is None:
                bench.delete(attachment)
            else:
                try:
                    bench.call(undo.close)
                except Exception as raised:  # noqa: BLE001  an undo step may raise anything
                    problems.append(f"{where}: undo raised {raised!r}")
                bench.withdraw(attachment)
            if left := sorted(set(bench.objects()) - set(before)):
                problems.append(f"{where}: left {left}")
                bench.delete(attachment)
            if not fault.failed:
                break
        else:
            problems.append(f"add made over {_CALLS_MAX} calls")
        assert not problems, "\n".join(problems)

    # -- addresses

    def test_a_failure_of_ipam_leaves_nothing(self, bench: Bench) -> None:
        before = bench.objects()
        held: list[str] = []

        def addresses() -> Addresses:
            held.extend(bench.held)
            raise CniError(Code.IPAM, "no address is left")

        attachment = bench.attachment(addresses=addresses)
        undo = ExitStack()
        try:
            bench.call(bench.engine.add, attachment, bench.conf, undo)
        except CniError as error:
            assert error.code == Code.IPAM, f"the error of IPAM became {error!r}"
        finally:
            bench.call(undo.close)
            bench.withdraw(attachment)
        assert held == [], f"add waits for IPAM and holds the locks {held} meanwhile"
        assert bench.objects() == before

    # -- many at once

    def test_threads_share_an_engine(self, bench: Bench) -> None:
        before = bench.objects()
        attachments = [bench.attachment() for _ in range(_AT_ONCE)]

        def live(attachment: Attachment) -> HostPort:
            port = bench.add(attachment)
            bench.check(attachment, port)
            return port

        with ThreadPoolExecutor(_AT_ONCE) as pool:
            ports = list(pool.map(live, attachments))
            if not self.inside:
                assert len({port.name for port in ports}) == _AT_ONCE, "two ports have one name"
                assert {one.id for one in attachments} <= bench.listed()
            list(pool.map(bench.delete, attachments))
        assert bench.objects() == before

    def test_processes_share_a_switch(self, bench: Bench) -> None:
        before = bench.objects()
        lots = [[bench.attachment() for _ in range(_LIVES)] for _ in range(_PROCESSES)]
        spawn = multiprocessing.get_context("spawn")
        together = spawn.Barrier(_PROCESSES)
        processes = [
            spawn.Process(target=benches.lives, args=(bench.place, bench.conf, lot, together))
            for lot in lots
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join(_PROCESS_TIMEOUT)
            process.kill()
        for lot in lots:
            for attachment in lot:
                bench.withdraw(attachment)
        assert [process.exitcode for process in processes] == [0] * _PROCESSES
        assert bench.objects() == before

    # -- CHECK and restore

    def test_check_notices_each_damage_and_restore_mends_it(self, bench: Bench) -> None:
        problems: list[str] = []
        position = 0
        while True:
            attachment = bench.attachment()
            port = bench.add(attachment)

            def remove(attachment: Attachment = attachment) -> None:
                path = attachment.netns if self.inside else None
                bench.call(bench.engine.delete, attachment.id, bench.conf, path)

            damages = [Damage("the port is removed", remove)]
            damages += bench.switch.damages(attachment, port)
            if position == len(damages):
                break
            damage = damages[position]
            damage.cause()
            problems += self._only_looked_at(bench, damage.what)
            problems += self._mended(bench, attachment, port, damage.what)
            bench.delete(attachment)
            position += 1
        bench.delete(attachment)
        assert not problems, "\n".join(problems)

    # -- a switch that is down or has restarted

    def test_a_switch_that_is_down_is_told_apart(self, bench: Bench) -> None:
        if not bench.switch.is_program:
            assert bench.call(bench.engine.generation, bench.conf) == ""
            return
        attachment = bench.attachment()
        port = bench.add(attachment)
        late = bench.attachment()
        bench.switch.kill()
        engine, conf = bench.engine, bench.conf
        calls: dict[str, tuple[Any, ...]] = {
            "status": (engine.status, conf),
            "add": (engine.add, late, conf, ExitStack()),
            "delete": (engine.delete, attachment.id, conf, None),
            "check": (engine.check, attachment, conf, port),
            "attachments": (lambda: list(engine.attachments("contract", conf)),),
        }
        if bench.switch.forgets:
            calls["generation"] = (engine.generation, conf)
        problems = []
        for verb, (function, *arguments) in calls.items():
            try:
                bench.call(function, *arguments)
            except DataplaneUnavailable as error:
                if not error.details:
                    problems.append(f"{verb}: {error} does not say what to do")
            except Exception as error:  # noqa: BLE001  any other exception is a finding
                problems.append(f"{verb} raised {error!r}, not DataplaneUnavailable")
            else:
                problems.append(f"{verb} succeeded")
        bench.switch.start()
        bench.delete(attachment)
        bench.withdraw(late)
        assert not problems, "\n".join(problems)

    def test_a_restart_is_noticed_and_mended(self, bench: Bench) -> None:
        if not bench.switch.is_program:
            assert bench.call(bench.engine.generation, bench.conf) == ""
            return
        attachment = bench.attachment()
        port = bench.add(attachment)
        first = bench.call(bench.engine.generation, bench.conf)
        assert bench.call(bench.engine.generation, bench.conf) == first
        if bench.switch.forgets:
            assert port.generation == first, "HostPort.generation is not that of the switch"
        bench.switch.kill()
        bench.switch.start()
        problems = []
        forgets = bench.switch.forgets
        if forgets and bench.call(bench.engine.generation, bench.conf) == first:
            problems.append("generation is the same after a restart")
        problems += self._mended(bench, attachment, port, "the switch restarted", must=forgets)
        bench.delete(attachment)
        assert not problems, "\n".join(problems)

    # -- the container's end

    def test_prepare_touches_nothing(self, bench: Bench) -> None:
        attachment = bench.attachment()
        port = bench.add(attachment)
        before = bench.objects()
        self._handoff(bench, attachment, port)  # so that modules are imported
        with failing() as calls:
            handoff = self._handoff(bench, attachment, port)
        assert calls.count == 0, "prepare made external calls (files, sockets, processes)"
        assert bench.objects() == before
        assert handoff.interface == attachment.interface
        assert handoff.iftype
        assert handoff.port == port.port
        bench.delete(attachment)

    def test_the_container_gets_its_interface(self, bench: Bench) -> None:
        attachment = bench.attachment()
        port = bench.add(attachment)
        handoff = self._handoff(bench, attachment, port)
        engine = self._container_engine(bench)()
        if engine.where == "node":
            netns.call(attachment.netns, engine.add, handoff)
            netns.call(attachment.netns, engine.check, handoff)
        bench.check(attachment, port)
        bench.delete(attachment)

    # -- helpers

    def _only_looked_at(self, bench: Bench, what: str) -> Iterator[str]:
        """Ask ``status`` and ``attachments`` after the damage *what*; yield if they changed it."""
        before = bench.objects()
        with suppress(CniError):  # the damage may be one that status reports
            bench.call(bench.engine.status, bench.conf)
        bench.listed()
        if bench.objects() != before:
            yield f"{what}: status or attachments changed the switch; only restore may repair"

    def _mended(
        self, bench: Bench, attachment: Attachment, port: HostPort, what: str, *, must: bool = True
    ) -> Iterator[str]:
        """Check and restore *port*; yield a text for each problem.

        Args:
            bench: the test bench.
            attachment: the port's attachment.
            port: the port.
            what: the damage, for the texts.
            must: whether ``check`` has to notice; False if the port may have survived.

        """
        try:
            bench.check(attachment, port)
        except CheckFailed:
            pass
        else:
            if must:
                yield f"{what}: check did not notice it"
            return
        restored = bench.restore(attachment, port)
        for name in ("name", "mac", "mtu", "port"):
            before, after = getattr(port, name), getattr(restored, name)
            if before != after:
                yield f"{what}: restore changed {name} from {before!r} to {after!r}"
        try:
            bench.check(attachment, restored)
        except CheckFailed as error:
            yield f"{what}: check fails after restore: {error}"

    def _container_engine(self, bench: Bench) -> type[ContainerEngine]:
        info = bench.place.engine.info
        default = info.container_engines.get(bench.conf.iftype, info.name)
        name = self.network.get("container", {}).get("engine", default)
        return registry.container_engine(name)

    def _handoff(self, bench: Bench, attachment: Attachment, port: HostPort) -> Handoff:
        kind = self._container_engine(bench)
        defaults = {"iftype": bench.conf.iftype, "netType": "none"}
        raw = dict(self.network.get("container", {}))
        conf = engine_conf(raw, "container", kind.info, defaults)
        return kind().prepare(attachment, conf, port)
