"""Ownership tags: the alias (IFLA_IFALIAS) of an interface says who made it, and for whom.

``userspace-cni/1 <attachment id> <network id> network=... container=... ifname=...``

The first word is the engine's own. The ids decide; what follows them is for people who read
``ip -d link``.
"""

from __future__ import annotations

import re
from hashlib import sha256
from typing import TYPE_CHECKING

from attrs import frozen

if TYPE_CHECKING:
    from userspace_cni.api import Attachment
    from userspace_cni.kernel.links import Link, Links

#: In bytes: the kernel's IFALIASZ is 256, less the NUL that is sent along, less the one it adds.
MAX_LENGTH = 254

_ID = "[0-9a-f]{16}"


@frozen
class Tag:
    """What the alias of an attachment's interface says."""

    #: The attachment's id.
    id: str
    #: The network's id, see :func:`network_id`; empty in the tags of early versions.
    network: str


@frozen
class Tags:
    """The tags of one engine."""

    #: The engine's own first word, such as ``userspace-cni-ovs/1``.
    prefix: str

    def encode(self, attachment: Attachment) -> str:
        """Return the alias of *attachment*'s interfaces.

        A field that would not fit as a whole is left out: half a container id names another
        container.
        """
        alias = f"{self.prefix} {attachment.id} {network_id(attachment.network)}"
        for key, value in (
            ("network", attachment.network),
            ("container", attachment.container_id),
            ("ifname", attachment.ifname),
        ):
            longer = f"{alias} {key}={value}"
            if len(longer.encode()) <= MAX_LENGTH:
                alias = longer
        return alias

    def parse(self, alias: str) -> Tag | None:
        """Read an alias; None when it is not exactly of this engine's making."""
        fields = rf"(?P<id>{_ID})(?: (?P<network>{_ID})(?: [a-z]+=\S+)*)?"
        match = re.fullmatch(f"{re.escape(self.prefix)} {fields}", alias)
        return None if match is None else Tag(match["id"], match["network"] or "")

    def own(self, link: Link, attachment_id: str) -> bool:
        """Tell whether *link* has the tag of the attachment."""
        tag = self.parse(link.alias)
        return tag is not None and tag.id == attachment_id

    def find_all(self, links: Links, attachment_id: str) -> list[Link]:
        """Return all interfaces of the attachment; slow where there are many interfaces."""
        return [link for link in links.all() if self.own(link, attachment_id)]


def network_id(network: str) -> str:
    """Return 16 hexadecimal digits that stand for *network*, whose name may be of any length."""
    return sha256(network.encode()).hexdigest()[:16]


def short_name(attachment_id: str) -> str:
    """Return an interface name made of as much of the id as fits into 15 characters."""
    return f"uc{attachment_id[:13]}"
