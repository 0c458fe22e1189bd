"""Configuration sections of the engine: ``bridge``, ``tap`` and ``macvlan``.

Each validator checks one value and raises ValueError; core adds the path of the key.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Literal

from attrs import field, frozen

from userspace_cni.api.sections import VLAN_MAX, Trunk, within

if TYPE_CHECKING:
    from attrs import Attribute

_ID_MAX = 2**32 - 2  # (uid_t) -1 means "no change"

#: What the kernel's dev_valid_name() accepts.
_INTERFACE_NAME = re.compile(r"(?!\.{1,2}$)[^\s/:]{1,15}")


def _interface_name(_: Any, __: Attribute[Any], value: str) -> None:
    if not _INTERFACE_NAME.fullmatch(value):
        raise ValueError(
            f"expected an interface name of 1 to 15 characters without space, '/' and ':', "
            f"got {value!r}"
        )


def _optional_interface_name(instance: Any, attribute: Attribute[Any], value: str) -> None:
    if value:
        _interface_name(instance, attribute, value)


@frozen(kw_only=True)
class BridgeSection:
    """``host.bridge``: the kernel bridge that the veth becomes a port of (netType ``bridge``)."""

    bridge_name: str = field(validator=_interface_name)
    #: Untagged traffic of the container belongs to this VLAN.
    vlan_id: int | None = field(default=None, validator=within(1, VLAN_MAX))
    #: VLANs that the container sends and receives tagged.
    trunk: tuple[Trunk, ...] = ()
    #: Add each gateway address from IPAM to the bridge, or with *vlan_id* to its VLAN interface.
    gateway: bool = False
    #: Add a default route through the gateway of each address family to the container.
    default_route: bool = False
    #: Create the bridge if it does not exist.
    create: bool = True
    #: Allow the bridge to send a frame back through the port on which it arrived.
    hairpin: bool = False
    #: Set the bridge to promiscuous mode.
    promiscuous: bool = False
    #: Allow traffic only with ports that are not isolated.
    isolated: bool = False


@frozen(kw_only=True)
class TapSection:
    """``host.tap``: who may open the tap, and how."""

    #: User ID that may open the tap without CAP_NET_ADMIN.
    owner: int | None = field(default=None, validator=within(0, _ID_MAX))
    #: Group ID that may open the tap without CAP_NET_ADMIN.
    group: int | None = field(default=None, validator=within(0, _ID_MAX))
    multi_queue: bool = False


@frozen(kw_only=True)
class MacvlanSection:
    """``host.macvlan``: the host interface that the container shares, and the mode."""

    #: The host interface; if empty, the interface of the default route.
    master: str = field(default="", validator=_optional_interface_name)
    mode: Literal["bridge", "private", "vepa", "passthru"] = "bridge"
