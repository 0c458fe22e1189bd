"""Base classes and validators for configuration sections, for authors of engines.

A validator checks one value and raises ValueError; core adds the path of the key to the message. An
engine derives its sections from the classes here, and adds the keys that only its switch has.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Literal

from attrs import Attribute, field, frozen

__all__ = [
    "ID_MAX",
    "QUEUES_MAX",
    "SECONDS_MAX",
    "VLAN_MAX",
    "MemifSection",
    "SocketSection",
    "Trunk",
    "VhostSection",
    "file_name",
    "power_of_two",
    "seconds",
    "within",
]

#: The highest VLAN id: IEEE 802.1Q reserves 0 and 4095.
VLAN_MAX = 4094
#: The highest id of a memif.
ID_MAX = 2**32 - 1
#: The highest number of queues of a memif or vhost-user port.
QUEUES_MAX = 255

#: The longest time limit in settings, in seconds.
SECONDS_MAX = 3600

_BARE_NAME = re.compile(r"(?!\.{1,2}$)[A-Za-z0-9_.\-]{1,64}", re.ASCII)


def within(low: int, high: int) -> Callable[[Any, Attribute[Any], int | None], None]:
    """Return a validator for a number from *low* to *high*, or None."""

    def validate(_: Any, __: Attribute[Any], value: int | None) -> None:
        if value is not None and not low <= value <= high:
            raise ValueError(f"expected {low} to {high}, got {value}")

    return validate


def power_of_two(low: int, high: int) -> Callable[[Any, Attribute[Any], int], None]:
    """Return a validator for a power of two from *low* to *high*."""

    def validate(_: Any, __: Attribute[Any], value: int) -> None:
        if not low <= value <= high or value & (value - 1):
            raise ValueError(f"expected a power of two from {low} to {high}, got {value}")

    return validate


def seconds(_: Any, __: Attribute[Any], value: float) -> None:
    """Validate a time in seconds: more than 0 and at most an hour."""
    if not 0 < value <= SECONDS_MAX:
        raise ValueError(
            f"expected a number of seconds above 0, up to {SECONDS_MAX}, got {value:g}"
        )


def file_name(_: Any, __: Attribute[Any], value: str) -> None:
    """Validate the bare name of a file, or an empty text."""
    if value and not _BARE_NAME.fullmatch(value):
        raise ValueError(
            "expected the bare name of a file, 1 to 64 letters, digits, '_', '.' and '-', "
            f"got {value!r}"
        )


_VLAN = within(1, VLAN_MAX)


@frozen(kw_only=True)
class Trunk:
    """A VLAN, or a range of VLANs, for the tagged traffic of a port."""

    #: A single VLAN.
    id: int | None = field(default=None, validator=_VLAN)
    #: The lowest VLAN of a range.
    min_id: int | None = field(default=None, validator=_VLAN, metadata={"key": "minID"})
    #: The highest VLAN of a range.
    max_id: int | None = field(default=None, validator=_VLAN, metadata={"key": "maxID"})

    def __attrs_post_init__(self) -> None:
        single = self.id is not None
        bounds = [bound for bound in (self.min_id, self.max_id) if bound is not None]
        if (single and bounds) or (not single and len(bounds) != 2):
            raise ValueError("expected either id, or both minID and maxID")
        if bounds and bounds[0] > bounds[1]:
            raise ValueError(f"expected minID up to maxID, got {bounds[0]} to {bounds[1]}")

    @property
    def vlans(self) -> range:
        """The VLAN ids."""
        if self.id is not None:
            return range(self.id, self.id + 1)
        return range(self.min_id or 0, (self.max_id or 0) + 1)


@frozen(kw_only=True)
class SocketSection:
    """A port with a socket in the container's shared directory."""

    #: The name of the socket; the default is the interface's name with ``.sock``.
    socketfile: str = field(default="", validator=file_name)
    #: The user of the application in the container, who owns the directory.
    user: str = ""
    #: The group of the application, which may write to the directory.
    group: str = ""


@frozen(kw_only=True)
class MemifSection(SocketSection):
    """``memif`` of the host or the container; queues and the role are those of this end."""

    #: The ``server`` (formerly ``master``) creates the socket.
    role: Literal["server", "client", "master", "slave"] | None = None
    #: What the packets begin with; both ends must agree.
    mode: Literal["ethernet", "ip", "inject-punt"] = "ethernet"
    #: Tells the interfaces on one socket apart.
    id: int = field(default=0, validator=within(0, ID_MAX))
    #: Entries of a ring, a power of two.
    ring_size: int = field(default=1024, validator=power_of_two(2, 16384))
    #: Let the client lend its own packet buffers. Each queue then occupies *ring_size* of them.
    zero_copy: bool = False

    @property
    def is_server(self) -> bool | None:
        """Whether this end is the server; None if the section does not define it."""
        return None if self.role is None else self.role in ("server", "master")


@frozen(kw_only=True)
class VhostSection(SocketSection):
    """``vhost`` of the host or the container: a vhost-user port."""

    #: The number of queue pairs that the application should set up.
    queues: int = field(default=1, validator=within(1, QUEUES_MAX))
