"""Allocation of addresses by an ADD, with undo."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import suppress
from typing import Protocol, Self

from userspace_cni.cni.errors import CniError
from userspace_cni.cni.result import Result
from userspace_cni.log import logger


class Freer(Protocol):
    """An object that can free allocated addresses."""

    def delete(self) -> None:
        """Free the addresses; raise CniError."""


class Allocation(ABC):
    """The allocation for one attachment; a context manager, used by a single thread."""

    def __init__(self, ipam: Freer) -> None:
        """Prepare an allocation, which :meth:`begin` starts and *ipam* can free."""
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
        """Start to allocate. From now on there may be something to :meth:`undo`."""
        self._begun = True
        self._begin()

    def result(self) -> Result:
        """Wait for the addresses and return them.

        Raises:
            CniError: the plugin's error, or 105 if it violates the protocol.

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
        """Whether the allocation failed; waits for its end if it was started."""
        if self._begun:
            with suppress(CniError):
                self.result()
        return isinstance(self._outcome, CniError)

    def undo(self) -> None:
        """Free the addresses, if the allocation was started.

        Raises:
            CniError: if they cannot be freed.

        """
        if not self._begun:
            return
        if self.failed:
            # The plugin may have allocated something although it failed (SPEC, section 4). If it
            # also fails to free that, the attachment need not be remembered: the runtime's own DEL
            # calls the plugin again.
            try:
                self._freer.delete()
            except CniError as error:
                logger.warning("IPAM DEL after a failed IPAM ADD: %s", error)
        else:
            self._freer.delete()
