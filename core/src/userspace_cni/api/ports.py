"""How a container reaches a port: a tagged union of kinds, with an open case.

Each kind has a name (``kind``), the path of a ``socket``, and the container's ``role`` at the
socket; both are empty if there is no socket. Everything is from the container's point of view.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, TypeAlias

from attrs import Attribute, field, frozen

_KIND = re.compile(r"[a-z][a-z0-9_-]{0,31}")

#: The container's role: the ``server`` creates the socket, the ``client`` connects to it.
Role: TypeAlias = Literal["server", "client", ""]


@frozen(kw_only=True)
class Kernel:
    """An interface of the kernel, in the container's network namespace.

    It is the only kind that needs no hand-over document.
    """

    #: The name of the kind.
    kind: ClassVar[str] = "kernel"
    #: Always empty, because there is no socket.
    socket: ClassVar[str] = ""
    #: Always empty, because there is no socket.
    role: ClassVar[Role] = ""


@frozen(kw_only=True)
class Memif:
    """A shared memory packet interface."""

    #: The name of the kind.
    kind: ClassVar[str] = "memif"
    #: The container's role: the ``server`` creates the socket, the ``client`` connects to it.
    role: Literal["server", "client"]
    #: The path of the socket on the node; ``@NAME`` is an abstract socket in the container's
    #: network namespace.
    socket: str
    #: The format of packets: with an Ethernet header, or only the IP packet.
    mode: Literal["ethernet", "ip", "inject-punt"] = "ethernet"
    #: The id of the interface, which distinguishes the interfaces on one socket.
    id: int = 0
    #: The secret, which must be the same on both ends.
    secret: str = field(default="", repr=False)
    #: The minimum number of receive queues in the container. The switch may use any of them, and
    #: packets to a queue that does not exist are lost.
    rx_queues: int = 1
    #: The maximum number of transmit queues in the container.
    tx_queues: int = 1
    #: The number of entries of a ring, a power of two.
    ring_size: int = 1024
    #: The size of a packet buffer in bytes.
    buffer_size: int = 2048
    #: Whether the client lends its own packet buffers.
    zero_copy: bool = False


@frozen(kw_only=True)
class VhostUser:
    """A vhost-user interface."""

    #: The name of the kind.
    kind: ClassVar[str] = "vhost-user"
    #: The container's role: the ``server`` creates the socket, the ``client`` connects to it.
    mode: Literal["server", "client"]
    #: The path of the socket on the node.
    socket: str
    #: The number of queue pairs.
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
    """Return *values* in the form that JSON gives back, so that they stay equal when stored."""
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

    Core hands it over, stores it and returns it unchanged, even where the engine that made it is
    not installed: in the container, or after the engine was removed.
    """

    #: The name of the kind, which both engines use, such as ``af_xdp``.
    kind: str = field(validator=_custom_kind)
    #: The path of the socket on the node, in the shared directory, or an abstract socket as with
    #: :class:`Memif`; empty if there is none. Each reader gets the path for its own mount of the
    #: directory.
    socket: str = ""
    #: The container's role at the socket; empty if there is none.
    role: Role = ""
    #: Everything else that the container needs, with JSON's types.
    values: Mapping[str, Any] = field(factory=dict, converter=_as_json, repr=False)
    #: The device-info, if the specification has a type for it: ``{"type": "vdpa", "vdpa": {...}}``.
    #: Core adds the version, and only writes it to the file that the runtime requests.
    device_info: Mapping[str, Any] = field(
        factory=dict, converter=_as_json, validator=_device_info, repr=False
    )


#: How a container reaches a port: one of the four kinds.
Port: TypeAlias = Kernel | Memif | VhostUser | CustomPort
