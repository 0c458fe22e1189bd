"""A pair of veth interfaces: one end on the host, the other in the container."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from userspace_cni import netns
from userspace_cni.cni.errors import CniError, Code, DataplaneError
from userspace_cni.engine import mac_address
from userspace_cni_linux import tags
from userspace_cni_linux.inside import tag_interface
from userspace_cni_linux.links import Links, Refused, namespace, veth_data

if TYPE_CHECKING:
    from contextlib import ExitStack
    from typing import Any

    from userspace_cni.engine import Attachment
    from userspace_cni_linux.links import Link

#: In bytes, where neither the configuration nor a bridge says otherwise: Ethernet's.
DEFAULT_MTU = 1500


def create(
    links: Links, attachment: Attachment, mtu: int, undo: ExitStack, master: Link | None = None
) -> str:
    """Make the pair, its far end complete in the container, and return the host end's name.

    The host's end is a port of the bridge *master*, if there is one, and still down: nothing passes
    before :func:`activate`.
    """
    name = tags.short_name(attachment.id)
    options: dict[str, Any] = {"master": master.index} if master else {}
    with namespace(attachment.netns) as container:
        try:
            links.create(
                name,
                "veth",
                address=attachment.mac_for("host"),
                mtu=mtu,
                data=veth_data(
                    ifname=attachment.interface,
                    address=attachment.mac_for("container"),
                    mtu=mtu,
                    net_ns_fd=container,
                ),
                **options,
            )
        except Refused as error:
            if error.errno == errno.EEXIST:
                raise _taken(links, attachment, name) from error
            full = "; a bridge has at most 1023 ports" if error.errno == errno.EXFULL else ""
            raise DataplaneError(
                f"cannot create the veth pair {name} with {attachment.interface} in "
                f"{attachment.netns}, MTU {mtu}",
                error.details + full,
            ) from error
    undo.callback(_undo, name)
    return name


def activate(links: Links, attachment: Attachment, name: str) -> None:
    """Tag both ends, and set the host's up."""
    alias = tags.encode(attachment)
    links.change_named(name, ifalias=alias, up=True)
    netns.call(attachment.netns, tag_interface, attachment.interface, alias)


def find(links: Links, attachment_id: str) -> Link | None:
    """Return the host's end of the attachment, by its name and its tag.

    Also one that has no tag yet, because the request that made it died before :func:`activate`:
    it is still down, and has the MAC address that only we would give it.
    """
    link = links.find(tags.short_name(attachment_id))
    if link is None:
        return None
    unfinished = (link.kind, link.alias, link.up, link.mac) == (
        "veth",
        "",
        False,
        mac_address(attachment_id, "host"),
    )
    tag = tags.parse(link.alias)
    return link if unfinished or (tag is not None and tag.id == attachment_id) else None


def _taken(links: Links, attachment: Attachment, name: str) -> CniError:
    """Tell which of the pair's two names is taken, and what to do."""
    there = links.find(name)
    if there is None:
        return CniError(
            Code.ALREADY_ATTACHED,
            f"the container has an interface {attachment.interface} already",
            f"in {attachment.netns}; DEL it first, or give this attachment another name",
        )
    tag = tags.parse(there.alias)
    if tag is not None and tag.id == attachment.id:
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


def _undo(name: str) -> None:
    # Made by this very request, so it needs no tag; perhaps it has none yet.
    with Links() as links:
        link = links.find(name)
        if link is not None:
            links.remove(link)
