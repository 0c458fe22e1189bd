"""Section ``ipam`` of a network with host-local."""

from __future__ import annotations

from attrs import field, frozen

from userspace_cni.ipam.address import is_absolute, is_address, is_interface
from userspace_cni.ipam.routes import RouteSection


@frozen(kw_only=True)
class RangeSection:
    """A part of a subnet from which addresses are allocated."""

    subnet: str = field(validator=is_interface)
    #: First and last address; by default the whole subnet.
    range_start: str | None = field(default=None, validator=is_address)
    range_end: str | None = field(default=None, validator=is_address)
    #: By default the first address of the subnet.
    gateway: str | None = field(default=None, validator=is_address)


RangeSetSection = tuple[RangeSection, ...]


@frozen(kw_only=True)
class HostLocalSection:
    """The section, as documented for the reference plugin."""

    type: str
    #: This and the next three keys form a range set with one range, before :attr:`ranges`.
    subnet: str | None = field(default=None, validator=is_interface)
    range_start: str | None = field(default=None, validator=is_address)
    range_end: str | None = field(default=None, validator=is_address)
    gateway: str | None = field(default=None, validator=is_address)
    #: An attachment gets one address from each set.
    ranges: tuple[RangeSetSection, ...] | None = None
    routes: tuple[RouteSection, ...] | None = None
    #: Directory with a subdirectory for each network, instead of the default.
    data_dir: str | None = field(default=None, validator=is_absolute)
    #: A file from which the container's DNS settings are read.
    resolv_conf: str | None = None

    @property
    def range_sets(self) -> tuple[RangeSetSection, ...]:
        """All range sets, beginning with the one in the old form."""
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
