"""An engine at work on a switch: what the runtime does around it, without IPAM and store."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from ipaddress import ip_address, ip_interface
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from attrs import define, evolve, field, frozen

from userspace_cni import config, netns, registry
from userspace_cni.api import Attachment, EngineConf, EngineContext, HostEngine, HostPort, IPConfig
from userspace_cni.handover import ContainerDirectory
from userspace_cni.locks import Locks
from userspace_cni.testing.faults import unharmed
from userspace_cni.testing.switch import Switch

if TYPE_CHECKING:
    from multiprocessing.synchronize import Barrier

_P = ParamSpec("_P")
_T = TypeVar("_T")

#: Seconds that the kit waits for a lock.
_TIMEOUT = 30


@frozen(kw_only=True)
class Place:
    """All that it takes to make an engine, here or in another process."""

    engine: type[HostEngine]
    settings: Mapping[str, Any]
    #: Where the engine works; empty for this process's own network namespace.
    netns: str
    #: Of the shared directories and locks.
    directory: Path

    def context(self, held: list[str]) -> EngineContext:
        """Return the node that the engine sees; the names of the locks that it holds are *held*."""
        locks = Locks(self.directory / "locks", _TIMEOUT)

        @contextmanager
        def lock(name: str) -> Iterator[object]:
            # The lock's own files are the runtime's work.
            with unharmed():
                taken = locks.hold(name)
                descriptor = taken.__enter__()
            held.append(name)
            try:
                yield descriptor
            finally:
                held.remove(name)
                with unharmed():
                    taken.__exit__(None, None, None)

        return EngineContext(
            settings=self.settings,
            lock=lock,
            directory=lambda path: self.shared(path.rpartition("/")[2]),
        )

    def shared(self, container_id: str) -> ContainerDirectory:
        """Return the shared directory of a container."""
        return ContainerDirectory(self.directory / "shared", container_id, None)

    def call(self, function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """Call *function* where the engine works."""
        if self.netns:
            return netns.call(self.netns, function, *args, **kwargs)
        return function(*args, **kwargs)


@define
class Bench:
    """An engine, its switch, and a network."""

    switch: Switch
    place: Place
    conf: EngineConf
    network: Mapping[str, Any]
    engine: HostEngine
    #: The names of the locks that the engine holds.
    held: list[str]
    _stack: ExitStack
    _addresses: bool
    _numbers: count[int] = field(factory=lambda: count(1))
    _attachments: list[Attachment] = field(factory=list)

    def clean(self) -> None:
        """Remove what a test that failed has left."""
        for attachment in self._attachments:
            with suppress(Exception):
                self.delete(attachment)

    def fresh_engine(self) -> HostEngine:
        """Return another object of the engine, which remembers nothing."""
        engine = self.place.engine(self.place.context([]))
        self._stack.callback(engine.close)
        return engine

    def call(self, function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """Call *function* where the engine works."""
        return self.place.call(function, *args, **kwargs)

    def attachment(self, network: str = "contract", **changes: Any) -> Attachment:
        """Return an attachment of a new container, not made yet."""
        number = next(self._numbers)
        container_id = f"c{number}"
        path = self._stack.enter_context(self.switch.container())
        directory = self.place.shared(container_id)
        values: dict[str, Any] = {
            "network": network,
            "container_id": container_id,
            "ifname": "eth0",
            "interface": "eth0",
            "netns": path,
            "directory": directory,
            "ips": self._ips(number),
        }
        attachment = Attachment(**values | changes)
        self._attachments.append(attachment)
        return attachment

    def _ips(self, number: int) -> tuple[IPConfig, ...]:
        if not self._addresses:
            return ()
        address = ip_interface(f"10.213.{number // 250}.{number % 250 + 2}/16")
        return (IPConfig(address=address, gateway=ip_address("10.213.0.1")),)

    def add(self, attachment: Attachment, engine: HostEngine | None = None) -> HostPort:
        """Make the port; when that fails, undo it as the runtime does."""
        undo = ExitStack()
        try:
            port = self.call((engine or self.engine).add, attachment, self.conf, undo)
        except BaseException:
            self.call(undo.close)
            raise
        undo.pop_all()
        assert isinstance(port, HostPort), f"add returned {port!r}, which is no HostPort"
        return port

    def delete(self, attachment: Attachment, engine: HostEngine | None = None) -> None:
        """Remove the port, and what the runtime removes of it."""
        self.call((engine or self.engine).delete, attachment.id, self.conf, attachment.netns)
        self.withdraw(attachment)

    def withdraw(self, attachment: Attachment) -> None:
        """Remove the shared directory, as the runtime does when a port is deleted or undone."""
        shutil.rmtree(self.place.shared(attachment.container_id).path, ignore_errors=True)

    def check(self, attachment: Attachment, port: HostPort) -> None:
        """Let the engine check *port*."""
        self.call(self.engine.check, attachment, self.conf, port)

    def restore(self, attachment: Attachment, port: HostPort) -> HostPort:
        """Put *port* back."""
        undo = ExitStack()
        restored = self.call(self.engine.restore, attachment, self.conf, port, undo)
        undo.pop_all()
        return restored

    def listed(self, network: str = "contract", engine: HostEngine | None = None) -> set[str]:
        """Return the ids of the attachments that the switch carries."""
        return set(self.call((engine or self.engine).attachments, network, self.conf))

    def objects(self) -> list[str]:
        """Return what is in the switch."""
        return sorted(self.switch.objects())


@contextmanager
def bench(switch: Switch, network: Mapping[str, Any], *, addresses: bool) -> Iterator[Bench]:
    """Put the engine that *network* names to work on *switch*."""
    raw = dict(network["host"])
    engine = registry.host_engine(raw["engine"])
    conf = config.engine_conf(raw, "host", engine.info, {})
    # Short: a socket's path has at most 107 bytes.
    directory = Path(tempfile.mkdtemp(prefix="ucni-"))
    try:
        with ExitStack() as stack:
            place = Place(
                engine=engine,
                settings=dict(switch.settings),
                netns=switch.netns,
                directory=directory,
            )
            held: list[str] = []
            made = engine(place.context(held))
            stack.callback(made.close)
            yield Bench(switch, place, conf, network, made, held, stack, addresses)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def lives(place: Place, conf: EngineConf, attachments: list[Attachment], together: Barrier) -> None:
    """Take each of *attachments* through its life, in a process of its own.

    The processes begin *together*, however long each took to start.
    """
    engine = place.engine(place.context([]))
    try:
        together.wait(_TIMEOUT)
        for attachment in attachments:
            own = evolve(attachment, directory=place.shared(attachment.container_id))
            undo = ExitStack()
            try:
                port = place.call(engine.add, own, conf, undo)
                place.call(engine.check, own, conf, port)
            finally:
                place.call(engine.delete, own.id, conf, own.netns)
                undo.pop_all()
    finally:
        engine.close()
