"""The addresses that an ADD allocates, until it is known whether it succeeds."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import suppress
from typing import Protocol, Self

from userspace_cni.cni.errors import CniError
from userspace_cni.cni.result import Result
from userspace_cni.log import logger


class Freer(Protocol):
    """Whoever can free again what was allocated."""

    def delete(self) -> None:
        """Free it; raises CniError."""


class Allocation(ABC):
    """The addresses of one attachment, for one thread. A context manager."""

    def __init__(self, ipam: Freer) -> None:
        """Allocate nothing yet; *ipam* frees what :meth:`begin` has allocated."""
        self._freer = ipam
        self._begun = False
        self._outcome: Result | CniError | None = None

    def __enter__(self) -> Self:
        return self

    @abstractmethod
    def __exit__(self, *_: object) -> None: ...

    @abstractmethod
    def _begin(self) -> None: ...

    @abstractmethod
    def _wait(self) -> Result: ...

    def begin(self) -> None:
        """Begin to allocate. Only from now on there may be something to :meth:`undo`."""
        self._begun = True
        self._begin()

    def result(self) -> Result:
        """Return the addresses, once they are there.

        Raises:
            CniError: the plugin's own error, or 105 when it does not behave as one.

        """
        if self._outcome is None:
            try:
                self._outcome = self._wait()
            except CniError as error:
                self._outcome = error
        if isinstance(self._outcome, CniError):
            raise self._outcome
        return self._outcome

    @property
    def failed(self) -> bool:
        """Whether no address was given; waits for it, if it has begun."""
        if self._begun:
            with suppress(CniError):
                self.result()
        return isinstance(self._outcome, CniError)

    def undo(self) -> None:
        """Free what was allocated, if anything.

        Raises:
            CniError: it cannot be freed.

        """
        if not self._begun:
            return
        if self.failed:
            # It may have allocated something all the same (SPEC, section 4). That this cannot be
            # undone by a plugin which does not work anyway is no reason to remember the attachment:
            # the runtime's own DEL calls it again.
            try:
                self._freer.delete()
            except CniError as error:
                logger.warning("IPAM DEL after a failed IPAM ADD: %s", error)
        else:
            self._freer.delete()
