"""Cached view of the store, and suppression of repeated log messages."""

from __future__ import annotations

from threading import Lock
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from userspace_cni.store import Outline, Store


class Recorded:
    """The attachments in the store, which is read only if it has changed; thread-safe."""

    def __init__(self, store: Store) -> None:
        """Read *store*."""
        self._store = store
        self._lock = Lock()
        self._revision: object = None
        self._lines: list[Outline] = []

    def all(self) -> list[Outline]:
        """Return a summary of every attachment."""
        with self._lock:
            revision = self._store.revision()
            if revision is None or revision != self._revision:
                self._lines = self._store.outlines()
                self._revision = revision
                for line in self._lines:
                    if line.state == "damaged":
                        self._store.get(line.id)  # logs the damage once
            return self._lines

    def of(self, engine: str) -> list[Outline]:
        """Return the attachments of one host engine."""
        return [line for line in self.all() if line.engine == engine]


class News:
    """Remembers the last message about each subject, so that it is not logged again."""

    def __init__(self) -> None:
        """Begin without any messages."""
        self._said: dict[str, str] = {}

    def is_new(self, subject: str, text: str) -> bool:
        """Return whether *text* differs from the last message about *subject*; remember it."""
        new = self._said.get(subject) != text
        self._said[subject] = text
        return new

    def forget(self, subject: str) -> None:
        """Forget *subject*, so that its next message is new."""
        self._said.pop(subject, None)

    def keep(self, subjects: Iterable[str]) -> None:
        """Forget all subjects except *subjects*."""
        for subject in self._said.keys() - set(subjects):
            del self._said[subject]
