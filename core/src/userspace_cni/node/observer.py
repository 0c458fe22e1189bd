"""What the daemon tells about its work, to whoever measures it."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext


class Observer:
    """Is told, and forgets."""

    def phase(self, name: str) -> AbstractContextManager[object]:
        """Surround the step *name* of a request."""
        return nullcontext(name)

    def request(self, command: str, engine: str, code: int, seconds: float) -> None:
        """Note a request that is answered with error *code*, 0 for success."""

    def reconciled(self, action: str, *, succeeded: bool) -> None:
        """Note an *action* on one attachment that nobody asked for: ``restore`` or ``remove``."""

    def replayed(self, outcome: str) -> None:
        """Note the *outcome* of one queued DEL: ``done``, ``failed``, ``bad`` or ``later``."""

    def dataplane(self, engine: str, *, up: bool) -> None:
        """Note whether the switch of *engine* answers."""
