"""Kernel side of kernel ports."""

from __future__ import annotations

import os

from userspace_cni.api import DataplaneUnavailable
from userspace_cni.kernel.tags import Tags

#: Tags of veth pairs.
TAGS = Tags("userspace-cni-vpp/1")

_VHOST_NET = "/dev/vhost-net"


def require_vhost_net() -> None:
    """Raise DataplaneUnavailable unless this node has vhost-net, which VPP's tap needs."""
    if not os.path.exists(_VHOST_NET):
        raise DataplaneUnavailable(
            f"iftype tap needs {_VHOST_NET}, which this node does not have",
            "load it with: modprobe vhost-net; or use iftype veth",
        )
