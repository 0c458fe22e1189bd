"""What is done to our own interfaces inside the container's network namespace.

Names in the container are the container's to change: what is removed is found by our tag.
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
    """Give an interface that was made under its short name its tag and, with it, its own name.

    *links* is inside, as for :func:`.Namespace.call`.
    """
    link = links.require(short_name(attachment.id))
    links.change(link, ifalias=TAGS.encode(attachment), ifname=attachment.interface)
    return links.require(attachment.interface)


def require_new(links: Links, attachment: Attachment) -> None:
    """Raise CniError 103 if the attachment's interface is in the container already.

    The request that made it may have been forgotten; undoing this one would remove it. *links* is
    inside, as for :func:`.Namespace.call`.
    """
    for link in _interfaces(links, attachment.id):
        raise CniError(
            Code.ALREADY_ATTACHED,
            f"the container {attachment.container_id} has the interface {link.name} of the network "
            f"{attachment.network} already",
            "DEL it first",
        )


def remove(path: str, attachment_id: str) -> None:
    """Remove what carries the tag of *attachment_id* in the namespace *path*, if that exists."""
    try:
        container = Namespace(path)
    except CniError as error:
        # Gone, and everything in it with it.
        if error.code != Code.INVALID_ENVIRONMENT:
            raise
        return
    with container, container.call(Links) as links:
        for link in TAGS.find_all(links, attachment_id):
            links.remove(link)
        # Made by a request that died before it could tag it, see claim().
        limits.remove(links, attachment_id, TAGS)
        unfinished = links.find(short_name(attachment_id))
        if unfinished is not None and not unfinished.alias:
            links.remove(unfinished)


def check(attachment: Attachment) -> None:
    """Raise CheckFailed unless the attachment's interface exists in the container, with our tag."""
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
    """Raise CheckFailed if the attachment's interface is in the container by another name."""
    with Namespace(attachment.netns) as container, container.call(Links) as links:
        names = [link.name for link in _interfaces(links, attachment.id)]
    if names:
        raise CheckFailed(
            f"the container has renamed {attachment.interface} to {', '.join(names)}",
            "it can be put back when the container has removed it, or given it its name again",
        )


def _interfaces(links: Links, attachment_id: str) -> list[Link]:
    """Return the attachment's interface by whatever name: the helper of its limits is none."""
    helper = limits.helper_name(attachment_id)
    return [link for link in TAGS.find_all(links, attachment_id) if link.name != helper]
