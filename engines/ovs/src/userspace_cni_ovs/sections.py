"""The engine's sections of the network configuration: ``bridge``, ``vhost``, ``memif``, ``ovs``.

The validators judge one value each and raise ValueError; the core puts the value's path before it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Literal

from attrs import Attribute, field, frozen

_VLAN_MAX = 4094  # IEEE 802.1Q: 0 and 4095 are reserved
_TRUNK_MAX = 4095  # Open vSwitch's schema; 0 is what comes without a tag
_OFPORT_MAX = 65279  # OFPP_MAX of OpenFlow 1.0, less one: what ofport_request takes
_QUEUES_MAX = 255  # net_memif: MEMIF_MAX_NUM_RINGS - 1
_MEMIF_SECRET_MAX = 23  # bytes: the 24 of the protocol less the NUL
_ID_MAX = 2**32 - 1

_BARE_NAME = re.compile(r"(?!\.{1,2}$)[A-Za-z0-9_.\-]{1,64}", re.ASCII)
#: Open vSwitch takes more; a bridge is also a network device, whose names have 15 characters.
_BRIDGE_NAME = re.compile(r"(?!\.{1,2}$)[^\s/:,]{1,15}")


def _within(low: int, high: int) -> Callable[[Any, Attribute[Any], int | None], None]:
    def validate(_: Any, __: Attribute[Any], value: int | None) -> None:
        if value is not None and not low <= value <= high:
            raise ValueError(f"expected {low} to {high}, got {value}")

    return validate


def _bridge_name(_: Any, __: Attribute[Any], value: str) -> None:
    if value and not _BRIDGE_NAME.fullmatch(value):
        raise ValueError(
            f"expected 1 to 15 characters without space, '/', ':' and ',', got {value!r}"
        )


def _file_name(_: Any, __: Attribute[Any], value: str) -> None:
    if value and not _BARE_NAME.fullmatch(value):
        raise ValueError(
            "expected the bare name of a file, 1 to 64 letters, digits, '_', '.' and '-', "
            f"got {value!r}"
        )


def _secret(_: Any, __: Attribute[Any], value: str) -> None:
    # It becomes part of a comma-separated list of device arguments. The value is not repeated.
    if value and not re.fullmatch(rf"[A-Za-z0-9_.+/\-]{{1,{_MEMIF_SECRET_MAX}}}", value, re.ASCII):
        raise ValueError(
            f"expected 1 to {_MEMIF_SECRET_MAX} letters, digits and '_.+/-' (it is not shown)"
        )


def _power_of_two(low: int, high: int) -> Callable[[Any, Attribute[Any], int], None]:
    def validate(_: Any, __: Attribute[Any], value: int) -> None:
        if not low <= value <= high or value & (value - 1):
            raise ValueError(f"expected a power of two from {low} to {high}, got {value}")

    return validate


@frozen(kw_only=True)
class Trunk:
    """One VLAN, or a range of VLANs, that the port carries tagged."""

    id: int | None = field(default=None, validator=_within(0, _TRUNK_MAX))
    min_id: int | None = field(
        default=None, validator=_within(0, _TRUNK_MAX), metadata={"key": "minID"}
    )
    max_id: int | None = field(
        default=None, validator=_within(0, _TRUNK_MAX), metadata={"key": "maxID"}
    )

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
class BridgeSection:
    """``host.bridge``: the bridge that the port belongs to, and how."""

    bridge_name: str = field(default="", validator=_bridge_name)
    #: The predecessor's: stands for the bridge ``br-<bridgeId>`` where there is no bridgeName.
    bridge_id: int | None = field(default=None, validator=_within(0, _ID_MAX))
    #: The port's own VLAN: of an access port, and with *trunk* the native one.
    vlan_id: int | None = field(default=None, validator=_within(1, _VLAN_MAX))
    #: VLANs that the container sends and receives tagged.
    trunk: tuple[Trunk, ...] = ()
    #: With *trunk* and *vlan_id*: the native VLAN's traffic carries its tag, too.
    native_tagged: bool = False
    #: Make the bridge where it does not exist, and remove it with its last port.
    create: bool = False
    #: Of a bridge that is made: ``netdev`` is the userspace datapath, ``system`` the kernel's.
    datapath_type: Literal["netdev", "system"] = "netdev"
    #: The OpenFlow port number that the port should have.
    ofport_request: int | None = field(
        default=None, validator=_within(1, _OFPORT_MAX), metadata={"key": "ofportRequest"}
    )

    @property
    def name(self) -> str:
        """The bridge's name, empty where neither key is given."""
        if self.bridge_name or self.bridge_id is None:
            return self.bridge_name
        return f"br-{self.bridge_id}"

    @property
    def trunks(self) -> list[int]:
        """The VLAN ids of *trunk*, in order, each once."""
        return sorted({vlan for trunk in self.trunk for vlan in trunk.vlans})

    @property
    def vlan_mode(self) -> str:
        """What Open vSwitch calls the port's kind, empty without VLANs."""
        if self.trunk and self.vlan_id is not None:
            return "native-tagged" if self.native_tagged else "native-untagged"
        if self.trunk:
            return "trunk"
        return "access" if self.vlan_id is not None else ""


@frozen(kw_only=True)
class VhostSection:
    """``vhost`` of the host or the container: a vhost-user port."""

    #: Of the end that has this section: the ``server`` makes the socket. By default the host is the
    #: client, so that either side may restart.
    mode: Literal["client", "server"] | None = None
    #: Name of the socket in the container's directory, by default the interface's with ``.sock``.
    socketfile: str = field(default="", validator=_file_name)
    #: Pairs of queues that the application should set up.
    queues: int = field(default=1, validator=_within(1, _QUEUES_MAX))
    #: Who the application runs as: owns the directory.
    user: str = ""
    #: The application's group: may write to the directory.
    group: str = ""

    @property
    def peer_mode(self) -> Literal["server", "client"]:
        """The application's mode, where the section is the host's."""
        return "client" if self.mode == "server" else "server"


@frozen(kw_only=True)
class MemifSection:
    """``memif`` of the host or the container: a shared memory port."""

    #: Of the end that has this section. Open vSwitch is always the server.
    role: Literal["server", "client", "master", "slave"] | None = None
    mode: Literal["ethernet", "ip", "inject-punt"] = "ethernet"
    #: Name of the socket in the container's directory, by default the interface's with ``.sock``.
    socketfile: str = field(default="", validator=_file_name)
    id: int = field(default=0, validator=_within(0, _ID_MAX))
    secret: str = field(default="", validator=_secret, repr=False)
    ring_size: int = field(default=1024, validator=_power_of_two(2, 16384))
    buffer_size: int = field(default=2048, validator=_power_of_two(256, 65536))
    #: Receive queues of the application, by default as many as the switch may send to.
    queues: int | None = field(default=None, validator=_within(1, _QUEUES_MAX))
    zero_copy: bool = False
    #: As in :class:`VhostSection`.
    user: str = ""
    group: str = ""

    @property
    def is_server(self) -> bool | None:
        """Whether the section's end is the server; None where it does not say."""
        return None if self.role is None else self.role in ("server", "master")


@frozen(kw_only=True)
class OvsSection:
    """``host.ovs``: which switch, and what a pod may say to it."""

    #: ``unix:PATH``, ``tcp:HOST:PORT`` or ``ssl:HOST:PORT``; by default the node's setting.
    db: str = ""
    #: Let the pod name its logical port (``external_ids:iface-id``) by the argument ``ovnPort`` or
    #: ``ifaceId``.
    iface_id_from_args: bool = False
