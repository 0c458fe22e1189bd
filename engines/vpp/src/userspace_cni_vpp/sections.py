"""The engine's sections of the network configuration, of the host's end and of the container's.

The validators judge one value each and raise ValueError; the core puts the value's path before it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from hashlib import sha256
from ipaddress import ip_interface
from typing import Any, Literal

from attrs import Attribute, field, frozen

_VLAN_MAX = 4094  # IEEE 802.1Q: 0 and 4095 are reserved
_BRIDGE_ID_MAX = (1 << 24) - 1  # VPP's L2_BD_ID_MAX; bridge domain 0 cannot be changed
#: Named bridges have ids of the upper half; who chooses numbers rarely chooses such.
_NAMED_BRIDGES = 1 << 23
_QUEUES_MAX = 255  # an u8 of VPP's API
_SECRET_MAX = 23  # bytes: the 24 of the memif protocol less the NUL
_ID_MAX = 2**32 - 1

_BARE_NAME = re.compile(r"(?!\.{1,2}$)[A-Za-z0-9_.\-]{1,64}", re.ASCII)
#: A bridge's name becomes part of a tag, which has 63 bytes.
_BRIDGE_NAME = re.compile(r"[!-~]{1,32}", re.ASCII)


def _within(low: int, high: int) -> Callable[[Any, Attribute[Any], int | None], None]:
    def validate(_: Any, __: Attribute[Any], value: int | None) -> None:
        if value is not None and not low <= value <= high:
            raise ValueError(f"expected {low} to {high}, got {value}")

    return validate


def _power_of_two(low: int, high: int) -> Callable[[Any, Attribute[Any], int], None]:
    def validate(_: Any, __: Attribute[Any], value: int) -> None:
        if not low <= value <= high or value & (value - 1):
            raise ValueError(f"expected a power of two from {low} to {high}, got {value}")

    return validate


def _bridge_name(_: Any, __: Attribute[Any], value: str) -> None:
    if value and not _BRIDGE_NAME.fullmatch(value):
        raise ValueError(f"expected 1 to 32 visible ASCII characters, got {value!r}")
    if value.isdecimal() and not 1 <= int(value) <= _BRIDGE_ID_MAX:
        raise ValueError(f"a bridge domain has a number of 1 to {_BRIDGE_ID_MAX}, got {value}")


def _file_name(_: Any, __: Attribute[Any], value: str) -> None:
    if value and not _BARE_NAME.fullmatch(value):
        raise ValueError(
            "expected the bare name of a file, 1 to 64 letters, digits, '_', '.' and '-', "
            f"got {value!r}"
        )


def _secret(_: Any, __: Attribute[Any], value: str) -> None:
    # The value is not repeated: it is a secret, and this goes into logs.
    if value and not re.fullmatch(rf"[!-~]{{1,{_SECRET_MAX}}}", value, re.ASCII):
        raise ValueError(f"expected 1 to {_SECRET_MAX} visible ASCII characters (it is not shown)")


def _addresses(_: Any, __: Attribute[Any], value: tuple[str, ...]) -> None:
    for address in value:
        if "/" not in address:
            raise ValueError(f"expected an address with its prefix length, got {address!r}")
        ip_interface(address)  # its own error says what is wrong


def _absolute(_: Any, __: Attribute[Any], value: str) -> None:
    if value and not value.startswith("/"):
        raise ValueError(f"expected an absolute path, got {value!r}")


@frozen(kw_only=True)
class BridgeSection:
    """``bridge``: the bridge domain that the port belongs to; made where it does not exist."""

    #: A number is the bridge domain's; any other name stands for a number derived from it.
    bridge_name: str = field(default="", validator=_bridge_name)
    #: The predecessor's; *bridge_name* wins.
    bridge_id: int | None = field(default=None, validator=_within(1, _BRIDGE_ID_MAX))
    #: The port's own VLAN: what the container sends untagged has this tag in the bridge domain.
    vlan_id: int | None = field(default=None, validator=_within(1, _VLAN_MAX))
    #: Of the host: give the bridge domain an interface (BVI) with the gateways' addresses.
    gateway: bool = False

    @property
    def domain(self) -> int | None:
        """The bridge domain's number; None where the section names none."""
        if not self.bridge_name:
            return self.bridge_id
        if self.bridge_name.isdecimal():
            return int(self.bridge_name)
        digest = int.from_bytes(sha256(self.bridge_name.encode()).digest()[:3], "big")
        return _NAMED_BRIDGES | digest >> 1

    @property
    def name(self) -> str:
        """The name for people."""
        return self.bridge_name or str(self.bridge_id)


