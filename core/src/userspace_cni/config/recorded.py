"""A network configuration in which nothing is judged: what was recorded, or what just came.

A record may be old, damaged or of a network that nobody would accept today, and what it made must
be found all the same. So what is missing in it, or is not what it should be, reads as absent.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from attrs import frozen

from userspace_cni.cni import result as cni_result
from userspace_cni.cni.result import Result
from userspace_cni.config.settings import LOG_LEVELS

_NEWEST = cni_result.VERSIONS[-1]


@frozen
class RecordedConf:
    """What can be read of a configuration without judging it."""

    #: The JSON object.
    raw: Mapping[str, Any]

    @property
    def host(self) -> Mapping[str, Any]:
        """The ``host`` part."""
        return self._object("host")

    @property
    def host_engine(self) -> str:
        """The name of the host engine."""
        return _text(self.host.get("engine"))

    @property
    def ipam_type(self) -> str:
        """The name of the IPAM plugin."""
        return _text(self._object("ipam").get("type"))

    @property
    def shared_dir(self) -> str | None:
        """See :attr:`.NetConf.shared_dir`."""
        value = self.raw.get("sharedDir")
        return value if isinstance(value, str) else None

    @property
    def kubeconfig(self) -> str:
        """See :attr:`.NetConf.kubeconfig`; empty where there is none."""
        return _text(self.raw.get("kubeconfig"))

    @property
    def runtime_config(self) -> Mapping[str, Any]:
        """What the runtime gave for this container."""
        return self._object("runtimeConfig")

    @property
    def previous(self) -> Result:
        """``prevResult``, empty where the plugin was the first.

        Raises:
            CniError: 6 when it is no result of its version.

        """
        raw = self._object("prevResult")
        stated = raw.get("cniVersion") or self.raw.get("cniVersion")
        if not raw:
            return Result()
        return cni_result.load(raw, stated if stated in cni_result.VERSIONS else _NEWEST)

    @property
    def log_file(self) -> Path | None:
        """See :attr:`.NetConf.log_file`."""
        path = _text(self.raw.get("logFile"))
        return Path(path) if path.startswith("/") else None

    @property
    def log_level(self) -> str:
        """See :attr:`.NetConf.log_level`; empty where there is none."""
        level = _text(self.raw.get("logLevel")).lower()
        return level if level in LOG_LEVELS else ""

    def _object(self, key: str) -> Mapping[str, Any]:
        value = self.raw.get(key)
        return value if isinstance(value, Mapping) else {}


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""
