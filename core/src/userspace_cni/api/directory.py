"""The directory that a container shares with the node."""

from __future__ import annotations

from abc import ABC, abstractmethod


class SharedDirectory(ABC):
    """The directory that one container shares with the node, for the sockets of its ports.

    The container can write to it and create symbolic links in it, so engines must not use paths
    below it themselves. All names are bare file names.
    """

    @property
    @abstractmethod
    def path(self) -> str:
        """The path of the directory on the node."""

    @abstractmethod
    def provide(self, *, user: str = "", group: str = "", sockets: bool = True) -> None:
        """Create the directory with mode 0750, if it does not exist.

        Call this before you give the switch the path of a socket in the directory.

        Args:
            user: The user of the application in the container, who then owns the directory; a name
                or a number.
            group: The group of the application, which may then write to the directory (mode 0770);
                a name or a number.
            sockets: Whether the directory is for sockets.

        Raises:
            CniError: it cannot be created, or something else has its name.

        """

    @abstractmethod
    def socket(self, name: str) -> str:
        """Return the path by which a switch reaches the socket *name*; change nothing.

        The path only leads to the file *name* in this directory, even if the container creates
        links, and fits into a socket's address (107 bytes). It is valid after :meth:`provide`.

        Args:
            name: The name of the socket.

        Raises:
            CniError: 7 when the switch or the container could not reach the socket.

        """

    @abstractmethod
    def take(self, source: str, name: str) -> None:
        """Move a socket that a switch created elsewhere into the directory.

        Args:
            source: The path of the socket.
            name: Its new name in the directory.

        Raises:
            CniError: the directories are on different file systems, or the name is taken.

        """

    @abstractmethod
    def grant(self, name: str, *, user: str = "", group: str = "") -> None:
        """Let the application use a socket that the switch created: set its mode to 0660.

        Args:
            name: The name of the socket.
            user: The new owner of the socket, if given; a name or a number.
            group: The new group of the socket, if given; a name or a number.

        Raises:
            CniError: it cannot be changed, or is not a socket.

        """

    @abstractmethod
    def is_served(self, name: str) -> bool:
        """Return whether somebody listens on the socket *name*; the listener does not notice it.

        Args:
            name: The name of the socket.

        """

    @abstractmethod
    def discard_stale(self, name: str) -> bool:
        """Remove the socket *name* if nobody listens on it, and return whether that was the case.

        Args:
            name: The name of the socket.

        """

    @abstractmethod
    def make_way(self, name: str) -> None:
        """Call :meth:`discard_stale` for a switch that is about to create the socket *name*.

        Args:
            name: The name of the socket.

        Raises:
            CniError: somebody listens on the socket, or something else has the name.

        """
