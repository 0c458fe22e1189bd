"""Choice between an IPAM engine in this process and an executable."""

from __future__ import annotations

import threading
from collections.abc import Collection
from typing import TYPE_CHECKING, TypeAlias

from userspace_cni import registry
from userspace_cni.api import CniError, IpamEngine
from userspace_cni.config.decoding import structure
from userspace_cni.executable import find
from userspace_cni.ipam.executable import Executable
from userspace_cni.log import logger

if TYPE_CHECKING:
    from userspace_cni.ipam.in_process import InProcess

#: The IPAM of one network, called on behalf of one request.
Ipam: TypeAlias = "Executable | InProcess"


class Chooser:
    """The IPAM engines of this process, each created at first use; thread-safe."""

    def __init__(self, allowed: Collection[str]) -> None:
        """Use engines only for the *allowed* values of ``ipam.type``."""
        self._allowed = allowed
        self._engines: dict[str, IpamEngine | None] = {}
        self._guard = threading.Lock()

    def choose(self, executable: Executable) -> Ipam:
        """Return the engine for the network, or the *executable* if there is no engine.

        If the engine does not accept the section ``ipam``, the executable is used, because it may
        be newer.

        Raises:
            CniError: if the engine cannot be loaded, or does not accept the section and there is
                no executable.

        """
        engine = self._engine(executable.type)
        if engine is None:
            return executable
        try:
            section: object = structure(executable.config.get("ipam"), engine.info.section, "ipam")
        except CniError as error:
            if find(executable.type, executable.path) is None:
                raise
            logger.info("ipam %s: the executable is used: %s", executable.type, error)
            return executable
        from userspace_cni.ipam.in_process import InProcess  # the daemon's alone

        return InProcess(engine=engine, instead_of=executable, section=section)

    def _engine(self, kind: str) -> IpamEngine | None:
        if kind not in self._allowed:
            return None
        with self._guard:
            if kind not in self._engines:
                found = registry.ipam_engine(kind)
                self._engines[kind] = registry.make(found) if found else None
            return self._engines[kind]
