"""The host engines of a runtime: one instance of each, created at first use."""

from __future__ import annotations

from collections.abc import Mapping
from threading import Lock
from typing import Any

from userspace_cni import config, registry
from userspace_cni.api import EngineConf, EngineContext, HostEngine
from userspace_cni.config import NetConf
from userspace_cni.log import logger
from userspace_cni.runtime.places import Places
from userspace_cni.runtime.shared import Shared


class Engines:
    """Creates host engines and closes them; thread-safe."""

    def __init__(self, shared: Shared, places: Places) -> None:
        """Give engines the locks of *shared* and the directories of *places*."""
        self._shared = shared
        self._places = places
        self._made: dict[str, HostEngine] = {}
        self._guard = Lock()

    @property
    def names(self) -> frozenset[str]:
        """The names of the host engines that have been used."""
        with self._guard:
            return frozenset(self._made)

    def get(self, name: str, kind: type[HostEngine]) -> HostEngine:
        """Return the host engine of class *kind*, called *name* in the configuration."""
        with self._guard:
            engine = self._made.get(name)
            if engine is None:
                context = EngineContext(
                    settings=self._shared.settings.of_engine(kind.info.name, kind.info.settings),
                    lock=lambda key: self._shared.locks.hold(f"engine {kind.info.name} {key}"),
                    directory=self._places.at,
                )
                engine = self._made[name] = registry.make(kind, context)
            return engine

    def of_host(self, raw: Mapping[str, Any]) -> tuple[HostEngine, EngineConf]:
        """Return the engine of a network's ``host`` part, and the part in the engine's form.

        Raises:
            CniError: if the engine is not installed or the part is invalid.

        """
        name = config.engine_name(NetConf(name="", host=raw), "host")
        kind = registry.host_engine(name)
        return self.get(name, kind), config.engine_conf(raw, "host", kind.info, {})

    def close(self) -> None:
        """Close all engines; errors are only logged."""
        for engine in self._made.values():
            try:
                engine.close()
            except (Exception, SystemExit):  # noqa: BLE001  an engine may raise anything
                logger.exception("host engine %r cannot be closed", engine.info.name)
