"""A pair of veth interfaces: one end on the host, the other in the container.

The host's end is named after the attachment, see :func:`.tags.short_name`.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from userspace_cni.api import mac_address
from userspace_cni.cni.errors import (
    CheckFailed,
    CniError,
    Code,
    DataplaneError,
    DataplaneUnavailable,
)
from userspace_cni.kernel import limits, sysctl
from userspace_cni.kernel.links import Links, link_body
from userspace_cni.kernel.namespace import Namespace
from userspace_cni.kernel.netlink import Refused, attribute
from userspace_cni.kernel.offload import compute_checksums
from userspace_cni.kernel.tags import short_name

if TYPE_CHECKING:
    from contextlib import ExitStack

    from userspace_cni.api import Attachment
    from userspace_cni.kernel.links import Link
    from userspace_cni.kernel.tags import Tags

#: In bytes, where neither the configuration nor a bridge says otherwise: Ethernet's.
DEFAULT_MTU = 1500

_PEER = 1  # VETH_INFO_PEER


def create(
    links: Links,
    container: Namespace,
    attachment: Attachment,
    *,
    mtu: int,
    tags: Tags,
    undo: ExitStack,
    master: Link | None = None,
) -> str:
    """Make the pair, its far end complete in the container, and return the host end's name.

    The host's end is a port of the bridge *master*, if there is one, and still down: nothing passes
    before :func:`activate`.

    Raises:
        CniError: code 103 when the container has an interface of that name.
        DataplaneError: when the kernel refuses.
        DataplaneUnavailable: when the kernel's answer is lost.

    """
    name = short_name(attachment.id)
    peer = peer_data(
        ifname=attachment.interface,
        address=attachment.mac_for("container"),
        mtu=mtu,
        net_ns_fd=container.fd,
    )
    port = {"master": master.index} if master else {}
    mac = attachment.mac_for("host")
    try:
        links.create(name, "veth", peer, address=mac, mtu=mtu, **port)
    except Refused as error:
        if error.errno == errno.EEXIST:
            raise _taken(links, attachment, name, tags) from error
        full = "; a bridge has at most 1023 ports" if error.errno == errno.EXFULL else ""
        raise DataplaneError(
            f"cannot create the veth pair {name} with {attachment.interface} in "
            f"{attachment.netns}, MTU {mtu}",
            error.details + full,
        ) from error
    except DataplaneUnavailable:
        # The answer did not come: the pair may have been made all the same.
        undo.callback(remove, attachment.id, tags)
        raise
    undo.callback(remove, attachment.id, tags)
    return name


def activate(links: Links, container: Namespace, attachment: Attachment, tags: Tags) -> None:
    """Tag both ends, and set the host's up."""
    alias = tags.encode(attachment)
    links.change(short_name(attachment.id), ifalias=alias, up=True)
    container.call(tag, attachment.interface, alias)


def create_for_switch(attachment: Attachment, mtu: int, tags: Tags, undo: ExitStack) -> None:
    """Make a pair whose host's end a userspace switch takes its frames from; tag it, set it up."""
    with Links() as links, Namespace(attachment.netns) as container:
        name = create(links, container, attachment, mtu=mtu, tags=tags, undo=undo)
        sysctl.withdraw_host(name)
        alias = tags.encode(attachment)
        links.change(name, ifalias=alias, up=True)
        container.call(_complete_for_switch, attachment.interface, alias)
        # In the container, because the switch takes its frames before a queue on the host's end
        # could hold any back.
        limits.apply_inside(container, attachment, tags, undo)


def revive(attachment_id: str, tags: Tags) -> bool:
    """Set the host's end up if it is there; tell whether it is."""
    with Links() as links:
        link = links.find(short_name(attachment_id))
        if link is None or not tags.own(link, attachment_id):
            return False
        links.change(link, up=True)
        return True


def remove(attachment_id: str, tags: Tags) -> None:
    """Remove the attachment's pair, if it is there."""
    with Links() as links:
        link = find(links, attachment_id, tags)
        if link is not None:
            links.remove(link)


def find(links: Links, attachment_id: str, tags: Tags) -> Link | None:
    """Return the host's end of the attachment, by its name and its tag.

    Also one that has no tag yet, because the request that made it died before it tagged it: it is
    still down, and has the MAC address that only we would give it.
    """
    link = links.find(short_name(attachment_id))
    if link is None:
        return None
    unfinished = (link.kind, link.alias, link.up, link.mac) == (
        "veth",
        "",
        False,
        mac_address(attachment_id, "host"),
    )
    return link if unfinished or tags.own(link, attachment_id) else None


def check(links: Links, attachment: Attachment, tags: Tags) -> Link:
    """Return the host's end; raise CheckFailed unless it is there, tagged and up."""
    link = find(links, attachment.id, tags)
    if link is None:
        raise CheckFailed(
            f"the host's interface {short_name(attachment.id)} is gone, or has lost its tag",
            f"expected the alias {tags.encode(attachment)!r}",
        )
    if not link.up:
        raise CheckFailed(
            f"the host's interface {link.name} is down",
            f"set it up with: ip link set {link.name} up",
        )
    return link


def tag(interface: str, alias: str) -> None:
    """Tag *interface*; call it in its namespace."""
    with Links() as links:
        links.change(interface, ifalias=alias)


def taken_inside(attachment: Attachment) -> CniError:
    """Return the error for an interface name that is taken in the container."""
    return CniError(
        Code.ALREADY_ATTACHED,
        f"the container has an interface {attachment.interface} already",
        f"in {attachment.netns}; DEL it first, or give this attachment another name",
    )


def peer_data(**options: str | int) -> bytes:
    """Return what tells a veth's other end by its *options*, see :class:`.Links`."""
    return attribute(_PEER, link_body(0, options))


def _complete_for_switch(interface: str, alias: str) -> None:
    tag(interface, alias)
    compute_checksums(interface)


def _taken(links: Links, attachment: Attachment, name: str, tags: Tags) -> CniError:
    """Tell which of the pair's two names is taken, and what to do."""
    there = links.find(name)
    if there is None:
        return taken_inside(attachment)
    if tags.own(there, attachment.id):
        return CniError(
            Code.ALREADY_ATTACHED,
            f"the container {attachment.container_id} has the interface {attachment.ifname} of "
            f"the network {attachment.network} already",
            f"its host end is {name}; DEL it first",
        )
    return DataplaneError(
        f"the interface name {name} is taken on the host by something that is not ours",
        f"it has the alias {there.alias!r} instead of our tag; see ip -d link show {name}, and "
        f"remove it with ip link delete {name}",
    )
