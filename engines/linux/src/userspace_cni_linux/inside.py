"""What is done to our own interfaces inside the container's network namespace.

The functions here run there (``netns.call``). Names in the container are the container's to change:
what is removed is found by our tag.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from userspace_cni import netns
from userspace_cni.cni.errors import CheckFailed, CniError, Code
from userspace_cni_linux import tags
from userspace_cni_linux.links import Links

if TYPE_CHECKING:
    from collections.abc import Mapping

    from userspace_cni.engine import Attachment
    from userspace_cni_linux.links import Link


def tag_interface(name: str, alias: str) -> None:
    """Tag the interface *name* that was just made."""
    with Links() as links:
        links.change_named(name, ifalias=alias)


def claim(attachment: Attachment) -> Link:
    """Give an interface that was made under its short name its tag and, with it, its own name."""
    with Links() as links:
        link = links.require(tags.short_name(attachment.id))
        links.change(link, ifalias=tags.encode(attachment), ifname=attachment.interface)
        return links.require(attachment.interface)


def configure(name: str, options: Mapping[str, Any]) -> Link:
    """Set *options* of the interface *name*, and return what came of it."""
    with Links() as links:
        link = links.require(name)
        links.change(link, **options)
        return links.require(name)


def remove(path: str, attachment_id: str) -> None:
    """Remove what carries the tag of *attachment_id* in the namespace *path*, if that exists."""
    try:
        netns.call(path, _remove_tagged, attachment_id)
    except CniError as error:
        # Gone, and everything in it with it.
        if error.code != Code.INVALID_ENVIRONMENT:
            raise


def check(attachment: Attachment) -> None:
    """Raise CheckFailed unless the attachment's interface exists in the container, with our tag."""
    link = netns.call(attachment.netns, _find, attachment.interface)
    if link is None:
        raise CheckFailed(
            f"the container's interface {attachment.interface} is gone from {attachment.netns}"
        )
    tag = tags.parse(link.alias)
    if tag is None or tag.id != attachment.id:
        raise CheckFailed(
            f"the container's interface {attachment.interface} is not the one that ADD made",
            f"expected the alias {tags.encode(attachment)!r}, found {link.alias!r}",
        )


def require_gone(attachment: Attachment) -> None:
    """Raise CheckFailed if the attachment's interface is in the container by another name."""
    names = netns.call(attachment.netns, _tagged_names, attachment.id)
    if names:
        raise CheckFailed(
            f"the container has renamed {attachment.interface} to {', '.join(names)}",
            "it can be put back when the container has removed it, or given it its name again",
        )


def _tagged_names(attachment_id: str) -> list[str]:
    with Links() as links:
        return [link.name for link in _tagged(links, attachment_id)]


def _tagged(links: Links, attachment_id: str) -> list[Link]:
    found = ((link, tags.parse(link.alias)) for link in links.all())
    return [link for link, tag in found if tag is not None and tag.id == attachment_id]


def _find(name: str) -> Link | None:
    with Links() as links:
        return links.find(name)


def _remove_tagged(attachment_id: str) -> None:
    with Links() as links:
        for link in _tagged(links, attachment_id):
            links.remove(link)
        # Made by a request that died before it could tag it, see claim().
        unfinished = links.find(tags.short_name(attachment_id))
        if unfinished is not None and not unfinished.alias:
            links.remove(unfinished)
