"""Who serves a network's IPAM: an engine of this process, or an executable."""

from __future__ import annotations

import threading
from collections.abc import Collection

from userspace_cni import registry
from userspace_cni.api import CniError, IpamEngine
from userspace_cni.config.decoding import structure
from userspace_cni.executable import find
from userspace_cni.ipam.executable import Executable
from userspace_cni.ipam.in_process import InProcess
from userspace_cni.log import logger


class Chooser:
    """The IPAM engines of this process, each made when it is needed first."""

    def __init__(self, allowed: Collection[str]) -> None:
        """Use engines for the *allowed* values of ``ipam.type`` alone."""
        self._allowed = allowed
        self._engines: dict[str, IpamEngine | None] = {}
        self._guard = threading.Lock()

    def choose(self, executable: Executable) -> Executable | InProcess:
        """Return the engine of the network, or else the *executable*.

        A section that the engine cannot read is left to the executable, which may be newer.

        Raises:
            CniError: the engine cannot be loaded, or it cannot read the section and there is no
                executable.

        """
        engine = self._engine(executable.type)
        if engine is None:
            return executable
        try:
            section: object = structure(executable.config.get("ipam"), engine.info.section, "ipam")
        except CniError as error:
            if find(executable.type, executable.path) is None:
                raise
            logger.info("ipam %s is left to the executable: %s", executable.type, error)
            return executable
        return InProcess(engine=engine, instead_of=executable, section=section)

    def _engine(self, kind: str) -> IpamEngine | None:
        if kind not in self._allowed:
            return None
        with self._guard:
            if kind not in self._engines:
                found = registry.ipam_engine(kind)
                self._engines[kind] = registry.make(found) if found else None
            return self._engines[kind]
