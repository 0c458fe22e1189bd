"""The directory that a container shares with the node."""

from __future__ import annotations

from abc import ABC, abstractmethod


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
    def take(self, source: str, name: str) -> None:
        """Move the file *source*, a socket that a switch made elsewhere, in here as *name*.

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
    def is_served(self, name: str) -> bool:
        """Tell whether somebody listens on the socket *name*, who does not notice the look."""

    @abstractmethod
    def discard_stale(self, name: str) -> bool:
        """Remove the socket *name* if nobody listens on it any more; tell whether it was so."""

    @abstractmethod
    def make_way(self, name: str) -> None:
        """Do as :meth:`discard_stale`, for a switch that is about to make the socket *name*.

        Raises:
            CniError: when somebody listens on it, or something else has the name.

        """
