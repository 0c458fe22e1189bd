"""Observers of the daemon's work, for metrics and tracing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import NamedTuple


class Served(NamedTuple):
    """An answered request. Fields that the request did not contain are empty."""

    #: The CNI_COMMAND, or ``other`` if it is unknown.
    command: str
    network: str
    container_id: str
    ifname: str
    #: The host engine's name.
    engine: str
    #: Code of the CNI error, 0 for success.
    code: int
    seconds: float


class Observer:
    """Base class whose methods ignore every notification."""

    def serving(self, environ: Mapping[str, str]) -> AbstractContextManager[Mapping[str, str]]:
        """Wrap a request, including :meth:`request`; yield the environment to serve it with."""
        return nullcontext(environ)

    def phase(self, name: str) -> AbstractContextManager[object]:
        """Wrap the step *name* of a request or of the daemon's own work."""
        return nullcontext(name)

    def request(self, served: Served) -> None:
        """Record an answered request."""

    def reconciled(self, action: str, *, succeeded: bool) -> None:
        """Record an *action* of the daemon on an attachment: ``restore`` or ``remove``."""

    def replayed(self, outcome: str) -> None:
        """Record the *outcome* of a queued DEL: ``done``, ``failed``, ``bad`` or ``later``."""


def together(*others: Observer) -> Observer:
    """Return an observer that notifies all *others*."""
    match others:
        case ():
            return Observer()
        case (only,):
            return only
        case _:
            return _Observers(*others)


class _Observers(Observer):
    """Notifies any number of other observers."""

    def __init__(self, *others: Observer) -> None:
        """Notify *others*, in this order."""
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
