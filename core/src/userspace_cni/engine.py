"""The contract between the runtime and the engines, for authors of engines.

An engine package implements :class:`HostEngine`, :class:`ContainerEngine` or both, and announces
the classes by entry points of the groups :data:`HOST_ENGINES` and :data:`CONTAINER_ENGINES`.
Nothing else is needed to be found: see docs/engines.md.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, ExitStack
from functools import cached_property
from hashlib import sha256
from typing import Any, ClassVar, Literal, NamedTuple, TypeVar

from attrs import define, field, frozen

from userspace_cni.cni.errors import CniError
from userspace_cni.cni.result import (
    DNS,
    Interface,
    IPAddress,
    IPConfig,
    IPInterface,
    IPNetwork,
    Route,
)

__all__ = [
    "CONTAINER_ENGINES",
    "DNS",
    "HOST_ENGINES",
    "Attachment",
    "Bandwidth",
    "ContainerEngine",
    "EngineConf",
    "EngineInfo",
    "Handoff",
    "HostEngine",
    "HostPort",
    "IPAddress",
    "IPConfig",
    "IPInterface",
    "IPNetwork",
    "Interface",
    "Lifeline",
    "Memif",
    "Node",
    "Pod",
    "Route",
    "SharedDirectory",
    "VhostUser",
    "attachment_id",
    "mac_address",
]

#: Entry point group of :class:`HostEngine` classes.
HOST_ENGINES = "userspace_cni.host_engines"
#: Entry point group of :class:`ContainerEngine` classes.
CONTAINER_ENGINES = "userspace_cni.container_engines"

_Section = TypeVar("_Section")


def attachment_id(network: str, container_id: str, ifname: str) -> str:
    """Return the id of an attachment: 16 hexadecimal digits that name everything made for it.

    A digest of the whole key, because container ids share prefixes and have no fixed length.
    """
    key = f"{network}\0{container_id}\0{ifname}"
    # JSON may hold what is no Unicode text: half of a surrogate pair.
    return sha256(key.encode(errors="surrogatepass")).hexdigest()[:16]


def mac_address(attachment_id: str, end: Literal["container", "host"]) -> str:
    """Return the MAC address of one *end* of an attachment that asks for none.

    It is the same after every restart of the switch, so that no neighbour cache goes stale.
    """
    digest = sha256(f"{attachment_id}/{end}".encode()).digest()
    # 02: locally administered, unicast (IEEE 802c).
    return ":".join(f"{byte:02x}" for byte in (0x02, *digest[:5]))


@frozen(kw_only=True)
class EngineInfo:
    """What an engine can do, for validation, error messages and ``userspace-cni engines``."""

    #: The name in the configuration: ``host.engine`` or ``container.engine``.
    name: str
    #: One line for people.
    summary: str
    #: The values of ``iftype`` that it knows (``veth``, ``memif``, ...).
    interface_types: tuple[str, ...]
    #: The values of ``netType`` that it knows, of ``none``, ``bridge`` and ``interface``.
    network_types: tuple[str, ...]
    #: Its configuration sections: the key in ``host`` or ``container``, and the attrs class that
    #: describes it. Attribute ``vlan_id`` is written ``vlanId`` in the configuration.
    sections: Mapping[str, type] = field(factory=dict)
    #: Of a host engine: the container engine that an interface type has by default. A type that is
    #: not in it has the container engine of the host engine's own name.
    container_engines: Mapping[str, str] = field(factory=dict)
    #: Of a host engine: the interface types for which it honours :attr:`Attachment.bandwidth`.
    bandwidth: tuple[str, ...] = ()
    #: Of a host engine: the section that says which switch it is, so that networks with the same
    #: one share a switch; empty for an engine that has one switch on a node. None where the whole
    #: ``host`` part says it.
    switch: str | None = None


@frozen(kw_only=True)
class EngineConf:
    """The ``host`` or ``container`` part of a network configuration, checked and structured."""

    engine: str
    iftype: str
    #: ``none``, ``bridge`` or ``interface``.
    net_type: str
    #: By the key in the configuration; only those that it has.
    sections: Mapping[str, object] = field(factory=dict)
    #: What every attachment of the network is to have, as in :class:`Attachment`.
    mtu: int | None = None
    bandwidth: Bandwidth | None = None

    def section(self, kind: type[_Section]) -> _Section:
        """Return the section of class *kind*; where the configuration has none, its defaults."""
        for value in self.sections.values():
            if isinstance(value, kind):
                return value
        return kind()


@frozen(kw_only=True)
class Pod:
    """The Kubernetes pod that an attachment is made for, where the runtime tells."""

    namespace: str
    name: str
    uid: str = ""


@frozen(kw_only=True)
class Bandwidth:
    """Limits of an attachment, as the CNI conventions have them: seen from the container.

    Rates are in bits per second, bursts in bits; 0 is no limit.
    """

    #: Towards the container.
    ingress_rate: int = 0
    ingress_burst: int = 0
    #: From the container.
    egress_rate: int = 0
    egress_burst: int = 0


class SharedDirectory(ABC):
    """The directory that one container shares with the node, for the sockets of its ports.

    The container may write to it, so nothing below it is reached by a path that the container could
    bend with a symbolic link. Names are bare file names.
    """

    @property
    @abstractmethod
    def path(self) -> str:
        """Where it is on the node."""

    @abstractmethod
    def provide(self, *, user: str = "", group: str = "", sockets: bool = True) -> None:
        """Make the directory, mode 0750, where it does not exist.

        Before a switch is told of a socket in here: without *sockets* none shall be.

        The application in the container may run as *user*, who then owns it, or in *group*, which
        then may write to it (0770); names or numbers.

        Raises:
            CniError: when it cannot be made, or something else has its name.

        """

    @abstractmethod
    def socket(self, name: str) -> str:
        """Return the path by which a switch reaches the socket *name*; touches nothing.

        It leads to nothing but what has that name in here, whatever links the container makes, and
        fits into a socket's address (107 bytes). It is good once the directory is provided.

        Raises:
            CniError: 7 when the switch or the container could not reach the socket.

        """

    @abstractmethod
    def link(self, source: str, name: str) -> None:
        """Give the file *source*, a socket that a switch made elsewhere, the name *name* in here.

        Raises:
            CniError: when the two are not on one file system, or the name is taken.

        """

    @abstractmethod
    def grant(self, name: str, *, user: str = "", group: str = "") -> None:
        """Let the application use the socket *name* that a switch made: mode 0660.

        It then belongs to *user* and *group*, where they are given; names or numbers.

        Raises:
            CniError: when it cannot be changed, or is no socket.

        """

    @abstractmethod
    def discard_stale(self, name: str) -> bool:
        """Remove the socket *name* if nobody listens on it any more; tell whether it was so."""

    @abstractmethod
    def make_way(self, name: str) -> None:
        """Do as :meth:`discard_stale`, for a switch that is about to make the socket *name*.

        Raises:
            CniError: when somebody listens on it, or something else has the name.

        """


@frozen(kw_only=True, slots=False)
class Attachment:
    """One interface of one container on one network: what an engine is asked to make."""

    network: str
    container_id: str
    #: CNI_IFNAME. With *network* and *container_id* it is the key of the attachment.
    ifname: str
    #: Path of the container's network namespace.
    netns: str
    #: Name of the interface in the container: ``if0name`` where the configuration has it, else
    #: *ifname*.
    interface: str
    #: The MAC address that the container's end must have; None leaves it to :meth:`mac_for`.
    mac: str | None = None
    #: In bytes; None leaves it to the engine.
    mtu: int | None = None
    # What IPAM gives: itself, or a function that waits for it.
    _ips: tuple[IPConfig, ...] | Callable[[], tuple[IPConfig, ...]] = field(default=(), alias="ips")
    _routes: tuple[Route, ...] | Callable[[], tuple[Route, ...]] = field(default=(), alias="routes")
    _dns: DNS | Callable[[], DNS] = field(factory=DNS, alias="dns")
    pod: Pod | None = None
    bandwidth: Bandwidth | None = None
    #: What the request says beside the configuration: ``args.cni``, else CNI_ARGS. Keys are in
    #: lower case; values are the pod's choice: an engine uses those that its configuration opens.
    args: Mapping[str, str] = field(factory=dict)
    #: For sockets. It exists once the engine has asked for it; the runtime removes it.
    directory: SharedDirectory | None = field(default=None, eq=False, repr=False)

    @property
    def ips(self) -> tuple[IPConfig, ...]:
        """Addresses that IPAM gave, empty without IPAM.

        The IPAM plugin runs beside :meth:`HostEngine.add`. Who reads these, the :attr:`routes` or
        the :attr:`dns` waits for it: read late, and hold no lock meanwhile.

        Raises:
            CniError: the plugin's error; leave it to the runtime.

        """
        return self._ips() if callable(self._ips) else self._ips

    @property
    def routes(self) -> tuple[Route, ...]:
        """Routes that IPAM gave; see :attr:`ips`."""
        return self._routes() if callable(self._routes) else self._routes

    @property
    def dns(self) -> DNS:
        """The configuration's name servers, else IPAM's; see :attr:`ips`."""
        return self._dns() if callable(self._dns) else self._dns

    @cached_property
    def id(self) -> str:
        """The attachment's id, see :func:`attachment_id`."""
        return attachment_id(self.network, self.container_id, self.ifname)

    def mac_for(self, end: Literal["container", "host"]) -> str:
        """Return the MAC address of one *end*: the requested one, else :func:`mac_address`."""
        if end == "container" and self.mac:
            return self.mac
        return mac_address(self.id, end)


