"""What the daemon tells about its work, to whoever measures or traces it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import NamedTuple


class Served(NamedTuple):
    """A request that has been answered. What it did not tell is empty."""

    #: The CNI_COMMAND, ``other`` where there is none of that name.
    command: str
    network: str
    container_id: str
    ifname: str
    #: The host engine's name.
    engine: str
    #: That of the CNI error, 0 for success.
    code: int
    seconds: float


class Observer:
    """Is told, and forgets."""

    def serving(self, environ: Mapping[str, str]) -> AbstractContextManager[Mapping[str, str]]:
        """Surround a request, :meth:`request` included; give the environment to serve it with."""
        return nullcontext(environ)

    def phase(self, name: str) -> AbstractContextManager[object]:
        """Surround the step *name* of a request, or of work that nobody asked for."""
        return nullcontext(name)

    def request(self, served: Served) -> None:
        """Note a request."""

    def reconciled(self, action: str, *, succeeded: bool) -> None:
        """Note an *action* on one attachment that nobody asked for: ``restore`` or ``remove``."""

    def replayed(self, outcome: str) -> None:
        """Note the *outcome* of one queued DEL: ``done``, ``failed``, ``bad`` or ``later``."""


def together(*others: Observer) -> Observer:
    """Return what tells all *others*; often there is one, or none."""
    match others:
        case ():
            return Observer()
        case (only,):
            return only
        case _:
            return _Observers(*others)


class _Observers(Observer):
    """Tells any number of others."""

    def __init__(self, *others: Observer) -> None:
        """Tell *others*, in this order."""
        self._others = others

    @contextmanager
    def serving(self, environ: Mapping[str, str]) -> Iterator[Mapping[str, str]]:
        """See :meth:`Observer.serving`."""
        with ExitStack() as stack:
            for other in self._others:
                environ = stack.enter_context(other.serving(environ))
            yield environ

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """See :meth:`Observer.phase`."""
        with ExitStack() as stack:
            for other in self._others:
                stack.enter_context(other.phase(name))
            yield

    def request(self, served: Served) -> None:
        """See :meth:`Observer.request`."""
        for other in self._others:
            other.request(served)

    def reconciled(self, action: str, *, succeeded: bool) -> None:
        """See :meth:`Observer.reconciled`."""
        for other in self._others:
            other.reconciled(action, succeeded=succeeded)

    def replayed(self, outcome: str) -> None:
        """See :meth:`Observer.replayed`."""
        for other in self._others:
            other.replayed(outcome)
