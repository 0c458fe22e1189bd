"""What was handed over as environment variables, for programs that are neither DPDK nor VPP."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable

from userspace_cni.cni.errors import CniError, Code
from userspace_cni.handover import Document

_PREFIX = "USERSPACE_CNI"


def variables(documents: Iterable[Document]) -> dict[str, str]:
    """Return the variables: a list of the interfaces, and for each what is known of it.

    Raises:
        CniError: the names of two interfaces make the same variables.

    """
    documents = list(documents)
    found = {f"{_PREFIX}_INTERFACES": " ".join(d.handoff.interface for d in documents)}
    whose: dict[str, str] = {}
    for document in documents:
        interface = document.handoff.interface
        word = re.sub(r"[^A-Z0-9]", "_", interface.upper())
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
    handoff = document.handoff
    facts = {
        "TYPE": handoff.iftype,
        "NETWORK": document.network,
        "MAC": handoff.mac,
        "MTU": str(handoff.mtu or ""),
        "ADDRESSES": " ".join(str(ip.address) for ip in handoff.ips),
        "GATEWAYS": " ".join(str(ip.gateway) for ip in handoff.ips if ip.gateway is not None),
        "SOCKET": handoff.socket,
    }
    if (memif := handoff.memif) is not None:
        facts |= {
            "ROLE": memif.role,
            "ID": str(memif.id),
            "SECRET": memif.secret,
            "RX_QUEUES": str(memif.rx_queues),
            "TX_QUEUES": str(memif.tx_queues),
        }
    if (vhost_user := handoff.vhost_user) is not None:
        queues = str(vhost_user.queues)
        facts |= {"ROLE": vhost_user.mode, "RX_QUEUES": queues, "TX_QUEUES": queues}
    return facts
