"""Network configurations for CNI clients: the plugin under test on a Linux bridge."""

from __future__ import annotations

import json
from ipaddress import ip_network
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path


def bridge_network(
    name: str,
    cni_version: str,
    subnet: str,
    data_dir: Path,
    *,
    chained: Sequence[Mapping[str, Any]] = (),
    ipam: Mapping[str, Any] | None = None,
    capabilities: Mapping[str, bool] | None = None,
    default_route: bool = True,
) -> dict[str, Any]:
    """Return a configuration list: veth pairs in a bridge, `<name>br0`, which is the gateway."""
    plugin: dict[str, Any] = {
        "type": "userspace",
        "host": {
            "engine": "linux",
            "iftype": "veth",
            "netType": "bridge",
            "bridge": {"bridgeName": f"{name}br0", "gateway": True, "defaultRoute": default_route},
        },
        "ipam": ipam or host_local(subnet, data_dir),
    }
    if capabilities:
        plugin["capabilities"] = dict(capabilities)
    return {"cniVersion": cni_version, "name": name, "plugins": [plugin, *chained]}


def host_local(subnet: str, data_dir: Path) -> dict[str, Any]:
    """Return host-local's configuration with its leases in *data_dir*."""
    return {
        "type": "host-local",
        "dataDir": str(data_dir),
        "ranges": [[{"subnet": subnet, "gateway": gateway(subnet)}]],
    }


def gateway(subnet: str) -> str:
    """Return the first host address, which is also host-local's default gateway."""
    return str(ip_network(subnet)[1])


def leases(data_dir: Path) -> list[str]:
    """Return the addresses in use, which are the names of host-local's files."""
    found = [path.name for path in data_dir.glob("**/*") if path.is_file()]
    return sorted(name for name in found if name[0].isdigit() or ":" in name)


def write(conf: Mapping[str, Any], directory: Path) -> Path:
    """Write a configuration list atomically to a directory that runtimes read; return its path."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"10-{conf['name']}.conflist"
    draft = directory / f".{path.name}"
    draft.write_text(json.dumps(conf, indent=1))
    return draft.replace(path)
