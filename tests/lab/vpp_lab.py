"""A host with a VPP and the engine, and containers that may have their own VPP."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from contextlib import ExitStack, contextmanager
from ipaddress import ip_address, ip_interface, ip_network
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pytest
from attrs import define, field

from lab.attachments import attachment as make_attachment
from lab.netns import Namespace
from lab.plugin import remove_views
from lab.testpmd import Testpmd
from lab.vpp import RealVpp, api_dir, program
from lab.vpp_simulator import Simulator
from userspace_cni import handover
from userspace_cni.api import (
    Attachment,
    EngineConf,
    EngineContext,
    Handoff,
    HostPort,
    IPConfig,
    Route,
)
from userspace_cni.application import ApplicationEngine
from userspace_cni.config.settings import Settings
from userspace_cni.handover import ContainerDirectory
from userspace_cni.locks import Locks
from userspace_cni_linux.container import LinuxContainerEngine
from userspace_cni_vpp import connection
from userspace_cni_vpp.container import (
    API_DIR_VARIABLE,
    API_SOCKET_VARIABLE,
    VppContainerEngine,
)
from userspace_cni_vpp.host import VppHostEngine
from userspace_cni_vpp.settings import VppSettings
from userspace_cni_vpp.switch import Switch

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

Kind = Literal["simulator", "real"]

#: The kinds of VPP available on this machine; only a real one forwards traffic.
KINDS: list[Kind] = ["simulator", "real"] if program() else ["simulator"]
TRAFFIC_KINDS: list[Kind] = ["real"] if program() else []
TIMEOUT = 5.0


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


def route(dst: str, gw: str = "") -> Route:
    return Route(dst=ip_network(dst), gw=ip_address(gw) if gw else None)


def conf(iftype: str, net_type: str = "none", **sections: object) -> EngineConf:
    return EngineConf(engine="vpp", iftype=iftype, net_type=net_type, sections=sections)


@define
class Attached:
    """A container with one attachment."""

    lab: VppLab
    container: Namespace
    attachment: Attachment
    conf: EngineConf
    port: HostPort

    @property
    def id(self) -> str:
        return self.attachment.id

    def check(self) -> None:
        self.lab.call(self.lab.engine.check, self.attachment, self.conf, self.port)

    def delete(self) -> None:
        lab = self.lab
        lab.call(lab.engine.delete, self.attachment.id, self.conf, self.attachment.netns)
        directory = self.attachment.directory
        assert isinstance(directory, ContainerDirectory)
        sockets = (self.port.socket.rpartition("/")[2],)
        directory.withdraw(self.attachment.ifname, self.attachment.id, *sockets)

    def handoff(self, net_type: str = "interface", **sections: object) -> Handoff:
        guest = EngineConf(
            engine="vpp", iftype=self.conf.iftype, net_type=net_type, sections=sections
        )
        return VppContainerEngine().prepare(self.attachment, guest, self.port)

    def guest(self, net_type: str = "interface", **sections: object) -> Guest:
        """Start the container's VPP and configure it from the hand-over."""
        vpp = self.lab.vpp_in(self.container)
        guest = Guest(self.lab, vpp, self.handoff(net_type, **sections))
        guest.call("add")
        return guest


@define
class Guest:
    """A VPP in a container."""

    lab: VppLab
    vpp: Any
    handoff: Handoff

    def call(self, what: str) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv(API_SOCKET_VARIABLE, str(self.vpp.path))
            patch.setenv(API_DIR_VARIABLE, api_dir())
            getattr(VppContainerEngine(), what)(self.handoff)

    @property
    def switch(self) -> Switch:
        return Switch(connection.connect(str(self.vpp.path), TIMEOUT, api_dir()))


