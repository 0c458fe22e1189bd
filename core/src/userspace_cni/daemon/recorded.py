"""What the store has, and what has been said of it: shared by all that look after attachments."""

from __future__ import annotations

from threading import Lock
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from userspace_cni.store import Outline, Store


class Recorded:
    """The attachments in the store, which is read only when somebody has written."""

    def __init__(self, store: Store) -> None:
        """Read *store*."""
        self._store = store
        self._lock = Lock()
        self._revision: object = None
        self._lines: list[Outline] = []

    def all(self) -> list[Outline]:
        """Return them all, in short."""
        with self._lock:
            revision = self._store.revision()
            if revision is None or revision != self._revision:
                self._lines = self._store.outlines()
                self._revision = revision
                for line in self._lines:
                    if line.state == "damaged":
                        self._store.get(line.id)  # which tells of it, once
            return self._lines

    def of(self, engine: str) -> list[Outline]:
        """Return those of one host engine."""
        return [line for line in self.all() if line.engine == engine]


class News:
    """Tells what is new from what has been said before."""

    def __init__(self) -> None:
        """Nothing has been said."""
        self._said: dict[str, str] = {}

    def is_new(self, subject: str, text: str) -> bool:
        """Tell whether *text* is another than was said of *subject* last."""
        new = self._said.get(subject) != text
        self._said[subject] = text
        return new

    def forget(self, subject: str) -> None:
        """Let the next text of *subject* be new."""
        self._said.pop(subject, None)

    def keep(self, subjects: Iterable[str]) -> None:
        """Forget all but *subjects*."""
        for subject in self._said.keys() - set(subjects):
            del self._said[subject]
