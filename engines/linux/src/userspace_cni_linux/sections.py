"""The engine's sections of the network configuration: ``bridge``, ``tap`` and ``macvlan``.

The validators judge one value each and raise ValueError; the core puts the value's path before it.
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
    """``host.bridge``: the kernel bridge that a veth is put into (netType ``bridge``)."""

    bridge_name: str = field(validator=_interface_name)
    #: Untagged traffic of the container belongs to this VLAN.
    vlan_id: int | None = field(default=None, validator=within(1, VLAN_MAX))
    #: VLANs that the container sends and receives tagged.
    trunk: tuple[Trunk, ...] = ()
    #: The bridge (with *vlan_id* its VLAN sub-interface) gets each gateway address that IPAM tells.
    gateway: bool = False
    #: The container gets a default route through the gateway of each address family.
    default_route: bool = False
    #: Make the bridge where it does not exist.
    create: bool = True
    #: The bridge may send a frame back through the port that it came from.
    hairpin: bool = False
    promiscuous: bool = False
    #: The port reaches only ports that are not isolated.
    isolated: bool = False


@frozen(kw_only=True)
class TapSection:
    """``host.tap``: who may open the tap, and how."""

    #: The user id that may attach to the tap without CAP_NET_ADMIN.
    owner: int | None = field(default=None, validator=within(0, _ID_MAX))
    #: The group id that may.
    group: int | None = field(default=None, validator=within(0, _ID_MAX))
    multi_queue: bool = False


@frozen(kw_only=True)
class MacvlanSection:
    """``host.macvlan``: the host's interface that the container shares, and how."""

    #: Empty: the interface of the default route.
    master: str = field(default="", validator=_optional_interface_name)
    mode: Literal["bridge", "private", "vepa", "passthru"] = "bridge"