@define
class VppLab:
    """The host with its VPP and engine."""

    kind: Kind
    dir: Path
    stack: ExitStack
    host: Namespace = field(init=False)
    vpp: Any = field(init=False)
    engine: VppHostEngine = field(init=False)
    _numbers: count[int] = field(factory=lambda: count(1))

    def __attrs_post_init__(self) -> None:
        self.host = self.stack.enter_context(Namespace())
        self.vpp = self.vpp_in(self.host)
        self.engine = self.new_engine()

    def vpp_in(self, namespace: Namespace, **options: Any) -> Any:
        """Start another VPP in a network namespace."""
        directory = self.dir / f"v{next(self._numbers)}"
        vpp: Any
        if self.kind == "simulator":
            directory.mkdir()
            vpp = Simulator(directory / "api.sock", **options)
            # A new thread starts in the namespace of its parent.
            namespace.call(vpp.start)
        else:
            vpp = RealVpp(directory, namespace, **options)
            vpp.start()
        self.stack.callback(vpp.kill)
        return vpp

    @property
    def settings(self) -> dict[str, Any]:
        """The engine's settings, as in the table ``[engines.vpp]``."""
        return {"api_socket": str(self.vpp.path), "api_dir": api_dir(), "timeout": TIMEOUT}

    def new_engine(self, **settings: Any) -> VppHostEngine:
        table = self.settings | settings
        context = EngineContext(
            settings=Settings(engines={"vpp": table}).of_engine("vpp", VppSettings),
            lock=Locks(self.dir / "locks", 30).hold,
            directory=lambda path: self.directory(Path(path).name),
        )
        return VppHostEngine(context)

    @property
    def switch(self) -> Switch:
        return Switch(connection.connect(str(self.vpp.path), TIMEOUT, api_dir()))

    def call(self, function: Any, *args: Any) -> Any:
        """Call *function* in the host's network namespace."""
        return self.host.call(function, *args)

    def restart(self) -> None:
        """Restart the host's VPP, in its namespace."""
        self.vpp.kill()
        self.call(self.vpp.start)

    def container(self) -> Namespace:
        return self.stack.enter_context(Namespace())

    def directory(self, container_id: str) -> ContainerDirectory:
        return ContainerDirectory(self.dir / "s", container_id, None)

    def attachment(self, container: Namespace, **changes: Any) -> Attachment:
        id_ = f"c{next(self._numbers)}"
        values = {
            "network": "blue",
            "container_id": id_,
            "ifname": "eth0",
            "netns": container.path,
        } | changes
        values.setdefault("directory", self.directory(values["container_id"]))
        return make_attachment(**values)

    def add(self, attachment: Attachment, host: EngineConf) -> HostPort:
        """Add the port as the runtime does: run the undo steps if it fails."""
        undo = ExitStack()
        directory = attachment.directory
        assert isinstance(directory, ContainerDirectory)
        undo.callback(directory.withdraw, attachment.ifname, attachment.id)
        try:
            port = self.call(self.engine.add, attachment, host, undo)
        except BaseException:
            self.call(undo.close)
            raise
        undo.pop_all()
        assert isinstance(port, HostPort)
        return port

    def attach(
        self, host: EngineConf, *addresses: str, container: Namespace | None = None, **changes: Any
    ) -> Attached:
        inside = container or self.container()
        attachment = self.attachment(inside, ips=ips(*addresses), **changes)
        return Attached(self, inside, attachment, host, self.add(attachment, host))

    def attach_kernel(self, host: EngineConf, *addresses: str, **changes: Any) -> Attached:
        """Attach a container that uses its kernel."""
        found = self.attach(host, *addresses, **changes)
        net_type = "interface" if addresses else "none"
        guest = EngineConf(engine="linux", iftype=host.iftype, net_type=net_type)
        handoff = LinuxContainerEngine().prepare(found.attachment, guest, found.port)
        found.container.call(LinuxContainerEngine().add, handoff)
        return found

    def hand_over_dpdk(self, found: Attached) -> Handoff:
        guest = EngineConf(engine="dpdk", iftype=found.conf.iftype, net_type="none")
        return ApplicationEngine().prepare(found.attachment, guest, found.port)

    def tags(self) -> list[str]:
        """Return all tags of interfaces."""
        return sorted(port.tag for port in self.switch.ports() if port.tag)

    def leftovers(self) -> dict[str, Any]:
        """Return what remains in VPP; all values are empty if there is nothing."""
        shared = self.dir / "s"
        sockets = self.switch.api.dump("memif_socket_filename_dump")
        return {
            "interfaces": [p.name for p in self.switch.ports() if p.index],
            "bridge domains": [
                d.bd_id
                for d in self.switch.api.dump(
                    "bridge_domain_dump", bd_id=2**32 - 1, sw_if_index=2**32 - 1
                )
                if d.bd_id
            ],
            "tables": [key for key in self.switch.tables() if key[0]],
            "memif sockets": [s.socket_filename for s in sockets if s.socket_id],
            "links": sorted(self.host.links()),
            "files": sorted(str(p) for p in shared.glob("**/*")) if shared.exists() else [],
        }

    def assert_clean(self) -> None:
        left = self.leftovers()
        assert not any(left.values()), left


@contextmanager
def started(kind: Kind) -> Iterator[VppLab]:
    """Provide a lab with a short path."""
    directory = Path(tempfile.mkdtemp(prefix="vpp-"))
    try:
        with ExitStack() as stack:
            stack.callback(connection.disconnect)
            yield VppLab(kind, directory, stack)
    finally:
        remove_views(directory / "run")
        shutil.rmtree(directory, ignore_errors=True)


class _Here:
    """Replaces a lab node: programs run on the machine itself."""

    def command(self, argv: Sequence[str]) -> list[str]:
        return list(argv)

    def stop(self, process: subprocess.Popen[bytes], seconds: float = 10) -> None:
        process.terminate()
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def start(found: Attached, peer: Attached, stack: ExitStack) -> Testpmd:
    """Start a DPDK application that uses only the hand-over of the attachment *found*."""
    lab, attachment = found.lab, found.attachment
    directory = lab.directory(attachment.container_id)
    directory.publish("eth0", handover.dump(attachment, lab.hand_over_dpdk(found)))
    document = Path(directory.path, "eth0.json")
    assert json.loads(document.read_text())["mac"] == found.port.mac
    return stack.enter_context(
        Testpmd(
            _Here(),  # type: ignore[arg-type]
            found.container.path,
            document,
            peer=peer.port.mac,
        )
    )


def make(kind: Kind) -> Iterator[VppLab]:
    """Provide a lab as :func:`started` does, as a generator for fixtures."""
    with started(kind) as lab:
        yield lab
