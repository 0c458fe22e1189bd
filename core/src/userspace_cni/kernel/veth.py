"""Veth pairs with one end on the host and the other in the container.

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

#: In bytes; used if neither the configuration nor a bridge sets an MTU.
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
    """Create the pair with one end in the container, and return the name of the host's end.

    Both ends stay down until :func:`activate`.

    Args:
        links: a socket in the host's namespace.
        container: the container's namespace.
        attachment: supplies the names and MAC addresses.
        mtu: of both ends, in bytes.
        tags: the engine's tags.
        undo: receives the step that removes the pair.
        master: the bridge that the host's end becomes a port of.

    Raises:
        CniError: code 103 if the container already has an interface of that name.
        DataplaneError: if the kernel refuses.
        DataplaneUnavailable: if the kernel's answer is lost.

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
        # The answer was lost, but the pair may exist.
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
    """Create a pair for a userspace switch that attaches to the host's end; tag it, set it up.

    Raises the same errors as :func:`create`.
    """
    with Links() as links, Namespace(attachment.netns) as container:
        name = create(links, container, attachment, mtu=mtu, tags=tags, undo=undo)
        sysctl.withdraw_host(name)
        alias = tags.encode(attachment)
        links.change(name, ifalias=alias, up=True)
        container.call(_complete_for_switch, attachment.interface, alias)
        # Limits are set in the container: the switch takes its frames before a queue on the host's
        # end could delay them.
        limits.apply_inside(container, attachment, tags, undo)


def revive(attachment_id: str, tags: Tags) -> bool:
    """Set the host's end up; return False if it does not exist."""
    with Links() as links:
        link = links.find(short_name(attachment_id))
        if link is None or not tags.own(link, attachment_id):
            return False
        links.change(link, up=True)
        return True


def remove(attachment_id: str, tags: Tags) -> None:
    """Remove the attachment's pair, if it exists."""
    with Links() as links:
        link = find(links, attachment_id, tags)
        if link is not None:
            links.remove(link)


def find(links: Links, attachment_id: str, tags: Tags) -> Link | None:
    """Return the host's end of the attachment, or None.

    It is identified by its name and tag. If the request that created it died before it could tag
    it, it is recognized by being down and having the MAC address generated for the attachment.
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
    """Return the host's end; raise CheckFailed unless it exists, is tagged and is up."""
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
    """Tag *interface*, which must be in the calling thread's namespace."""
    with Links() as links:
        links.change(interface, ifalias=alias)


def taken_inside(attachment: Attachment) -> CniError:
    """Return the error (code 103) for an interface name that is taken in the container."""
    return CniError(
        Code.ALREADY_ATTACHED,
        f"the container has an interface {attachment.interface} already",
        f"in {attachment.netns}; DEL it first, or give this attachment another name",
    )


def peer_data(**options: str | int) -> bytes:
    """Encode the *options* of a veth's peer, see :class:`.Links`."""
    return attribute(_PEER, link_body(0, options))


def _complete_for_switch(interface: str, alias: str) -> None:
    tag(interface, alias)
    compute_checksums(interface)


def _taken(links: Links, attachment: Attachment, name: str, tags: Tags) -> CniError:
    """Return an error that says which of the pair's two names is taken, and what to do."""
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
