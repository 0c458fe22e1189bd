"""Deadline of the current request.

One deadline covers everything that a request waits for: locks, IPAM plugins, the API server. It is
a context variable, so that it also applies when engines wait for locks.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from math import inf
from time import monotonic

_current: ContextVar[float] = ContextVar("deadline", default=inf)


@contextmanager
def within(seconds: float, since: float | None = None) -> Iterator[None]:
    """Set the deadline of the body; an earlier deadline around it remains in force.

    Args:
        seconds: how long the body may take.
        since: when the time begins, on the monotonic clock; now if None.

    """
    token = _current.set(min(_current.get(), (monotonic() if since is None else since) + seconds))
    try:
        yield
    finally:
        _current.reset(token)


@contextmanager
def extended(seconds: float) -> Iterator[None]:
    """Extend the deadline by *seconds* for the body, which undoes a failed request."""
    token = _current.set(_current.get() + seconds)
    try:
        yield
    finally:
        _current.reset(token)


def after(seconds: float = inf) -> float:
    """Return when a wait of at most *seconds* must end, on the monotonic clock."""
    return min(_current.get(), monotonic() + seconds)


def left() -> float:
    """Return how many seconds are left; infinity without a deadline."""
    return _current.get() - monotonic()
