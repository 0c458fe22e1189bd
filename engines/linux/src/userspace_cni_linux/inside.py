"""Operations on the engine's interfaces in a container's network namespace.

The container may rename its interfaces, so they are found by their tag before they are removed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from userspace_cni.api import CheckFailed, CniError, Code
from userspace_cni.kernel import limits
from userspace_cni.kernel.links import Links
from userspace_cni.kernel.namespace import Namespace
from userspace_cni.kernel.tags import Tags, short_name

if TYPE_CHECKING:
    from userspace_cni.api import Attachment
    from userspace_cni.kernel.links import Link

TAGS = Tags("userspace-cni/1")


def claim(links: Links, attachment: Attachment) -> Link:
    """Tag and rename an interface that was created under its short name; return it.

    *links* is a socket in the container's namespace.
    """
    link = links.require(short_name(attachment.id))
    links.change(link, ifalias=TAGS.encode(attachment), ifname=attachment.interface)
    return links.require(attachment.interface)


def require_new(links: Links, attachment: Attachment) -> None:
    """Raise CniError 103 if the attachment's interface already exists in the container.

    Otherwise undoing this request would remove the interface of an earlier one. *links* is a socket
    in the container's namespace.
    """
    for link in _interfaces(links, attachment.id):
        raise CniError(
            Code.ALREADY_ATTACHED,
            f"the container {attachment.container_id} has the interface {link.name} of the network "
            f"{attachment.network} already",
            "DEL it first",
        )


def remove(path: str, attachment_id: str) -> None:
    """Remove the attachment's interfaces from the namespace at *path*, if it still exists."""
    try:
        container = Namespace(path)
    except CniError as error:
        # The namespace is gone, and its interfaces with it.
        if error.code != Code.INVALID_ENVIRONMENT:
            raise
        return
    with container, container.call(Links) as links:
        for link in TAGS.find_all(links, attachment_id):
            links.remove(link)
        # These may have no tag if their request died before it could tag them, see claim().
        limits.remove(links, attachment_id, TAGS)
        unfinished = links.find(short_name(attachment_id))
        if unfinished is not None and not unfinished.alias:
            links.remove(unfinished)


def check(attachment: Attachment) -> None:
    """Raise CheckFailed unless the container has the attachment's interface with its tag."""
    with Namespace(attachment.netns) as container, container.call(Links) as links:
        link = links.find(attachment.interface)
    if link is None:
        raise CheckFailed(
            f"the container's interface {attachment.interface} is gone from {attachment.netns}"
        )
    if not TAGS.own(link, attachment.id):
        raise CheckFailed(
            f"the container's interface {attachment.interface} is not the one that ADD made",
            f"expected the alias {TAGS.encode(attachment)!r}, found {link.alias!r}",
        )


def require_gone(attachment: Attachment) -> None:
    """Raise CheckFailed if the container has the attachment's interface under another name."""
    with Namespace(attachment.netns) as container, container.call(Links) as links:
        names = [link.name for link in _interfaces(links, attachment.id)]
    if names:
        raise CheckFailed(
            f"the container has renamed {attachment.interface} to {', '.join(names)}",
            "it can be restored once the container has removed it or renamed it back",
        )


def _interfaces(links: Links, attachment_id: str) -> list[Link]:
    """Return the attachment's interfaces under any name, without the rate limits' helper."""
    helper = limits.helper_name(attachment_id)
    return [link for link in TAGS.find_all(links, attachment_id) if link.name != helper]
