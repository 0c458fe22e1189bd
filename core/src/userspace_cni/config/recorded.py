"""A tolerant view of a network configuration, recorded or just received.

A record may be old or damaged, or its network may no longer be valid, but what it made must be
found. A value that is missing or has a wrong type therefore reads as absent.
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
    """A network configuration, read without checks."""

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
        """See :attr:`.NetConf.kubeconfig`; empty if there is none."""
        return _text(self.raw.get("kubeconfig"))

    @property
    def runtime_config(self) -> Mapping[str, Any]:
        """The ``runtimeConfig`` of this container."""
        return self._object("runtimeConfig")

    @property
    def previous(self) -> Result:
        """The ``prevResult``; empty if the plugin is the first in the chain.

        Raises:
            CniError: 6 when it is not a result of its version.

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
        """See :attr:`.NetConf.log_level`; empty if there is none."""
        level = _text(self.raw.get("logLevel")).lower()
        return level if level in LOG_LEVELS else ""

    def require_objects(self) -> None:
        """Raise TypeError for a part that nobody could remove the attachment without."""
        for key in ("host", "ipam"):
            if not isinstance(self.raw.get(key, {}), Mapping):
                raise TypeError(f"{key}: expected a JSON object, got {self.raw[key]!r}")

    def _object(self, key: str) -> Mapping[str, Any]:
        value = self.raw.get(key)
        return value if isinstance(value, Mapping) else {}


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""
