"""Kernel side of kernel ports: veth pairs, and taps moved into the container."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from userspace_cni.api import DataplaneError
from userspace_cni.kernel import limits
from userspace_cni.kernel.links import Links
from userspace_cni.kernel.namespace import Namespace
from userspace_cni.kernel.netlink import Refused
from userspace_cni.kernel.tags import Tags
from userspace_cni.kernel.veth import taken_inside

if TYPE_CHECKING:
    from contextlib import ExitStack

    from userspace_cni.api import Attachment

TAGS = Tags("userspace-cni-ovs/1")


def move_tap(attachment: Attachment, name: str, mtu: int, undo: ExitStack) -> None:
    """Move the tap *name*, which the switch created, into the container as its interface.

    Raises:
        CniError: code 103 if the container already has an interface of that name.
        DataplaneError: if there is no such tap in this namespace, or the kernel refuses.

    """
    with Links() as links, Namespace(attachment.netns) as container:
        found = links.find(name)
        if found is None:
            raise DataplaneError(
                f"Open vSwitch created the port {name}, but this namespace has no such interface",
                "iftype tap needs ovs-vswitchd in the network namespace of the CNI plugin; "
                "use iftype vhostuser or memif otherwise",
            )
        try:
            links.change(found, net_ns_fd=container.fd, ifname=attachment.interface)
        except Refused as error:
            if error.errno == errno.EEXIST:
                raise taken_inside(attachment) from error
            raise
        with container.call(Links) as links_inside:
            links_inside.change(
                attachment.interface,
                address=attachment.mac_for("container"),
                mtu=mtu,
                ifalias=TAGS.encode(attachment),
            )
        limits.apply_inside(container, attachment, TAGS, undo)


def require_kernel_datapath() -> None:
    """Raise DataplaneError unless the kernel has the Open vSwitch datapath."""
    from pyroute2 import GenericNetlinkSocket
    from pyroute2.netlink import genlmsg

    try:
        with GenericNetlinkSocket() as control:
            control.bind("ovs_datapath", genlmsg)
    except Exception as error:
        raise DataplaneError(
            "host.bridge.datapathType system: this kernel has no Open vSwitch datapath",
            "load it with: modprobe openvswitch; or use the userspace datapath, netdev",
        ) from error
