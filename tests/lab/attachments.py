"""Attachments made without the runtime, for tests of engines and formats."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from userspace_cni.api import Addresses, Attachment
from userspace_cni.handover import ContainerDirectory

#: A shared directory that does not exist and is never created.
NO_DIRECTORY = ContainerDirectory(Path("/nonexistent"), "c1", None)


def attachment(**values: Any) -> Attachment:
    """Return an attachment with *values*; ``ips``, ``routes`` and ``dns`` are its addresses."""
    given = {key: values.pop(key) for key in ("ips", "routes", "dns") if key in values}
    defaults: dict[str, Any] = {
        "network": "net",
        "container_id": "c1",
        "ifname": "eth0",
        "netns": "/n",
        "addresses": Addresses(**given),
        "directory": NO_DIRECTORY,
    }
    named = {"interface": values.get("ifname", "eth0")}
    return Attachment(**{**defaults, **named, **values})
