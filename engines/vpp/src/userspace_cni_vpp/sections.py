"""The engine's sections of the network configuration, of the host's end and of the container's.

The validators judge one value each and raise ValueError; the core puts the value's path before it.
"""

from __future__ import annotations

import re
from hashlib import sha256
from ipaddress import ip_interface
from typing import Any, Literal

from attrs import Attribute, field, frozen

from userspace_cni.api import sections
from userspace_cni.api.sections import ID_MAX, QUEUES_MAX, VLAN_MAX, power_of_two, within

_BRIDGE_ID_MAX = (1 << 24) - 1  # VPP's L2_BD_ID_MAX; bridge domain 0 cannot be changed
#: Named bridges have ids of the upper half; who chooses numbers rarely chooses such.
_NAMED_BRIDGES = 1 << 23
_SECRET_MAX = 23  # bytes: the 24 of the memif protocol less the NUL

#: A bridge's name becomes part of a tag, which has 63 bytes.
_BRIDGE_NAME = re.compile(r"[!-~]{1,32}", re.ASCII)


def _bridge_name(_: Any, __: Attribute[Any], value: str) -> None:
    if value and not _BRIDGE_NAME.fullmatch(value):
        raise ValueError(f"expected 1 to 32 visible ASCII characters, got {value!r}")
    if value.isdecimal() and not 1 <= int(value) <= _BRIDGE_ID_MAX:
        raise ValueError(f"a bridge domain has a number of 1 to {_BRIDGE_ID_MAX}, got {value}")


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
    bridge_id: int | None = field(default=None, validator=within(1, _BRIDGE_ID_MAX))
    #: The port's own VLAN: what the container sends untagged has this tag in the bridge domain.
    vlan_id: int | None = field(default=None, validator=within(1, VLAN_MAX))
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
    vrf: int = field(default=0, validator=within(0, ID_MAX - 1))
    #: The port's own addresses with prefix length. Without any it borrows those of a loopback,
    #: which are the gateways that IPAM gave.
    addresses: tuple[str, ...] = field(default=(), validator=_addresses)


@frozen(kw_only=True)
class MemifSection(sections.MemifSection):
    """``memif`` of the host or the container. The host's end is the server by default."""

    #: ``path``: a file in the directory that the container shares; ``abstract``: a name in the
    #: container's network namespace, for which nothing is shared.
    socket: Literal["path", "abstract"] = "path"
    secret: str = field(default="", validator=_secret, repr=False)
    buffer_size: int = field(default=2048, validator=power_of_two(256, 32768))
    rx_queues: int = field(default=1, validator=within(1, QUEUES_MAX))
    tx_queues: int = field(default=1, validator=within(1, QUEUES_MAX))

    @property
    def peer_role(self) -> Literal["server", "client"]:
        """The container's role, where the section is the host's."""
        return "server" if self.is_server is False else "client"


@frozen(kw_only=True)
class VhostSection(sections.VhostSection):
    """``host.vhost``: a vhost-user port, whose application in the container has a virtio driver."""

    #: Of the host: the ``server`` makes the socket. By default the host is the client, because a
    #: virtio-user application that is the client connects once and never again.
    mode: Literal["client", "server"] = "client"

    @property
    def peer_mode(self) -> Literal["server", "client"]:
        """The application's mode."""
        return "client" if self.mode == "server" else "server"


@frozen(kw_only=True)
class VppSection:
    """``host.vpp``: which VPP; by default the node's settings."""

    api_socket: str = field(default="", validator=_absolute)
    api_dir: str = field(default="", validator=_absolute)
