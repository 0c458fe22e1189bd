"""Test bench that drives an engine as the runtime does, without IPAM and store."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from ipaddress import ip_address, ip_interface
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from attrs import define, field, frozen

from userspace_cni import config, netns, registry
from userspace_cni.api import (
    Addresses,
    Attachment,
    EngineConf,
    EngineContext,
    HostEngine,
    HostPort,
    IPConfig,
)
from userspace_cni.config.settings import Settings
from userspace_cni.handover import ContainerDirectory
from userspace_cni.locks import Locks
from userspace_cni.testing.faults import unharmed
from userspace_cni.testing.switch import Switch

if TYPE_CHECKING:
    from multiprocessing.synchronize import Barrier

_P = ParamSpec("_P")
_T = TypeVar("_T")

#: How long the kit waits for a lock or for other processes, in seconds.
_TIMEOUT = 30


@frozen(kw_only=True)
class Place:
    """Everything needed to create an engine, in this process or in another one."""

    engine: type[HostEngine]
    settings: Mapping[str, Any]
    #: Network namespace that the engine works in; empty for the namespace of this process.
    netns: str
    #: Contains the shared directories and locks.
    directory: Path

    def context(self, held: list[str]) -> EngineContext:
        """Return the engine's context, which keeps the names of the locks it holds in *held*."""
        locks = Locks(self.directory / "locks", _TIMEOUT)

        @contextmanager
        def lock(name: str) -> Iterator[object]:
            # Creating the lock's files is the runtime's work, so no fault is injected here.
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
            settings=self._settings(),
            lock=lock,
            directory=lambda path: self.shared(path.rpartition("/")[2]),
        )

    def _settings(self) -> object:
        info = self.engine.info
        path = Path(f"Switch.settings of {info.name}")
        return Settings(engines={info.name: self.settings}, file=path).of_engine(
            info.name, info.settings
        )

    def shared(self, container_id: str) -> ContainerDirectory:
        """Return the shared directory of a container."""
        return ContainerDirectory(self.directory / "shared", container_id, None)

    def call(self, function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """Call *function* in the engine's network namespace and return its result."""
        if self.netns:
            return netns.call(self.netns, function, *args, **kwargs)
        return function(*args, **kwargs)


@define
class Bench:
    """An engine with its switch and a network."""

    switch: Switch
    place: Place
    conf: EngineConf
    network: Mapping[str, Any]
    engine: HostEngine
    #: Names of the locks that the engine currently holds.
    held: list[str]
    _stack: ExitStack
    _addresses: bool
    _numbers: count[int] = field(factory=lambda: count(1))
    _attachments: list[Attachment] = field(factory=list)

    def clean(self) -> None:
        """Remove what a failed test left behind."""
        for attachment in self._attachments:
            with suppress(Exception):
                self.delete(attachment)

    def fresh_engine(self) -> HostEngine:
        """Return a new instance of the engine, without any cached state."""
        engine = self.place.engine(self.place.context([]))
        self._stack.callback(engine.close)
        return engine

    def call(self, function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """Call *function* in the engine's network namespace and return its result."""
        return self.place.call(function, *args, **kwargs)

    def attachment(self, network: str = "contract", **changes: Any) -> Attachment:
        """Return an attachment for a new container, without adding it.

        Args:
            network: the network's name.
            changes: fields of the attachment that replace the defaults.

        """
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
            "addresses": Addresses(ips=self._ips(number)),
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
        """Add the port; if that fails, run the undo steps as the runtime does."""
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
        """Delete the port, and the shared directory as the runtime does."""
        self.call((engine or self.engine).delete, attachment.id, self.conf, attachment.netns)
        self.withdraw(attachment)

    def withdraw(self, attachment: Attachment) -> None:
        """Remove the shared directory, as the runtime does after a DEL or a failed ADD."""
        shutil.rmtree(self.place.shared(attachment.container_id).path, ignore_errors=True)

    def check(self, attachment: Attachment, port: HostPort) -> None:
        """Call the engine's ``check`` for *port*."""
        self.call(self.engine.check, attachment, self.conf, port)

    def restore(self, attachment: Attachment, port: HostPort) -> HostPort:
        """Call the engine's ``restore`` for *port* and return the restored port."""
        undo = ExitStack()
        restored = self.call(self.engine.restore, attachment, self.conf, port, undo)
        undo.pop_all()
        return restored

    def listed(self, network: str = "contract", engine: HostEngine | None = None) -> set[str]:
        """Return the IDs of the attachments that the engine lists for *network*."""
        return set(self.call((engine or self.engine).attachments, network, self.conf))

    def objects(self) -> list[str]:
        """Return the switch's objects in sorted order, see :meth:`.Switch.objects`."""
        return sorted(self.switch.objects())


@contextmanager
def bench(switch: Switch, network: Mapping[str, Any], *, addresses: bool) -> Iterator[Bench]:
    """Create the engine that *network* names and yield its bench.

    Args:
        switch: a running switch.
        network: the network's configuration.
        addresses: whether attachments have an IPv4 address and a gateway.

    """
    raw = dict(network["host"])
    engine = registry.host_engine(raw["engine"])
    conf = config.engine_conf(raw, "host", engine.info, {})
    # Keep the path short: the path of a Unix socket has at most 107 bytes.
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
    """Add, check and delete each attachment; the entry point of a child process.

    The barrier *together* makes all processes begin at the same time.
    """
    engine = place.engine(place.context([]))
    try:
        together.wait(_TIMEOUT)
        for attachment in attachments:
            undo = ExitStack()
            try:
                port = place.call(engine.add, attachment, conf, undo)
                place.call(engine.check, attachment, conf, port)
            finally:
                place.call(engine.delete, attachment.id, conf, attachment.netns)
                undo.pop_all()
    finally:
        engine.close()
