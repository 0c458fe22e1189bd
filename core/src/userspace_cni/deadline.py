"""How long the request that is being served may still take.

There is one deadline for all that it waits for, one thing after another: locks, IPAM plugins, the
API server. It is a context variable, as the engines wait for locks too.
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
    """Give the body *seconds*, or what is left of the deadline around it.

    They begin now, or at *since*, a time of the monotonic clock.
    """
    token = _current.set(min(_current.get(), (monotonic() if since is None else since) + seconds))
    try:
        yield
    finally:
        _current.reset(token)


@contextmanager
def extended(seconds: float) -> Iterator[None]:
    """Let the body, which undoes what has failed, end *seconds* after the deadline."""
    token = _current.set(_current.get() + seconds)
    try:
        yield
    finally:
        _current.reset(token)


def after(seconds: float = inf) -> float:
    """Return when a wait must end that may take *seconds* by itself; of the monotonic clock."""
    return min(_current.get(), monotonic() + seconds)


def left() -> float:
    """Return how many seconds are left; infinity where there is no deadline."""
    return _current.get() - monotonic()
