"""The section ``ipam`` of a network with host-local."""

from __future__ import annotations

from attrs import field, frozen

from userspace_cni.ipam.address import is_absolute, is_address, is_interface
from userspace_cni.ipam.routes import RouteSection


@frozen(kw_only=True)
class RangeSection:
    """A part of a subnet that addresses are given out from."""

    subnet: str = field(validator=is_interface)
    #: The first address and the last one; by default all of the subnet.
    range_start: str | None = field(default=None, validator=is_address)
    range_end: str | None = field(default=None, validator=is_address)
    #: By default the first address of the subnet.
    gateway: str | None = field(default=None, validator=is_address)


RangeSetSection = tuple[RangeSection, ...]


@frozen(kw_only=True)
class HostLocalSection:
    """As the reference plugin documents it."""

    type: str
    #: The first four are a range set of one range, before :attr:`ranges`.
    subnet: str | None = field(default=None, validator=is_interface)
    range_start: str | None = field(default=None, validator=is_address)
    range_end: str | None = field(default=None, validator=is_address)
    gateway: str | None = field(default=None, validator=is_address)
    #: An attachment gets one address of each set.
    ranges: tuple[RangeSetSection, ...] | None = None
    routes: tuple[RouteSection, ...] | None = None
    #: The directory that has one for each network, in place of the node's.
    data_dir: str | None = field(default=None, validator=is_absolute)
    #: A file to read the container's DNS settings from.
    resolv_conf: str | None = None

    @property
    def range_sets(self) -> tuple[RangeSetSection, ...]:
        """All range sets, the one in the old form first."""
        sets = self.ranges or ()
        if not self.subnet:
            return sets
        old = RangeSection(
            subnet=self.subnet,
            range_start=self.range_start,
            range_end=self.range_end,
            gateway=self.gateway,
        )
        return ((old,), *sets)
