"""The two classes that an engine package implements: host engine and container engine.

The package announces them by entry points of the groups :data:`HOST_ENGINES` and
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
    """The ``host`` or ``container`` part of a network configuration, after all checks."""

    #: The name of the engine, also if the configuration uses an alias.
    engine: str
    #: One of :attr:`EngineInfo.interface_types`.
    iftype: str
    #: ``none``, ``bridge`` or ``interface``.
    net_type: str
    #: The sections that the configuration has, by their keys.
    sections: Mapping[str, object] = field(factory=dict)
    #: The MTU of every attachment of the network, in bytes; None: the engine decides.
    mtu: int | None = None
    #: The limits of every attachment of the network; None if it has none.
    bandwidth: Bandwidth | None = None

    def section(self, kind: type[_Section]) -> _Section:
        """Return the section of class *kind*, or one with defaults if the configuration has none.

        Args:
            kind: One of the classes in :attr:`EngineInfo.sections`.

        """
        for value in self.sections.values():
            if isinstance(value, kind):
                return value
        return kind()


class Lifeline(NamedTuple):
    """A descriptor that shows when a switch ends."""

    #: The descriptor. It belongs to the caller, who closes it.
    descriptor: int
    #: The events that poll(2) reports for it when the switch has ended, such as POLLRDHUP.
    events: int


def _no_directory(path: str) -> SharedDirectory:
    raise LookupError(f"nobody gave this node its shared directories, such as {path}")


@define(kw_only=True)
class EngineContext:
    """What core provides to an engine on a node."""

    #: The table ``[engines.NAME]`` of the node's settings file: an object of the class
    #: :attr:`EngineInfo.settings`, or None for an engine without settings.
    settings: Any = None
    #: ``lock(name)`` is a context manager that holds the lock *name*, which works between all
    #: threads and processes on the node. Hold it while you change what attachments share. The
    #: thread that holds a lock may take it again.
    lock: Callable[[str], AbstractContextManager[object]]
    #: ``directory(path)`` returns the shared directory with that path, for sockets that
    #: :meth:`HostEngine.add` put there.
    directory: Callable[[str], SharedDirectory] = field(default=_no_directory)


class HostEngine(ABC):
    """Drives one type of switch on the node.

    Methods raise a :class:`~userspace_cni.api.CniError`: :class:`DataplaneUnavailable` when the
    switch cannot be reached, :class:`DataplaneError` when it refuses a request, and
    :class:`InvalidConfig` for a value that only the engine can check. Several threads and processes
    may call an engine at the same time: the daemon calls one object from many threads, for as long
    as it runs.
    """

    #: What the engine can do; every class must set it.
    info: ClassVar[EngineInfo]

    def __init__(self, context: EngineContext) -> None:
        """Store *context*. Do not open connections yet.

        Args:
            context: Settings, locks and shared directories of the node.

        """
        self.context = context

    @abstractmethod
    def status(self, conf: EngineConf) -> None:
        """Return if an :meth:`add` with *conf* could succeed now.

        Change nothing: :meth:`restore` is the method that repairs.

        Args:
            conf: The ``host`` part of the network.

        Raises:
            DataplaneUnavailable: something is missing; the error says how to fix it.

        """

    @abstractmethod
    def add(self, attachment: Attachment, conf: EngineConf, undo: ExitStack) -> HostPort:
        """Make a port, connect it, and return it.

        Tag everything with the attachment's id and network, so that :meth:`delete` and
        :meth:`attachments` find it without any other record.

        Args:
            attachment: What to make.
            conf: The ``host`` part of the network.
            undo: Push the reverse of each step right after the step. Core runs these steps in
                reverse order if a later step fails.

        Raises:
            DataplaneUnavailable: the switch cannot be reached; the ADD may be repeated.
            DataplaneError: the switch refuses a request.
            CniError: 103 when the port or the interface already exists.

        """

    @abstractmethod
    def delete(self, attachment_id: str, conf: EngineConf, netns: str | None) -> None:
        """Remove everything with the tag of *attachment_id*, and shared objects that become empty.

        Succeeds if nothing with the tag exists.

        Args:
            attachment_id: The id in the tags.
            conf: The ``host`` part of the network.
            netns: The path of the container's network namespace; None if it no longer exists.

        Raises:
            DataplaneUnavailable: the switch cannot be reached; core retries the removal later.
            DataplaneError: the switch refuses a request.

        """

    @abstractmethod
    def check(self, attachment: Attachment, conf: EngineConf, port: HostPort) -> None:
        """Verify that the host's side is as :meth:`add` left it.

        Args:
            attachment: The attachment, with its addresses.
            conf: The ``host`` part of the network.
            port: The port that :meth:`add` returned.

        Raises:
            CheckFailed: something is missing or differs.
            DataplaneUnavailable: the switch cannot be reached.

        """

    @abstractmethod
    def attachments(self, network: str, conf: EngineConf) -> Iterable[str]:
        """Return the ids of the attachments of *network* whose tags are in the dataplane now.

        Change nothing, as in :meth:`status`.

        Args:
            network: The name of the network.
            conf: The ``host`` part of the network.

        Raises:
            DataplaneUnavailable: the switch cannot be reached.

        """

    # Checks of a configuration before anything is changed.

    def problems(self, conf: EngineConf) -> Iterable[CniError]:  # noqa: ARG002
        """Return the errors in *conf* or in the node's settings that make every ADD fail.

        These are errors that the validators of a section cannot find, such as two keys that exclude
        each other. Core reports all of them together. It calls this first in every command, also
        while the switch is down, so do not query the switch.

        Args:
            conf: The ``host`` part of the network.

        """
        return ()

    def outline(self, conf: EngineConf) -> HostPort | None:  # noqa: ARG002
        """Return the port that :meth:`add` would make, as far as *conf* determines it.

        Core passes it to :meth:`.ContainerEngine.problems`. It shows which end serves the socket;
        names and paths are empty. None means that the engine cannot tell in advance.

        Args:
            conf: The ``host`` part of the network.

        """
        return None

    # Methods for the daemon, which runs longer than a switch. The defaults suit a switch that keeps
    # nothing in this process and loses nothing in a restart.

    def switch_key(self, conf: EngineConf) -> str:
        """Return a text that is the same for all networks on one switch, such as its socket's path.

        The daemon queries each switch once, however many networks it has. By default, networks
        share a switch if their ``host`` parts are the same. An engine with one switch per node
        returns an empty text. Do not query the switch.

        Args:
            conf: The ``host`` part of a network.

        """
        return repr(conf)

    def generation(self, conf: EngineConf) -> str:  # noqa: ARG002
        """Return a text that changes when the switch has restarted and lost its ports.

        The daemon calls this every few seconds, so it should cost one short request. An empty text
        means that the switch does not restart, as with the kernel. :meth:`add` and :meth:`restore`
        set :attr:`HostPort.generation` to the same text.

        Args:
            conf: The ``host`` part of a network.

        Raises:
            DataplaneUnavailable: the switch cannot be reached.

        """
        return ""

    def lifeline(self, conf: EngineConf) -> Lifeline | None:  # noqa: ARG002
        """Return a descriptor that shows when the switch ends, so that it is noticed at once.

        Without one (None), the daemon notices a restart at its next call of :meth:`generation`.

        Args:
            conf: The ``host`` part of a network.

        Raises:
            DataplaneUnavailable: the switch cannot be reached.

        """
        return None

    def restore(
        self,
        attachment: Attachment,
        conf: EngineConf,
        port: HostPort,  # noqa: ARG002
        undo: ExitStack,
    ) -> HostPort:
        """Restore what the switch lost of *port*, and return the port.

        Called after :meth:`check` failed, while the container runs and uses its end. Leave the
        container's end as it is if possible, and do not change any name, address or socket path. By
        default, the rest of the port is deleted and the port is added again.

        Args:
            attachment: The attachment, with its addresses.
            conf: The ``host`` part of the network.
            port: The port that :meth:`add` returned.
            undo: As in :meth:`add`.

        Raises:
            DataplaneUnavailable: the switch cannot be reached; the daemon tries again.
            DataplaneError: the switch refuses a request.

        """
        self.delete(attachment.id, conf, None)
        return self.add(attachment, conf, undo)

    def close(self) -> None:  # noqa: B027  most engines keep nothing open
        """Close everything that stays open between requests, such as a connection to the switch."""


class ContainerEngine(ABC):
    """Knows how the container uses a port."""

    #: What the engine can do; every class must set it.
    info: ClassVar[EngineInfo]

    #: Where :meth:`add` and :meth:`check` run: ``node`` is on the node, in the container's network
    #: namespace; ``container`` is in the container itself, called by the agent.
    where: ClassVar[Literal["node", "container"]]

    def problems(self, conf: EngineConf, port: HostPort | None) -> Iterable[CniError]:  # noqa: ARG002
        """Return the errors in *conf*, as :meth:`.HostEngine.problems` does.

        Args:
            conf: The ``container`` part of the network.
            port: The result of :meth:`.HostEngine.outline`.

        """
        return ()

    @abstractmethod
    def prepare(self, attachment: Attachment, conf: EngineConf, port: HostPort) -> Handoff:
        """Return what the container needs in order to use *port*; change nothing.

        Args:
            attachment: The attachment, with its addresses.
            conf: The ``container`` part of the network.
            port: The port that the host engine made.

        """

    @abstractmethod
    def add(self, handoff: Handoff) -> None:
        """Configure the container's end.

        Args:
            handoff: What :meth:`prepare` returned.

        Raises:
            CniError: it cannot be configured.

        """

    @abstractmethod
    def check(self, handoff: Handoff) -> None:
        """Verify that the container's end is as :meth:`add` left it.

        Args:
            handoff: What :meth:`prepare` returned, with the addresses, routes and MAC address in
                the runtime's ``prevResult``.

        Raises:
            CheckFailed: something is missing or differs.

        """

    def restore(self, handoff: Handoff) -> None:
        """Restore what :meth:`check` misses.

        Called by the agent. Leave what still exists, and what the container's operator added, if
        possible. By default, :meth:`add` is called again.

        Args:
            handoff: The same as in the earlier call of :meth:`add`.

        Raises:
            CniError: it cannot be configured.

        """
        self.add(handoff)

    def delete(self, handoff: Handoff) -> None:  # noqa: B027  most interfaces go with their port
        """Remove what :meth:`add` made in the container, after its port was withdrawn.

        Called by the agent while the container continues to run. Succeeds if nothing exists.

        Args:
            handoff: The same as in the earlier call of :meth:`add`.

        """
