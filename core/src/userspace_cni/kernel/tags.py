"""Ownership tags, stored as the alias (IFLA_IFALIAS) of an interface.

``userspace-cni/1 <attachment id> <network id> network=... container=... ifname=...``

The first word identifies the engine. Only this word and the two IDs are evaluated; the other fields
are for people who read ``ip -d link``.
"""

from __future__ import annotations

import re
from hashlib import sha256
from typing import TYPE_CHECKING

from attrs import frozen

if TYPE_CHECKING:
    from userspace_cni.api import Attachment
    from userspace_cni.kernel.links import Link, Links

#: In bytes: IFALIASZ (256) minus the NUL in the message and the NUL that the kernel adds.
MAX_LENGTH = 254

_ID = "[0-9a-f]{16}"


@frozen
class Tag:
    """The decoded alias of an attachment's interface."""

    #: The attachment's ID.
    id: str
    #: The network's ID, see :func:`network_id`; empty in tags of early versions.
    network: str


@frozen
class Tags:
    """Encoder and decoder for the tags of one engine."""

    #: The first word of the engine's tags, such as ``userspace-cni-ovs/1``.
    prefix: str

    def encode(self, attachment: Attachment) -> str:
        """Return the alias for the interfaces of *attachment*.

        A field that does not fit is left out as a whole: a truncated container ID could match
        another container.
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
        """Decode an alias; return None if it is not a tag of this engine."""
        fields = rf"(?P<id>{_ID})(?: (?P<network>{_ID})(?: [a-z]+=\S+)*)?"
        match = re.fullmatch(f"{re.escape(self.prefix)} {fields}", alias)
        return None if match is None else Tag(match["id"], match["network"] or "")

    def own(self, link: Link, attachment_id: str) -> bool:
        """Return whether *link* carries the tag of the attachment."""
        tag = self.parse(link.alias)
        return tag is not None and tag.id == attachment_id

    def find_all(self, links: Links, attachment_id: str) -> list[Link]:
        """Return all interfaces of the attachment; slow if the namespace has many interfaces."""
        return [link for link in links.all() if self.own(link, attachment_id)]


def network_id(network: str) -> str:
    """Return a network's ID: 16 hexadecimal digits, because its name may be of any length."""
    return sha256(network.encode()).hexdigest()[:16]


def short_name(attachment_id: str) -> str:
    """Return an interface name of 15 characters, derived from the attachment's ID."""
    return f"uc{attachment_id[:13]}"