@frozen(kw_only=True)
class Memif:
    """A shared memory packet interface, from the container's point of view."""

    #: Who the container is: the ``server`` makes the socket, the ``client`` connects to it.
    role: Literal["server", "client"]
    #: Path of the socket on the node; ``@NAME`` is an abstract socket in the container's network
    #: namespace.
    socket: str
    mode: Literal["ethernet", "ip", "inject-punt"] = "ethernet"
    #: Tells the interfaces on one socket apart.
    id: int = 0
    #: Both ends must have the same.
    secret: str = field(default="", repr=False)
    #: How many receive queues the container must have at least: the switch may use any of them,
    #: and what it puts into one that does not exist is lost.
    rx_queues: int = 1
    #: How many transmit queues it may have at most.
    tx_queues: int = 1
    #: Entries of a ring, a power of two.
    ring_size: int = 1024
    #: Bytes of a packet buffer.
    buffer_size: int = 2048
    zero_copy: bool = False


@frozen(kw_only=True)
class VhostUser:
    """A vhost-user interface, from the container's point of view."""

    #: Who the container is: the ``server`` makes the socket, the ``client`` connects to it.
    mode: Literal["server", "client"]
    #: Path of the socket on the node.
    socket: str
    #: Pairs of queues.
    queues: int = 1


