"""How the runtime calls the IPAM plugin of a network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from userspace_cni.api import attachment_id
from userspace_cni.cni.request import Request, version_of
from userspace_cni.ipam import Ipam
from userspace_cni.store import Record


def ipam_of(
    kind: str,
    request: Request,
    network: Mapping[str, Any],
    timeout: float,
    *,
    record: Record | None = None,
    lock: int | None = None,
) -> Ipam | None:
    """Return the IPAM plugin *kind*, called for *record* or else for the request itself.

    What it changes, it changes under the attachment's *lock*.
    """
    if not kind:
        return None
    environ = dict(request.environ)
    if record is not None:
        environ |= {
            "CNI_CONTAINERID": record.container_id,
            "CNI_IFNAME": record.ifname,
            "CNI_NETNS": record.netns,
        }
        if record.id != attachment_id(request.network, request.container_id, request.ifname):
            environ.pop("CNI_ARGS", None)  # they are about another container
    elsewhere = record.path if record is not None else ()
    return Ipam(
        type=kind,
        config=network,
        cni_version=version_of(network),
        path=(*request.path, *(path for path in elsewhere if path not in request.path)),
        environ=environ,
        timeout=timeout,
        lock=lock,
    )


def ipam_type(network: Mapping[str, Any]) -> str:
    """Return the name of the IPAM plugin of a recorded *network*, empty where it has none."""
    section = network.get("ipam")
    kind = section.get("type") if isinstance(section, Mapping) else None
    return kind if isinstance(kind, str) else ""
