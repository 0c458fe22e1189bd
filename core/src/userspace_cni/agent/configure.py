"""Configures the container's end of each hand-over, once or repeatedly."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress

from userspace_cni import application, registry
from userspace_cni.api import ContainerEngine
from userspace_cni.cni.errors import CheckFailed, CniError
from userspace_cni.handover import Document
from userspace_cni.log import logger


class Configurator:
    """Lets the container engines configure the hand-overs; may be applied repeatedly."""

    def __init__(self, default_engine: str) -> None:
        """Use *default_engine* for hand-overs that name no engine."""
        self._default = default_engine
        #: The documents that are configured, by interface.
        self._done: dict[str, Document] = {}
        #: The last message about each interface that is not configured.
        self._said: dict[str, str] = {}

    def apply(self, documents: Iterable[Document], *, withdraw: bool = True) -> list[str]:
        """Configure *documents*; interfaces that are already correct stay untouched.

        With *withdraw*, remove the interfaces that this object configured and that are not in
        *documents*. Return the names of the interfaces that could not be configured; the log has
        the reasons.
        """
        wanted = {document.handoff.interface: document for document in documents}
        for interface in self._done.keys() - wanted.keys() if withdraw else ():
            self._remove(self._done.pop(interface))
        return [name for name, document in wanted.items() if not self._put(name, document)]

    def _put(self, name: str, document: Document) -> bool:
        known = self._done.get(name)
        try:
            if known is not None and not _is_same(known, document):
                self._done.pop(name)
                self._remove(known)
                known = None
            self._ensure(name, document, new=known is None)
            self._done[name] = document
            self._said.pop(name, None)
        except CniError as error:
            # The switch in the container may start slowly: log each message once.
            if self._said.get(name) != str(error):
                logger.error("%s: %s", name, error)
            self._said[name] = str(error)
            return False
        return True

    def _ensure(self, name: str, document: Document, *, new: bool) -> None:
        engine = self._engine(document)
        if engine is None:
            if new:
                logger.info("%s: %s; the application configures itself", name, summary(document))
            return
        try:
            engine.check(document.handoff)
        except CheckFailed as difference:
            logger.info("%s: %s", name, difference)
        else:
            return
        work, done = (engine.add, "configured") if new else (engine.restore, "restored")
        try:
            work(document.handoff)
        except CniError:
            # An interface that is half configured could be taken for a complete one.
            with suppress(CniError):
                engine.delete(document.handoff)
            raise
        logger.info("%s: %s, %s", name, done, summary(document))

    def _remove(self, document: Document) -> None:
        name = document.handoff.interface
        try:
            engine = self._engine(document)
            if engine is not None:
                engine.delete(document.handoff)
        except CniError as error:
            logger.error("%s is withdrawn and cannot be taken away: %s", name, error)
        else:
            logger.info("%s: withdrawn", name)

    def _engine(self, document: Document) -> ContainerEngine | None:
        name = document.engine or self._default
        if name == application.NAME:
            return None
        engine = registry.make(registry.container_engine(name))
        # Other engines have done their work on the node.
        return engine if engine.where == "container" else None


def _is_same(one: Document, other: Document) -> bool:
    """Return whether both are the same to an engine; a file may be rewritten without a change."""
    return one.engine == other.engine and one.handoff == other.handoff


def summary(document: Document) -> str:
    """Return a short description of *document*, without its secret."""
    handoff = document.handoff
    words = [handoff.iftype, handoff.port.role, handoff.socket, handoff.mac]
    return " ".join([*filter(None, words), *(str(ip.address) for ip in handoff.ips)])
