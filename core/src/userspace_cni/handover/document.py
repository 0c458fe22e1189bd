"""The hand-over file: a :class:`~userspace_cni.engine.Handoff` as JSON, for the container to read.

A socket is told as a file name: it lies beside the file, wherever the container has mounted the
directory that they share.
"""

from __future__ import annotations

import os
from typing import Any

from userspace_cni.cni import result as cni_result
from userspace_cni.cni.result import Result
from userspace_cni.cni.versions import SUPPORTED
from userspace_cni.engine import Attachment, Handoff

#: Of the file's format. A reader refuses a greater number; new keys do not change it.
VERSION = 1


def dump(attachment: Attachment, handoff: Handoff) -> dict[str, Any]:
    """Return the content of the file, which carries the attachment's id as its tag."""
    lists = cni_result.dump(
        Result(ips=handoff.ips, routes=handoff.routes, dns=handoff.dns), SUPPORTED[-1]
    )
    lists.pop("cniVersion")
    body: dict[str, Any] = {
        "version": VERSION,
        "id": attachment.id,
        "network": attachment.network,
        "interface": handoff.interface,
        "iftype": handoff.iftype,
        "netType": handoff.net_type,
        "mac": handoff.mac,
        "mtu": handoff.mtu,
        "pointToPoint": handoff.point_to_point,
        **lists,
    }
    if handoff.bridge:
        body["bridge"] = handoff.bridge
    if (memif := handoff.memif) is not None:
        body["memif"] = {
            "role": memif.role,
            "socket": os.path.basename(memif.socket),
            "mode": memif.mode,
            "id": memif.id,
            "rxQueues": memif.rx_queues,
            "txQueues": memif.tx_queues,
            "ringSize": memif.ring_size,
            "bufferSize": memif.buffer_size,
            "zeroCopy": memif.zero_copy,
        } | ({"secret": memif.secret} if memif.secret else {})
    if (vhost_user := handoff.vhost_user) is not None:
        body["vhostUser"] = {
            "mode": vhost_user.mode,
            "socket": os.path.basename(vhost_user.socket),
            "queues": vhost_user.queues,
        }
    return body
