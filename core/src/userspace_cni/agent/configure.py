"""Configures the container's side of what was handed over: once, or for as long as it runs."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress

from userspace_cni import application, registry
from userspace_cni.api import ContainerEngine
from userspace_cni.cni.errors import CheckFailed, CniError
from userspace_cni.handover import Document
from userspace_cni.log import logger


class Configurator:
    """Brings the container's engines to what is handed over, as often as it is asked to."""

    def __init__(self, default_engine: str) -> None:
        """Use *default_engine* for hand-overs that name no engine."""
        self._default = default_engine
        #: What is in place, by interface.
        self._done: dict[str, Document] = {}
        #: What was said last of each interface that is not.
        self._said: dict[str, str] = {}

    def apply(self, documents: Iterable[Document], *, withdraw: bool = True) -> list[str]:
        """Put *documents* in place; what is so already stays untouched.

        With *withdraw*, take away what this object put there and is none of them any more. Return
        the names of the interfaces that are not in place; the log says why.
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
            # The switch in the container may take its time: one line is enough.
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
            # Half of an interface would pass for a whole one.
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
        # What is finished on the node needs nobody here.
        return engine if engine.where == "container" else None


def _is_same(one: Document, other: Document) -> bool:
    """Tell whether both tell an engine the same; a file may be written anew, and change nothing."""
    return one.engine == other.engine and one.handoff == other.handoff


def summary(document: Document) -> str:
    """Say in few words what *document* is; its secret is none of them."""
    handoff = document.handoff
    words = [handoff.iftype, handoff.port.role, handoff.socket, handoff.mac]
    return " ".join([*filter(None, words), *(str(ip.address) for ip in handoff.ips)])