@frozen(kw_only=True)
class HostPort:
    """What a host engine made. It is stored, and given back to ``check``."""

    #: The port's name in the switch.
    name: str
    #: Of the container's end.
    mac: str = ""
    #: In bytes, of the container's end; 0 where it is not known.
    mtu: int = 0
    #: Nothing but the gateway is on the link, the container's own subnet included (a routed port).
    point_to_point: bool = False
    #: The host's interfaces that belong into the CNI result, such as the bridge and the veth's end.
    interfaces: tuple[Interface, ...] = ()
    #: Routes that the container needs for this port, beside those that IPAM gave.
    routes: tuple[Route, ...] = ()
    #: The :meth:`HostEngine.generation` of the switch that it was made in: in another one it has to
    #: be looked for.
    generation: str = ""
    #: Where the port is one of these.
    memif: Memif | None = None
    vhost_user: VhostUser | None = None

    @property
    def socket(self) -> str:
        """Path of the port's socket on the node, empty for a port that has none."""
        port = self.memif or self.vhost_user
        return port.socket if port else ""


class Lifeline(NamedTuple):
    """Breaks when a switch ends."""

    #: It belongs to whoever asked for it, and is closed by that one.
    descriptor: int
    #: What poll(2) says of it when the switch has ended, such as POLLRDHUP.
    events: int


