"""The engine's sections of the network configuration: ``bridge``, ``tap`` and ``macvlan``.

The validators judge one value each and raise ValueError; the core puts the value's path before it.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Literal

from attrs import field, frozen

if TYPE_CHECKING:
    from collections.abc import Callable

    from attrs import Attribute

_VLAN_MAX = 4094  # IEEE 802.1Q: 0 and 4095 are reserved
_ID_MAX = 2**32 - 2  # (uid_t) -1 means "no change"

#: What the kernel's dev_valid_name() accepts.
_INTERFACE_NAME = re.compile(r"(?!\.{1,2}$)[^\s/:]{1,15}")


def _within(low: int, high: int) -> Callable[[Any, Attribute[Any], int | None], None]:
    def validate(_: Any, __: Attribute[Any], value: int | None) -> None:
        if value is not None and not low <= value <= high:
            raise ValueError(f"expected {low} to {high}, got {value}")

    return validate


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
class Trunk:
    """One VLAN, or a range of VLANs, that the port carries tagged."""

    id: int | None = field(default=None, validator=_within(1, _VLAN_MAX))
    min_id: int | None = field(
        default=None, validator=_within(1, _VLAN_MAX), metadata={"key": "minID"}
    )
    max_id: int | None = field(
        default=None, validator=_within(1, _VLAN_MAX), metadata={"key": "maxID"}
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
        low = self.id if self.id is not None else self.min_id
        high = self.id if self.id is not None else self.max_id
        assert low is not None  # noqa: S101  the constructor saw to it
        assert high is not None  # noqa: S101
        return range(low, high + 1)


@frozen(kw_only=True)
class BridgeSection:
    """``host.bridge``: the kernel bridge that a veth is put into (netType ``bridge``)."""

    bridge_name: str = field(validator=_interface_name)
    #: Untagged traffic of the container belongs to this VLAN.
    vlan_id: int | None = field(default=None, validator=_within(1, _VLAN_MAX))
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
    owner: int | None = field(default=None, validator=_within(0, _ID_MAX))
    #: The group id that may.
    group: int | None = field(default=None, validator=_within(0, _ID_MAX))
    multi_queue: bool = False


@frozen(kw_only=True)
class MacvlanSection:
    """``host.macvlan``: the host's interface that the container shares, and how."""

    #: Empty: the interface of the default route.
    master: str = field(default="", validator=_optional_interface_name)
    mode: Literal["bridge", "private", "vepa", "passthru"] = "bridge"
