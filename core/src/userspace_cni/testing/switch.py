"""What the author of an engine tells the kit about the switch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, ClassVar, Self

from attrs import frozen

from userspace_cni import netns

if TYPE_CHECKING:
    from userspace_cni.api import Attachment, HostPort


@frozen
class Damage:
    """One way in which a port can be wrong."""

    #: For people: ``the port is set down``.
    what: str
    #: Does it.
    cause: Callable[[], object]


class Switch(ABC):
    """A private instance of a switch, for one test; a context manager that ends it."""

    #: Whether the switch is a program, which can be down and be restarted. The kernel cannot.
    is_program: ClassVar[bool] = True
    #: Whether a restarted switch has lost its ports, so that they have to be restored.
    forgets: ClassVar[bool] = True

    @property
    def settings(self) -> Mapping[str, Any]:
        """The table ``[engines.NAME]`` of a node with this switch."""
        return {}

    @property
    def netns(self) -> str:
        """Path of the network namespace that the engine has to work in; empty: this process's."""
        return ""

    @abstractmethod
    def start(self) -> None:
        """Start it, and return once it serves. After :meth:`kill` it starts again."""

    @abstractmethod
    def kill(self) -> None:
        """End it as a crash does. It may have ended already."""

    @abstractmethod
    def objects(self) -> Iterable[str]:
        """Describe each object of the switch and of the node's kernel that an attachment may leave.

        Ports, bridges, addresses, interfaces: everything that an ADD makes outside of the shared
        directory. The texts are compared before and after, and shown when they differ. The switch
        is running when this is called.
        """

    def damages(self, attachment: Attachment, port: HostPort) -> Iterable[Damage]:  # noqa: ARG002
        """Return the ways in which the switch's part of *port* can be wrong.

        The contract causes each of them, on a port of its own, expects that ``check`` notices and
        that ``restore`` mends it. The port's removal is tried in any case.
        """
        return ()

    def container(self) -> AbstractContextManager[str]:
        """Make a container's network namespace and yield its path."""
        return netns.created()

    def __enter__(self) -> Self:
        """Start it."""
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        """End it."""
        self.kill()
