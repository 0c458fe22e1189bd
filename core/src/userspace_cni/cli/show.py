"""Shows the attachments in the store as a tree."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby
from typing import Any

from userspace_cni.store import Record


def summary(record: Record) -> dict[str, Any]:
    """Return the entry of an attachment in ``userspace-cni show --json``."""
    return {
        "id": record.id,
        "network": record.network,
        "containerID": record.container_id,
        "ifname": record.ifname,
        "netns": record.netns,
        "engine": record.engine,
        "state": record.state,
        "port": record.port.name if record.port else None,
        "result": record.result,
    } | ({"damage": record.damage} if record.damage else {})


def picture(records: Iterable[Record]) -> str:
    """Return a tree of networks, their attachments, and the path from switch to container."""
    lines: list[str] = []
    for network, of_network in groupby(records, key=lambda record: record.network):
        members = list(of_network)
        lines.append(f"network {network}")
        for record in members:
            last = record is members[-1]
            lines.append(f"{'└─' if last else '├─'} {_attachment(record)}")
            details = [*_details(record), *([f"damaged: {record.damage}"] if record.damage else ())]
            lines += [f"{'  ' if last else '│ '}    {line}" for line in details]
    return "\n".join(lines) or "nothing is attached"


def _attachment(record: Record) -> str:
    state = "" if record.state == "attached" else f"  [{record.state}]"
    return f"container {record.container_id}  ({record.netns}){state}"


def _details(record: Record) -> list[str]:
    if record.port is None:
        return [f"{record.ifname} by engine {record.engine}"]
    interfaces = record.result.get("interfaces", [])
    host = [item["name"] for item in interfaces if not item.get("sandbox")]
    container: dict[str, Any] = next((item for item in interfaces if item.get("sandbox")), {})
    way = [*host, container.get("name", record.ifname)]
    lines = [f"{record.engine}: " + " ── ".join(way)]
    facts = [f"MAC {container['mac']}"] if container.get("mac") else []
    facts += [f"MTU {container['mtu']}"] if container.get("mtu") else []
    facts += [ip["address"] for ip in record.result.get("ips", [])]
    return [*lines, ", ".join(facts)] if facts else lines