@frozen(kw_only=True)
class Handoff:
    """What the container needs to use its port, from the container's point of view."""

    interface: str
    iftype: str
    net_type: str
    mac: str = ""
    mtu: int = 0
    #: See :attr:`HostPort.point_to_point`.
    point_to_point: bool = False
    #: With *net_type* ``bridge``: the bridge in the container, as the configuration names it.
    bridge: str = ""
    ips: tuple[IPConfig, ...] = ()
    routes: tuple[Route, ...] = ()
    dns: DNS = field(factory=DNS)
    #: Where the port is one of these.
    memif: Memif | None = None
    vhost_user: VhostUser | None = None

    @property
    def socket(self) -> str:
        """Path of the port's socket on the node, empty for a port that has none."""
        port = self.memif or self.vhost_user
        return port.socket if port else ""


def _no_directory(path: str) -> SharedDirectory:
    raise LookupError(f"nobody gave this node its shared directories, such as {path}")


@define(kw_only=True)
class Node:
    """What an engine gets from the node that it runs on."""

    #: The table ``[engines.NAME]`` of the node's settings file, as read.
    settings: Mapping[str, Any] = field(factory=dict)
    #: ``lock(name)`` is a context manager that excludes everybody else on this node who asks for
    #: the same name, other processes included. Take it around work on what attachments share.
    lock: Callable[[str], AbstractContextManager[object]]
    #: Return the shared directory of that path, for sockets that :meth:`HostEngine.add` put there.
    directory: Callable[[str], SharedDirectory] = field(default=_no_directory)


