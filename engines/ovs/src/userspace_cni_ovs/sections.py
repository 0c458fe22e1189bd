"""Configuration sections of the engine: ``bridge``, ``vhost``, ``memif`` and ``ovs``.

Each validator checks one value and raises ValueError; core adds the path of the key.
"""

from __future__ import annotations

import re
from typing import Any, Literal

from attrs import Attribute, field, frozen

from userspace_cni.api import sections
from userspace_cni.api.sections import ID_MAX, QUEUES_MAX, VLAN_MAX, power_of_two, within

_OFPORT_MAX = 65279  # largest ofport_request: OFPP_MAX of OpenFlow 1.0 minus one
_MEMIF_SECRET_MAX = 23  # bytes: the protocol's 24 minus the NUL

#: Limited to 15 characters because a bridge is also a network device.
_BRIDGE_NAME = re.compile(r"(?!\.{1,2}$)[^\s/:,]{1,15}")


def _bridge_name(_: Any, __: Attribute[Any], value: str) -> None:
    if value and not _BRIDGE_NAME.fullmatch(value):
        raise ValueError(
            f"expected 1 to 15 characters without space, '/', ':' and ',', got {value!r}"
        )


def _secret(_: Any, __: Attribute[Any], value: str) -> None:
    # The secret becomes part of a comma-separated list of device arguments. Errors do not show it.
    if value and not re.fullmatch(rf"[A-Za-z0-9_.+/\-]{{1,{_MEMIF_SECRET_MAX}}}", value, re.ASCII):
        raise ValueError(
            f"expected 1 to {_MEMIF_SECRET_MAX} letters, digits and '_.+/-' (it is not shown)"
        )


def endpoint(_: Any, __: Attribute[Any], value: str) -> None:
    """Validate the address of a database; empty is fine."""
    if value and not value.startswith(("unix:", "tcp:", "ssl:", "/")):
        raise ValueError(f"expected unix:PATH, tcp:HOST:PORT or ssl:HOST:PORT, got {value!r}")


_TRUNKED = within(0, 4095)  # Open vSwitch's schema


@frozen(kw_only=True)
class Trunk(sections.Trunk):
    """A VLAN or a range of VLANs that the port carries tagged; 0 stands for untagged traffic."""

    id: int | None = field(default=None, validator=_TRUNKED)
    min_id: int | None = field(default=None, validator=_TRUNKED, metadata={"key": "minID"})
    max_id: int | None = field(default=None, validator=_TRUNKED, metadata={"key": "maxID"})


@frozen(kw_only=True)
class BridgeSection:
    """``host.bridge``: the port's bridge, VLANs and OpenFlow port number."""

    bridge_name: str = field(default="", validator=_bridge_name)
    #: Key of the predecessor: without bridgeName it selects the bridge ``br-<bridgeId>``.
    bridge_id: int | None = field(default=None, validator=within(0, ID_MAX))
    #: VLAN of an access port; with *trunk*, the native VLAN.
    vlan_id: int | None = field(default=None, validator=within(1, VLAN_MAX))
    #: VLANs that the container sends and receives tagged.
    trunk: tuple[Trunk, ...] = ()
    #: With *trunk* and *vlan_id*: frames of the native VLAN are tagged as well.
    native_tagged: bool = False
    #: Create the bridge if it does not exist, and remove it with its last port.
    create: bool = False
    #: Datapath of a new bridge: ``netdev`` for userspace, ``system`` for the kernel.
    datapath_type: Literal["netdev", "system"] = "netdev"
    #: Requested OpenFlow port number.
    ofport_request: int | None = field(
        default=None, validator=within(1, _OFPORT_MAX), metadata={"key": "ofportRequest"}
    )

    @property
    def name(self) -> str:
        """The bridge's name; empty if neither key is given."""
        if self.bridge_name or self.bridge_id is None:
            return self.bridge_name
        return f"br-{self.bridge_id}"

    @property
    def trunks(self) -> list[int]:
        """The VLAN IDs of *trunk*, sorted and without duplicates."""
        return sorted({vlan for trunk in self.trunk for vlan in trunk.vlans})

    @property
    def vlan_mode(self) -> str:
        """The value of Open vSwitch's ``vlan_mode``; empty without VLANs."""
        if self.trunk and self.vlan_id is not None:
            return "native-tagged" if self.native_tagged else "native-untagged"
        if self.trunk:
            return "trunk"
        return "access" if self.vlan_id is not None else ""


@frozen(kw_only=True)
class VhostSection(sections.VhostSection):
    """``vhost`` of the host or the container: a vhost-user port."""

    #: Mode of the end that the section belongs to; the ``server`` creates the socket. By default
    #: the host is the client, so that either side may restart.
    mode: Literal["client", "server"] | None = None

    @property
    def peer_mode(self) -> Literal["server", "client"]:
        """The application's mode, if this is the host's section."""
        return "client" if self.mode == "server" else "server"


@frozen(kw_only=True)
class MemifSection(sections.MemifSection):
    """``memif`` of the host or the container: a shared-memory port. The host is the server."""

    secret: str = field(default="", validator=_secret, repr=False)
    buffer_size: int = field(default=2048, validator=power_of_two(256, 65536))
    #: Number of queues per direction; by default as many as the switch sends to.
    queues: int | None = field(default=None, validator=within(1, QUEUES_MAX))


@frozen(kw_only=True)
class OvsSection:
    """``host.ovs``: the switch's database, and whether a pod may name its logical port."""

    #: ``unix:PATH``, ``tcp:HOST:PORT`` or ``ssl:HOST:PORT``; by default the node's setting.
    db: str = field(default="", validator=endpoint)
    #: Allow the pod to name its logical port (``external_ids:iface-id``) through the argument
    #: ``ovnPort`` or ``ifaceId``.
    iface_id_from_args: bool = False