@frozen(kw_only=True)
class InterfaceSection:
    """``host.interface``: the host's end of a routed port."""

    #: The table (VRF) that the port and its routes belong to; made where it does not exist.
    vrf: int = field(default=0, validator=_within(0, _ID_MAX - 1))
    #: The port's own addresses with prefix length. Without any it borrows those of a loopback,
    #: which are the gateways that IPAM gave.
    addresses: tuple[str, ...] = field(default=(), validator=_addresses)


@frozen(kw_only=True)
class MemifSection:
    """``memif`` of the host or the container: numbers and roles are of the end that has it."""

    #: The server, which was called master, makes the socket. By default the host's end.
    role: Literal["server", "client", "master", "slave"] | None = None
    mode: Literal["ethernet", "ip", "inject-punt"] = "ethernet"
    #: ``path``: a file in the directory that the container shares; ``abstract``: a name in the
    #: container's network namespace, for which nothing is shared.
    socket: Literal["path", "abstract"] = "path"
    #: Name of the socket file, by default the interface's with ``.sock``.
    socketfile: str = field(default="", validator=_file_name)
    id: int = field(default=0, validator=_within(0, _ID_MAX))
    secret: str = field(default="", validator=_secret, repr=False)
    ring_size: int = field(default=1024, validator=_power_of_two(2, 16384))
    buffer_size: int = field(default=2048, validator=_power_of_two(256, 32768))
    rx_queues: int = field(default=1, validator=_within(1, _QUEUES_MAX))
    tx_queues: int = field(default=1, validator=_within(1, _QUEUES_MAX))
    #: Let the client lend its own packet buffers. Each queue then keeps ring_size of them.
    zero_copy: bool = False
    #: Who the application in the container runs as: owns the shared directory.
    user: str = ""
    #: The application's group: may write to the directory.
    group: str = ""

    @property
    def is_server(self) -> bool | None:
        """Whether the section's end is the server; None where it does not say."""
        return None if self.role is None else self.role in ("server", "master")

    @property
    def peer_role(self) -> Literal["server", "client"]:
        """The container's role, where the section is the host's."""
        return "server" if self.is_server is False else "client"


@frozen(kw_only=True)
class VhostSection:
    """``host.vhost``: a vhost-user port, whose application in the container has a virtio driver."""

    #: Of the host: the ``server`` makes the socket. By default the host is the client, because a
    #: virtio-user application that is the client connects once and never again.
    mode: Literal["client", "server"] = "client"
    #: Name of the socket file, by default the interface's with ``.sock``.
    socketfile: str = field(default="", validator=_file_name)
    #: Pairs of queues that the application should set up.
    queues: int = field(default=1, validator=_within(1, _QUEUES_MAX))
    #: As in :class:`MemifSection`.
    user: str = ""
    group: str = ""

    @property
    def peer_mode(self) -> Literal["server", "client"]:
        """The application's mode."""
        return "client" if self.mode == "server" else "server"


@frozen(kw_only=True)
class VppSection:
    """``host.vpp``: which VPP; by default the node's settings."""

    api_socket: str = field(default="", validator=_absolute)
    api_dir: str = field(default="", validator=_absolute)
