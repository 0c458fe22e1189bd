"""How a container reaches its end of a port: a tagged union of kinds, with an open case.

Each kind has a name (``kind``), the path of a ``socket`` and the container's ``role`` at it; where
there is no socket, both are empty. All is said from the container's point of view.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, TypeAlias

from attrs import Attribute, field, frozen

_KIND = re.compile(r"[a-z][a-z0-9_-]{0,31}")

#: Who the container is: the ``server`` makes the socket, the ``client`` connects to it.
Role: TypeAlias = Literal["server", "client", ""]


@frozen(kw_only=True)
class Kernel:
    """An interface of the kernel: the container finds it in its network namespace.

    It is the only kind that is not handed over.
    """

    #: The name of the kind.
    kind: ClassVar[str] = "kernel"
    #: It has none.
    socket: ClassVar[str] = ""
    #: It has none.
    role: ClassVar[Role] = ""


@frozen(kw_only=True)
class Memif:
    """A shared memory packet interface."""

    #: The name of the kind.
    kind: ClassVar[str] = "memif"
    #: The container's: the ``server`` makes the socket, the ``client`` connects to it.
    role: Literal["server", "client"]
    #: Path of the socket on the node; ``@NAME`` is an abstract socket in the container's network
    #: namespace.
    socket: str
    #: What the packets begin with.
    mode: Literal["ethernet", "ip", "inject-punt"] = "ethernet"
    #: Tells the interfaces on one socket apart.
    id: int = 0
    #: Both ends must have the same.
    secret: str = field(default="", repr=False)
    #: How many receive queues the container must have at least: the switch may use any of them,
    #: and what it puts into one that does not exist is lost.
    rx_queues: int = 1
    #: How many transmit queues it may have at most.
    tx_queues: int = 1
    #: Entries of a ring, a power of two.
    ring_size: int = 1024
    #: Bytes of a packet buffer.
    buffer_size: int = 2048
    #: Whether the client lends its own packet buffers.
    zero_copy: bool = False


@frozen(kw_only=True)
class VhostUser:
    """A vhost-user interface."""

    #: The name of the kind.
    kind: ClassVar[str] = "vhost-user"
    #: The container's role: the ``server`` makes the socket, the ``client`` connects to it.
    mode: Literal["server", "client"]
    #: Path of the socket on the node.
    socket: str
    #: Pairs of queues.
    queues: int = 1

    @property
    def role(self) -> Literal["server", "client"]:
        """The same as :attr:`mode`."""
        return self.mode


def _custom_kind(_: object, __: Attribute[Any], value: str) -> None:
    if not _KIND.fullmatch(value) or value in (Kernel.kind, Memif.kind, VhostUser.kind):
        raise ValueError(
            "expected up to 32 lower-case letters, digits, '_' and '-', and no kind that has a "
            f"class of its own, got {value!r}"
        )


def _as_json(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return *values* as they come back from a file, so that what is given back is the same."""
    try:
        told: Mapping[str, Any] = json.loads(json.dumps(values, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ValueError(f"expected values that JSON can hold: {error}") from None
    return told


def _device_info(_: object, __: Attribute[Any], value: Mapping[str, Any]) -> None:
    if value and not isinstance(value.get(str(value.get("type"))), dict):
        raise ValueError(
            'expected {"type": TYPE, TYPE: {...}} of the Device Information Specification, '
            f"got {value!r}"
        )


@frozen(kw_only=True)
class CustomPort:
    """A port of any other kind, such as AF_XDP or vDPA.

    Core hands it over, stores it and gives it back as it is, also where the engine that made it is
    not installed: in the container, or after the engine was removed.
    """

    #: What both engines call it, such as ``af_xdp``.
    kind: str = field(validator=_custom_kind)
    #: Path of its socket on the node, in the shared directory; as with :class:`Memif` it may be
    #: abstract. Each reader sees the path at which it has that directory.
    socket: str = ""
    #: Who the container is at the socket; empty for a port without one.
    role: Role = ""
    #: What else the container must know, of JSON's types.
    values: Mapping[str, Any] = field(factory=dict, converter=_as_json, repr=False)
    #: Its device-info, if the specification has a type for it: ``{"type": "vdpa", "vdpa": {...}}``.
    #: Core adds the version. It goes into the file that the runtime asks for, nowhere else.
    device_info: Mapping[str, Any] = field(
        factory=dict, converter=_as_json, validator=_device_info, repr=False
    )


Port: TypeAlias = Kernel | Memif | VhostUser | CustomPort