class HostEngine(ABC):
    """Drives one kind of switch on the node.

    Methods raise :class:`~userspace_cni.cni.errors.CniError`: ``DataplaneUnavailable`` when the
    switch cannot be reached, ``DataplaneError`` when it refuses, ``InvalidConfig`` for a value that
    only the engine can judge. Several threads and several processes may call at once; the node
    daemon calls one object from many threads, for as long as it runs.
    """

    info: ClassVar[EngineInfo]

    def __init__(self, node: Node) -> None:
        """Keep *node*; open no connection before one is needed."""
        self.node = node

    @abstractmethod
    def status(self, conf: EngineConf) -> None:
        """Return if an :meth:`add` with *conf* could succeed now, else raise what is missing.

        The error says how to mend it.
        """

    @abstractmethod
    def add(self, attachment: Attachment, conf: EngineConf, undo: ExitStack) -> HostPort:
        """Make the port and connect it as *conf* says.

        Push the reverse of each step on *undo* right after the step: it is run when a later step
        fails. Tag everything with the attachment's id and network, so that :meth:`delete` and
        :meth:`list` find it without any other record.
        """

    @abstractmethod
    def delete(self, attachment_id: str, conf: EngineConf, netns: str | None) -> None:
        """Remove all that carries the tag of *attachment_id*, and shared things of ours left empty.

        Idempotent: what is gone already is no error. *netns* is the path of the container's network
        namespace where it still exists.
        """

    @abstractmethod
    def check(self, attachment: Attachment, conf: EngineConf, port: HostPort) -> None:
        """Raise ``CheckFailed`` if the host's side is not as :meth:`add` left it."""

    @abstractmethod
    def list(self, network: str, conf: EngineConf) -> Iterable[str]:
        """Return the ids of the attachments of *network* whose tags the dataplane carries now."""

    # What follows judges a configuration before anything is touched.

    def problems(self, conf: EngineConf) -> Iterable[CniError]:  # noqa: ARG002
        """Return what is wrong with *conf* or with the node's settings so that no ADD can succeed.

        It is what no section's own rules can say, such as two keys that exclude each other; all are
        told at once. Every command asks for it first, also while the switch is down: ask no switch.
        """
        return ()

    def outline(self, conf: EngineConf) -> HostPort | None:  # noqa: ARG002
        """Return the port that :meth:`add` would make as far as *conf* tells, for the other end.

        Who serves the socket is what it is about: names and sockets stay empty. None is for an
        engine that does not say it in advance.
        """
        return None

    # What follows is the node daemon's, which lives longer than a switch. The defaults suit a
    # switch that keeps nothing in this process and loses nothing.

    def generation(self, conf: EngineConf) -> str:  # noqa: ARG002
        """Return a text that changes when the switch has restarted and lost what was made in it.

        Asked every few seconds: it should cost one short question. The empty text stands for a
        switch that does not restart, such as the kernel. :meth:`add` and :meth:`restore` tell the
        same in :attr:`HostPort.generation`.

        Raises:
            DataplaneUnavailable: when the switch cannot be reached now.

        """
        return ""

    def lifeline(self, conf: EngineConf) -> Lifeline | None:  # noqa: ARG002
        """Return what breaks when the switch ends, so that its restart is noticed at once.

        None where nothing does: then :meth:`generation` tells when it is asked next.

        Raises:
            DataplaneUnavailable: when the switch cannot be reached now.

        """
        return None

    def restore(
        self,
        attachment: Attachment,
        conf: EngineConf,
        port: HostPort,  # noqa: ARG002
        undo: ExitStack,
    ) -> HostPort:
        """Put back what the switch has lost of *port*, which :meth:`add` made; return it.

        Called after :meth:`check` has failed, while the container runs and holds its end. The
        container's end stays as it is wherever that is possible, and no name, address or socket
        path changes. By default, what is left is deleted and the port is added again.
        """
        self.delete(attachment.id, conf, None)
        return self.add(attachment, conf, undo)

    def close(self) -> None:  # noqa: B027  most engines keep nothing open
        """Close what is kept open between requests, such as a connection to the switch."""


class ContainerEngine(ABC):
    """Knows how the container's side consumes a port."""

    info: ClassVar[EngineInfo]

    #: Where :meth:`add` and :meth:`check` run: on the ``node``, inside the container's network
    #: namespace, or in the ``container`` itself, called by the agent.
    where: ClassVar[Literal["node", "container"]]

    def problems(self, conf: EngineConf, port: HostPort | None) -> Iterable[CniError]:  # noqa: ARG002
        """Return what is wrong with *conf*, as :meth:`.HostEngine.problems` does.

        *port* is the host's :meth:`.HostEngine.outline`.
        """
        return ()

    @abstractmethod
    def prepare(self, attachment: Attachment, conf: EngineConf, port: HostPort) -> Handoff:
        """Return what the container needs to use *port*; touches nothing."""

    @abstractmethod
    def add(self, handoff: Handoff) -> None:
        """Configure the container's end."""

    @abstractmethod
    def check(self, handoff: Handoff) -> None:
        """Raise ``CheckFailed`` if the container's end is not as :meth:`add` left it.

        *handoff* has the addresses, routes and MAC that the runtime's ``prevResult`` tells now.
        """

    def restore(self, handoff: Handoff) -> None:
        """Put back what :meth:`check` misses of what :meth:`add` has made of the same *handoff*.

        Called by the agent. What is still there stays, and so does what the container's operator
        has added, wherever that is possible. By default, all is added again.
        """
        self.add(handoff)

    def delete(self, handoff: Handoff) -> None:  # noqa: B027  most interfaces go with their port
        """Take away what :meth:`add` made in the container, when its port is withdrawn.

        Called by the agent in a container that goes on running; gone already is no error.
        """
