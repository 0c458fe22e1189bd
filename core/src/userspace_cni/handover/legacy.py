"""The format of the first userspace CNI plugin, for programs that still read it.

A file ``configData-<container id>-<ifname>.json`` beside the sockets, or the pod's annotations
``userspace/configuration-data`` and ``userspace/mapped-dir``. Source: pkg/types and pkg/configdata
of github.com/intel/userspace-cni-network-plugin; the results in it are of CNI 0.4.0.
"""

from __future__ import annotations

from typing import Any

from userspace_cni.api import Attachment, CustomPort, Handoff, Memif, VhostUser
from userspace_cni.handover.device_info import ROLES
from userspace_cni.handover.document import addresses, describe_custom, socket_name

CONFIGURATION_DATA = "userspace/configuration-data"
MAPPED_DIR = "userspace/mapped-dir"

_CNI_VERSION = "0.4.0"
#: The first plugin's names for container engines.
_ENGINES = {"dpdk": "ovs-dpdk", "ovs": "ovs-dpdk"}


def file_name(container_id: str, ifname: str) -> str:
    """Return the file's name, which has the first twelve characters of the id.

    The name is unique, because each container has its own directory.
    """
    return f"configData-{container_id[:12]}-{ifname}.json"


def describe(attachment: Attachment, handoff: Handoff, engine: str) -> dict[str, Any]:
    """Return the configuration data of one interface."""
    config: dict[str, Any] = {
        "engine": _ENGINES.get(engine, engine),
        "iftype": handoff.iftype,
        "netType": handoff.net_type,
    }
    match handoff.port:
        case Memif(role=role, mode=mode, socket=socket):
            config["memif"] = {
                "role": ROLES[role],
                "mode": mode,
                "socketfile": socket_name(socket),
            }
        case VhostUser(mode=mode, socket=socket):
            config["vhost"] = {"mode": mode, "socketfile": socket_name(socket)}
        case CustomPort() as port:
            # The first plugin had no such ports; its readers ignore unknown keys.
            config["port"] = describe_custom(port, socket_name)
    if handoff.bridge:
        config["bridge"] = {"bridgeName": handoff.bridge}
    return {
        "containerId": attachment.container_id,
        "ifName": attachment.ifname,
        "name": attachment.network,
        "config": config,
        "ipResult": {"cniVersion": _CNI_VERSION, **addresses(handoff, _CNI_VERSION)},
    }
