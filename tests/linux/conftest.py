from __future__ import annotations

from contextlib import ExitStack
from ipaddress import ip_address, ip_interface, ip_network
from itertools import count
from typing import TYPE_CHECKING

import pytest
from attrs import define, field

from lab.attachments import attachment as make_attachment
from lab.netns import Namespace
from userspace_cni.api import (
    Attachment,
    EngineConf,
    EngineContext,
    Handoff,
    HostPort,
    IPConfig,
    Route,
)
from userspace_cni.locks import Locks
from userspace_cni_linux.container import LinuxContainerEngine
from userspace_cni_linux.host import LinuxHostEngine

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from typing import Any


def ips(*texts: str) -> tuple[IPConfig, ...]:
    """Parse ``10.0.0.2/24>10.0.0.1``: an address and optionally its gateway."""
    found = []
    for text in texts:
        address, _, gateway = text.partition(">")
        found.append(
            IPConfig(
                address=ip_interface(address), gateway=ip_address(gateway) if gateway else None
            )
        )
    return tuple(found)


def route(dst: str, gw: str = "", **more: int) -> Route:
    return Route(dst=ip_network(dst), gw=ip_address(gw) if gw else None, **more)


def conf(iftype: str, net_type: str, **sections: object) -> EngineConf:
    return EngineConf(engine="linux", iftype=iftype, net_type=net_type, sections=sections)


@define
class Attached:
    """A container with one attachment."""

    lab: Lab
    container: Namespace
    attachment: Attachment
    conf: EngineConf
    port: HostPort
    handoff: Handoff

    def check(self) -> None:
        self.lab.call(self.lab.engine.check, self.attachment, self.conf, self.port)
        self.container.call(self.lab.container_engine.check, self.handoff)

    def delete(self) -> None:
        self.lab.call(self.lab.engine.delete, self.attachment.id, self.conf, self.attachment.netns)


@define
class Lab:
    """A private namespace that plays the host, and the engines that work in it."""

    host: Namespace
    locks: Locks
    stack: ExitStack
    engine: LinuxHostEngine = field(init=False)
    container_engine: LinuxContainerEngine = field(factory=LinuxContainerEngine)
    _numbers: count[int] = field(factory=lambda: count(1))

    def __attrs_post_init__(self) -> None:
        self.engine = LinuxHostEngine(EngineContext(lock=self.locks.hold))

    def call(self, function: Any, *args: Any) -> Any:
        return self.host.call(function, *args)

    def container(self) -> Namespace:
        return self.stack.enter_context(Namespace())

    def attachment(self, container: Namespace, **changes: Any) -> Attachment:
        values = {
            "network": "blue",
            "container_id": f"container-{next(self._numbers)}",
            "ifname": "eth0",
            "netns": container.path,
        } | changes
        return make_attachment(**values)

    def attach(
        self, host: EngineConf, *addresses: str, container: Namespace | None = None, **changes: Any
    ) -> Attached:
        """Attach a container as the runtime does."""
        inside = container or self.container()
        attachment = self.attachment(inside, ips=ips(*addresses), **changes)
        undo = ExitStack()
        try:
            port = self.call(self.engine.add, attachment, host, undo)
        except BaseException:
            self.call(undo.close)
            raise
        undo.pop_all()
        guest = EngineConf(
            engine="linux", iftype=host.iftype, net_type="interface" if addresses else "none"
        )
        handoff = self.container_engine.prepare(attachment, guest, port)
        inside.call(self.container_engine.add, handoff)
        return Attached(self, inside, attachment, host, port, handoff)


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    with ExitStack() as stack:
        yield Lab(stack.enter_context(Namespace()), Locks(tmp_path, 10), stack)
