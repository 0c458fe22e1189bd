"""Base class through which an engine's author describes the switch to the kit."""

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
    """One way in which a port can be damaged."""

    #: Description for messages, such as ``the port is set down``.
    what: str
    #: Causes the damage.
    cause: Callable[[], object]


class Switch(ABC):
    """A private instance of a switch; a context manager that starts and ends it."""

    #: Whether the switch is a program, which can be down or restarted; False for the kernel.
    is_program: ClassVar[bool] = True
    #: Whether the switch loses its ports when it restarts, so that they have to be restored.
    forgets: ClassVar[bool] = True

    @property
    def settings(self) -> Mapping[str, Any]:
        """The engine's settings for this switch, as in the table ``[engines.NAME]``."""
        return {}

    @property
    def netns(self) -> str:
        """Path of the engine's network namespace; empty for the namespace of this process."""
        return ""

    @abstractmethod
    def start(self) -> None:
        """Start the switch and return once it serves; also called after :meth:`kill`."""

    @abstractmethod
    def kill(self) -> None:
        """End the switch as a crash would; do nothing if it has ended already."""

    @abstractmethod
    def objects(self) -> Iterable[str]:
        """Return a text for each object that an attachment creates in the switch or the kernel.

        Include everything that an ADD creates outside of the shared directory: ports, bridges,
        addresses, interfaces. The kit compares the texts before and after, and shows differences.
        The switch is running when this is called.
        """

    def damages(self, attachment: Attachment, port: HostPort) -> Iterable[Damage]:  # noqa: ARG002
        """Return the ways in which the switch's part of *port* can be damaged.

        The kit causes each damage on a new port and expects ``check`` to notice it and ``restore``
        to repair it. It always tests the removal of the port as well.
        """
        return ()

    def container(self) -> AbstractContextManager[str]:
        """Create a container's network namespace and yield its path."""
        return netns.created()

    def __enter__(self) -> Self:
        """Start the switch."""
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        """End the switch."""
        self.kill()
