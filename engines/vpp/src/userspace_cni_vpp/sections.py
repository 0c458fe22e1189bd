"""Configuration sections of the engine, for the host's end and the container's end.

Each validator checks one value and raises ValueError; core adds the path of the key.
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
#: Named bridges get IDs in the upper half of the range, which people rarely choose as numbers.
_NAMED_BRIDGES = 1 << 23
_SECRET_MAX = 23  # bytes: the memif protocol's 24 minus the NUL

#: A bridge's name becomes part of a tag, which is limited to 63 bytes.
_BRIDGE_NAME = re.compile(r"[!-~]{1,32}", re.ASCII)


def _bridge_name(_: Any, __: Attribute[Any], value: str) -> None:
    if value and not _BRIDGE_NAME.fullmatch(value):
        raise ValueError(f"expected 1 to 32 visible ASCII characters, got {value!r}")
    if value.isdecimal() and not 1 <= int(value) <= _BRIDGE_ID_MAX:
        raise ValueError(f"a bridge domain has a number of 1 to {_BRIDGE_ID_MAX}, got {value}")


def _secret(_: Any, __: Attribute[Any], value: str) -> None:
    # The message does not contain the value, because it is a secret and messages are logged.
    if value and not re.fullmatch(rf"[!-~]{{1,{_SECRET_MAX}}}", value, re.ASCII):
        raise ValueError(f"expected 1 to {_SECRET_MAX} visible ASCII characters (it is not shown)")


def _addresses(_: Any, __: Attribute[Any], value: tuple[str, ...]) -> None:
    for address in value:
        if "/" not in address:
            raise ValueError(f"expected an address with its prefix length, got {address!r}")
        ip_interface(address)  # raises a ValueError that says what is wrong


def _absolute(_: Any, __: Attribute[Any], value: str) -> None:
    if value and not value.startswith("/"):
        raise ValueError(f"expected an absolute path, got {value!r}")


@frozen(kw_only=True)
class BridgeSection:
    """``bridge``: the port's bridge domain, which is created if it does not exist."""

    #: The bridge domain's number, or a name from which the number is derived.
    bridge_name: str = field(default="", validator=_bridge_name)
    #: Key of the predecessor; *bridge_name* takes precedence.
    bridge_id: int | None = field(default=None, validator=within(1, _BRIDGE_ID_MAX))
    #: VLAN of the port: the container's untagged frames have this tag in the bridge domain.
    vlan_id: int | None = field(default=None, validator=within(1, VLAN_MAX))
    #: Host only: give the bridge domain an interface (BVI) with the gateway addresses.
    gateway: bool = False

    @property
    def domain(self) -> int | None:
        """The bridge domain's number; None if neither key is given."""
        if not self.bridge_name:
            return self.bridge_id
        if self.bridge_name.isdecimal():
            return int(self.bridge_name)
        digest = int.from_bytes(sha256(self.bridge_name.encode()).digest()[:3], "big")
        return _NAMED_BRIDGES | digest >> 1

    @property
    def name(self) -> str:
        """The bridge domain's name or number as given."""
        return self.bridge_name or str(self.bridge_id)


@frozen(kw_only=True)
class InterfaceSection:
    """``host.interface``: the host's end of a routed port."""

    #: Routing table (VRF) of the port and its routes; created if it does not exist.
    vrf: int = field(default=0, validator=within(0, ID_MAX - 1))
    #: The port's own addresses, with prefix lengths. By default the port is unnumbered and uses a
    #: loopback's addresses, which are the gateways from IPAM.
    addresses: tuple[str, ...] = field(default=(), validator=_addresses)


@frozen(kw_only=True)
class MemifSection(sections.MemifSection):
    """``memif`` of the host or the container. The host's end is the server by default."""

    #: ``path``: a file in the container's shared directory; ``abstract``: an abstract socket in the
    #: container's network namespace, which needs no shared directory.
    socket: Literal["path", "abstract"] = "path"
    secret: str = field(default="", validator=_secret, repr=False)
    buffer_size: int = field(default=2048, validator=power_of_two(256, 32768))
    rx_queues: int = field(default=1, validator=within(1, QUEUES_MAX))
    tx_queues: int = field(default=1, validator=within(1, QUEUES_MAX))

    @property
    def peer_role(self) -> Literal["server", "client"]:
        """The container's role, if this is the host's section."""
        return "server" if self.is_server is False else "client"


@frozen(kw_only=True)
class VhostSection(sections.VhostSection):
    """``host.vhost``: a vhost-user port for an application with a virtio driver."""

    #: The host's mode; the ``server`` creates the socket. By default the host is the client,
    #: because a virtio-user application in client mode connects only once.
    mode: Literal["client", "server"] = "client"

    @property
    def peer_mode(self) -> Literal["server", "client"]:
        """The application's mode."""
        return "client" if self.mode == "server" else "server"


@frozen(kw_only=True)
class VppSection:
    """``host.vpp``: how to reach VPP; by default the node's settings are used."""

    api_socket: str = field(default="", validator=_absolute)
    api_dir: str = field(default="", validator=_absolute)
