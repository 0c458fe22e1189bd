"""Ranges of addresses for host-local."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations

from attrs import frozen

from userspace_cni.api import InvalidConfig, IPAddress, IPInterface
from userspace_cni.ipam.address import address, interface
from userspace_cni.ipam.host_local.section import RangeSection, RangeSetSection

_PREFIX_SPARE = 2  # bits; a smaller subnet only has network, gateway and broadcast addresses


@frozen
class Range:
    """The addresses of a subnet from *first* to *last*."""

    subnet: IPInterface
    first: IPAddress
    last: IPAddress
    gateway: IPAddress

    def __contains__(self, one: IPAddress) -> bool:
        return one.version == self.first.version and int(self.first) <= int(one) <= int(self.last)

    def __str__(self) -> str:
        return f"{self.first}-{self.last}"

    def usable(self, first: int, last: int) -> Iterator[tuple[IPAddress, Range]]:
        """Yield the addresses with the numbers *first* to *last*, except the gateway."""
        kind = type(self.first)
        for number in range(first, last + 1):
            if (one := kind(number)) != self.gateway:
                yield one, self


@frozen
class RangeSet:
    """Ranges of one address family, from which an attachment gets one address."""

    ranges: tuple[Range, ...]

    def __str__(self) -> str:
        return ",".join(map(str, self.ranges))

    def range_of(self, one: IPAddress) -> Range | None:
        """Return the range that contains the address *one*, or None."""
        return next((own for own in self.ranges if one in own), None)

    def overlaps(self, other: RangeSet) -> bool:
        """Return whether an address is in both range sets."""
        return any(_overlap(one, two) for one in self.ranges for two in other.ranges)

    def after(self, last: IPAddress | None) -> Iterator[tuple[IPAddress, Range]]:
        """Yield every usable address once with its range, beginning after *last*.

        A freed address is therefore not allocated again before all others.
        """
        start = self.range_of(last) if last else None
        if start is None or last is None:
            for own in self.ranges:
                yield from own.usable(int(own.first), int(own.last))
            return
        position = self.ranges.index(start)
        yield from start.usable(int(last) + 1, int(start.last))
        for own in (*self.ranges[position + 1 :], *self.ranges[:position]):
            yield from own.usable(int(own.first), int(own.last))
        yield from start.usable(int(start.first), int(last))


def range_sets(sections: Sequence[tuple[str, RangeSetSection]]) -> list[RangeSet]:
    """Return the range sets that the *sections* describe, each with its path in the configuration.

    Raises:
        InvalidConfig: if one is unusable, or two of them overlap.

    """
    sets = [_range_set(path, section) for path, section in sections]
    for (one, (path, _)), (two, (other, _)) in combinations(zip(sets, sections, strict=True), 2):
        if one.overlaps(two):
            raise InvalidConfig(other, f"{two} overlaps with {one} of {path}")
    return sets


def _range_set(path: str, section: RangeSetSection) -> RangeSet:
    if not section:
        raise InvalidConfig(path, "expected at least one range, got none")
    ranges = tuple(_range(f"{path}[{at}]", one) for at, one in enumerate(section))
    if len({own.first.version for own in ranges}) > 1:
        raise InvalidConfig(path, "expected ranges of one address family, got IPv4 and IPv6")
    for one, two in combinations(ranges, 2):
        if _overlap(one, two):
            raise InvalidConfig(path, f"{two} overlaps with {one}")
    return RangeSet(ranges)


def _range(path: str, section: RangeSection) -> Range:
    subnet = interface(section.subnet)
    if subnet is None:
        raise InvalidConfig(f"{path}.subnet", "missing; name a network, such as 10.1.0.0/24")
    network = subnet.network
    if network.prefixlen > network.max_prefixlen - _PREFIX_SPARE:
        raise InvalidConfig(f"{path}.subnet", f"{subnet} is too small to allocate from")
    if subnet.ip != network.network_address:
        raise InvalidConfig(
            f"{path}.subnet", f"expected a network, such as {network}, got {subnet}"
        )
    gateway = address(section.gateway or "") or network[1]
    last = network[-2] if network.version == 4 else network[-1]
    ends = {"rangeStart": section.range_start, "rangeEnd": section.range_end}
    for key, text in ends.items():
        if text and address(text) not in network:
            raise InvalidConfig(f"{path}.{key}", f"{text} is not in the subnet {network}")
    found = Range(
        subnet,
        address(section.range_start or "") or network[1],
        address(section.range_end or "") or last,
        gateway,
    )
    if int(found.first) > int(found.last):
        raise InvalidConfig(path, f"the range {found} ends before it starts")
    return found


def _overlap(one: Range, two: Range) -> bool:
    return one.first in two or two.first in one
