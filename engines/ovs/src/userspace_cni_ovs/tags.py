"""Ownership tags: ``external_ids`` of the rows that the engine creates in Open vSwitch.

Ownership is decided by the attachment's ID. The other keys are for controllers and for people who
read ``ovs-vsctl list Interface``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from userspace_cni.api import Attachment

#: On Port, Interface and QoS: the attachment's ID.
ID = "userspace-cni-id"
#: On Port: the network's name.
NETWORK = "userspace-cni-network"
#: On Bridge: the engine created the bridge.
BRIDGE = {"userspace-cni": "bridge"}


def of(attachment: Attachment) -> dict[str, str]:
    """Return the tags of a port of *attachment*."""
    tags = {
        ID: attachment.id,
        NETWORK: attachment.network,
        "userspace-cni-container": attachment.container_id,
        "userspace-cni-ifname": attachment.ifname,
        # The key that Open vSwitch's integrations use (Documentation/topics/integration.rst).
        "attached-mac": attachment.mac_for("container"),
    }
    if attachment.pod is not None:
        tags["pod-namespace"] = attachment.pod.namespace
        tags["pod-name"] = attachment.pod.name
        if attachment.pod.uid:
            tags["pod-uid"] = attachment.pod.uid
    return tags
