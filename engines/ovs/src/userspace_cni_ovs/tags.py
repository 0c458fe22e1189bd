"""Ownership tags: ``external_ids`` of what we make in Open vSwitch.

The id decides what is whose; the rest is for people who read ``ovs-vsctl list Interface``, and for
controllers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from userspace_cni.api import Attachment

#: On Port, Interface and QoS: the attachment's id.
ID = "userspace-cni-id"
#: On Port: the name of the network.
NETWORK = "userspace-cni-network"
#: On Interface: where the switch's own socket lies in the container's shared directory.
SOCKET = "userspace-cni-socket"
#: On a Bridge that we made.
BRIDGE = {"userspace-cni": "bridge"}


def of(attachment: Attachment) -> dict[str, str]:
    """Return the tags of a port of *attachment*."""
    tags = {
        ID: attachment.id,
        NETWORK: attachment.network,
        "userspace-cni-container": attachment.container_id,
        "userspace-cni-ifname": attachment.ifname,
        # What Open vSwitch's own integrations write (Documentation/topics/integration.rst).
        "attached-mac": attachment.mac_for("container"),
    }
    if attachment.pod is not None:
        tags["pod-namespace"] = attachment.pod.namespace
        tags["pod-name"] = attachment.pod.name
        if attachment.pod.uid:
            tags["pod-uid"] = attachment.pod.uid
    return tags
