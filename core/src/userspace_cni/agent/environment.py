"""Hand-overs as environment variables, for programs that use neither DPDK nor VPP."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterable

from userspace_cni.api import CustomPort, Memif, VhostUser
from userspace_cni.cni.errors import CniError, Code
from userspace_cni.handover import Document

_PREFIX = "USERSPACE_CNI"


def variables(documents: Iterable[Document]) -> dict[str, str]:
    """Return the variables: a list of the interfaces, and the properties of each.

    Raises:
        CniError: the names of two interfaces would result in the same variables.

    """
    documents = list(documents)
    found = {f"{_PREFIX}_INTERFACES": " ".join(d.handoff.interface for d in documents)}
    whose: dict[str, str] = {}
    for document in documents:
        interface = document.handoff.interface
        word = _word(interface)
        if word in whose:
            raise CniError(
                Code.INVALID_NETWORK_CONFIG,
                f"{interface} and {whose[word]} would both be called {_PREFIX}_{word}_...",
                "name the interfaces that you want",
            )
        whose[word] = interface
        for key, value in _facts(document).items():
            if value:
                found[f"{_PREFIX}_{word}_{key}"] = value
    return found


def shell(values: dict[str, str]) -> str:
    """Return *values* as lines that a shell can evaluate."""
    return "".join(f"{name}={shlex.quote(value)}\n" for name, value in values.items())


def _facts(document: Document) -> dict[str, str]:
    handoff, port = document.handoff, document.handoff.port
    facts = {
        "TYPE": handoff.iftype,
        "NETWORK": document.network,
        "MAC": handoff.mac,
        "MTU": str(handoff.mtu or ""),
        "ADDRESSES": " ".join(str(ip.address) for ip in handoff.ips),
        "GATEWAYS": " ".join(str(ip.gateway) for ip in handoff.ips if ip.gateway is not None),
        "SOCKET": port.socket,
        "ROLE": port.role,
    }
    match port:
        case Memif():
            facts |= {
                "ID": str(port.id),
                "SECRET": port.secret,
                "RX_QUEUES": str(port.rx_queues),
                "TX_QUEUES": str(port.tx_queues),
            }
        case VhostUser(queues=queues):
            facts |= {"RX_QUEUES": str(queues), "TX_QUEUES": str(queues)}
        case CustomPort(kind=kind, values=values):
            facts["KIND"] = kind
            for key, value in values.items():
                text = value if isinstance(value, str) else json.dumps(value)
                facts[f"PORT_{_word(key)}"] = text
    return facts


def _word(name: str) -> str:
    return re.sub(r"[^A-Z0-9]", "_", name.upper())
