"""Macvlan in the container on top of an interface of the host."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from userspace_cni.api import CniError, DataplaneError, InvalidConfig
from userspace_cni.kernel import limits
from userspace_cni.kernel.links import Links
from userspace_cni.kernel.namespace import Namespace
from userspace_cni.kernel.netlink import Refused, attribute
from userspace_cni.kernel.routes import default_interface
from userspace_cni.kernel.tags import short_name
from userspace_cni.kernel.veth import taken_inside
from userspace_cni_linux import inside

if TYPE_CHECKING:
    from contextlib import ExitStack
    from typing import Any

    from userspace_cni.api import Attachment
    from userspace_cni.kernel.links import Link
    from userspace_cni_linux.sections import MacvlanSection

_MODE = 1  # IFLA_MACVLAN_MODE
_MODES = {"private": 1, "vepa": 2, "bridge": 4, "passthru": 8}  # MACVLAN_MODE_


def create(
    links: Links, attachment: Attachment, section: MacvlanSection, undo: ExitStack
) -> tuple[Link, Link]:
    """Create the macvlan in the container and return its master and itself.

    Raises:
        CniError: code 103 if the container already has an interface of that name.
        InvalidConfig: if the MTU or MAC address does not fit the master.
        DataplaneError: if the master does not exist or the kernel refuses.

    """
    master = require_master(links, section)
    if attachment.mtu is not None and attachment.mtu > master.mtu:
        raise InvalidConfig(
            "mtu",
            f"expected at most {master.mtu}, the MTU of {master.name}, got {attachment.mtu}",
            "ask for a smaller one, or raise that of the master",
        )
    options: dict[str, Any] = {}
    if attachment.mtu is not None:
        options["mtu"] = attachment.mtu
    # In mode passthru both interfaces share a MAC address; setting ours would change the host's.
    if section.mode != "passthru":
        options["address"] = attachment.mac_for("container")
    elif attachment.mac is not None and attachment.mac != master.mac:
        raise InvalidConfig(
            "mac",
            f"a macvlan with mode passthru has the MAC address of {master.name}, {master.mac}; "
            f"got {attachment.mac}",
            "leave mac out, or choose another mode",
        )
    with Namespace(attachment.netns) as container, container.call(Links) as links_inside:
        inside.require_new(links_inside, attachment)
        undo.callback(inside.remove, attachment.netns, attachment.id)
        try:
            links.create(
                short_name(attachment.id),
                "macvlan",
                attribute(_MODE, _MODES[section.mode]),
                link=master.index,
                net_ns_fd=container.fd,
                **options,
            )
            link = inside.claim(links_inside, attachment)
            limits.apply_inside(container, attachment, inside.TAGS, undo)
        except Refused as error:
            raise _explained(error, attachment, master) from error
    return master, link


def require_master(links: Links, section: MacvlanSection) -> Link:
    """Return the host interface that *section* selects.

    Raises:
        DataplaneError: if it does not exist.

    """
    if section.master:
        link = links.find(section.master)
        if link is None:
            raise DataplaneError(
                f"host.macvlan.master: the host has no interface {section.master}",
                "see ip link; correct the name, or remove the key to use the default route's",
            )
        return link
    link = default_interface(links)
    if link is None:
        raise DataplaneError(
            "host.macvlan.master is not set, and the host has no default route to choose by",
            "set it to the interface to share",
        )
    return link


def _explained(error: Refused, attachment: Attachment, master: Link) -> CniError:
    if error.errno == errno.EEXIST:
        return taken_inside(attachment)
    hint = ""
    if error.errno in (errno.EBUSY, errno.EINVAL):
        hint = f"; {master.name} may be a port of a bridge, or shared with mode passthru"
    return DataplaneError(
        f"cannot create the macvlan {attachment.interface} upon {master.name} in "
        f"{attachment.netns}",
        f"{error.details}{hint}",
    )
