"""Networks configured in the CNI configuration directory of the node."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from userspace_cni.install import NAME

if TYPE_CHECKING:
    from collections.abc import Iterator

_SUFFIXES = (".conf", ".conflist", ".json")


class Networks:
    """The network configurations in a directory; a file is read again only if it has changed."""

    def __init__(self, directory: Path) -> None:
        """Read files from *directory*, which need not exist."""
        self._directory = directory
        self._read: dict[tuple[Path, int, int], list[dict[str, Any]]] = {}

    def hosts(self) -> list[dict[str, Any]]:
        """Return the ``host`` part of each network that uses this plugin."""
        present = {}
        for path in self._files():
            with suppress(OSError):
                found = path.stat()
                key = path, found.st_mtime_ns, found.st_size
                present[key] = self._read.get(key) or list(_hosts(path))
        self._read = present
        return [host for hosts in present.values() for host in hosts]

    def _files(self) -> list[Path]:
        with suppress(OSError):
            return sorted(path for path in self._directory.iterdir() if path.suffix in _SUFFIXES)
        return []


def _hosts(path: Path) -> Iterator[dict[str, Any]]:
    try:
        network = json.loads(path.read_text())
    except (ValueError, RecursionError):
        return  # the container runtime reports it
    if not isinstance(network, dict):
        return
    plugins = network.get("plugins", [network])
    for plugin in plugins if isinstance(plugins, list) else []:
        if isinstance(plugin, dict) and plugin.get("type") == NAME:
            host = plugin.get("host")
            if isinstance(host, dict):
                yield host
