"""The two interfaces that an engine package implements, and what an engine says of itself.

The classes are announced by entry points of the groups :data:`HOST_ENGINES` and
:data:`CONTAINER_ENGINES`: see docs/engine-contract.md.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, ExitStack
from typing import Any, ClassVar, Literal, NamedTuple, TypeVar

from attrs import define, field, frozen

from userspace_cni.api.directory import SharedDirectory
from userspace_cni.api.info import EngineInfo
from userspace_cni.api.model import Attachment, Bandwidth, Handoff, HostPort
from userspace_cni.cni.errors import CniError

#: Entry point group of :class:`HostEngine` classes.
HOST_ENGINES = "userspace_cni.host_engines"
#: Entry point group of :class:`ContainerEngine` classes.
CONTAINER_ENGINES = "userspace_cni.container_engines"

_Section = TypeVar("_Section")


@frozen(kw_only=True)
class EngineConf:
    """The ``host`` or ``container`` part of a network configuration, checked and structured."""

    #: The name of the engine, not the alias that the configuration may have.
    engine: str
    #: One of :attr:`EngineInfo.interface_types`.
    iftype: str
    #: ``none``, ``bridge`` or ``interface``.
    net_type: str
    #: By the key in the configuration; only those that it has.
    sections: Mapping[str, object] = field(factory=dict)
    #: The MTU of every attachment of the network, in bytes; None leaves it to the engine.
    mtu: int | None = None
    #: The limits of every attachment of the network; None where it has none.
    bandwidth: Bandwidth | None = None

    def section(self, kind: type[_Section]) -> _Section:
        """Return the section of class *kind*; where the configuration has none, its defaults."""
        for value in self.sections.values():
            if isinstance(value, kind):
                return value
        return kind()


class Lifeline(NamedTuple):
    """Breaks when a switch ends."""

    #: It belongs to whoever asked for it, and is closed by that one.
    descriptor: int
    #: What poll(2) says of it when the switch has ended, such as POLLRDHUP.
    events: int


def _no_directory(path: str) -> SharedDirectory:
    raise LookupError(f"nobody gave this node its shared directories, such as {path}")


@define(kw_only=True)
class EngineContext:
    """What an engine gets from the node that it runs on."""

    #: The table ``[engines.NAME]`` of the node's settings file: an object of the class
    #: :attr:`EngineInfo.settings`, None for an engine that has none.
    settings: Any = None
    #: ``lock(name)`` is a context manager that excludes everybody else on this node who asks for
    #: the same name, other processes included. Take it around work on what attachments share. The
    #: thread that holds a lock may take it again.
    lock: Callable[[str], AbstractContextManager[object]]
    #: Return the shared directory of that path, for sockets that :meth:`HostEngine.add` put there.
    directory: Callable[[str], SharedDirectory] = field(default=_no_directory)


class HostEngine(ABC):
    """Drives one kind of switch on the node.

    Methods raise :class:`~userspace_cni.api.CniError`: ``DataplaneUnavailable`` when the
    switch cannot be reached, ``DataplaneError`` when it refuses, ``InvalidConfig`` for a value that
    only the engine can judge. Several threads and several processes may call at once; the node
    daemon calls one object from many threads, for as long as it runs.
    """

    #: What the engine can do; every class must set it.
    info: ClassVar[EngineInfo]

    def __init__(self, context: EngineContext) -> None:
        """Keep *context*; open no connection before one is needed."""
        self.context = context

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
        :meth:`attachments` find it without any other record.
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
    def attachments(self, network: str, conf: EngineConf) -> Iterable[str]:
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

    # What follows is the daemon's, which lives longer than a switch. The defaults suit a
    # switch that keeps nothing in this process and loses nothing.

    def switch_key(self, conf: EngineConf) -> str:
        """Return a text that is the same for all networks on one switch, such as its socket's path.

        The daemon asks each switch once, however many networks it has. By default, networks share a
        switch if their ``host`` parts are the same. An engine that has one switch on a node
        returns the empty text. It is asked of every network: ask no switch.
        """
        return repr(conf)

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

    #: What the engine can do; every class must set it.
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
