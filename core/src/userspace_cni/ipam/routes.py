"""Routes in the section ``ipam``."""

from __future__ import annotations

from collections.abc import Iterable

from attrs import field, frozen

from userspace_cni.cni.result import Route
from userspace_cni.ipam.address import address, interface, is_address, is_interface


@frozen(kw_only=True)
class RouteSection:
    """A route for every attachment of the network."""

    dst: str = field(validator=is_interface)
    gw: str | None = field(default=None, validator=is_address)
    mtu: int | None = None
    advmss: int | None = None
    priority: int | None = None
    table: int | None = None
    scope: int | None = None


def routes(sections: Iterable[RouteSection] | None) -> tuple[Route, ...]:
    """Return the routes that the *sections* describe."""
    return tuple(map(_route, sections or ()))


def _route(section: RouteSection) -> Route:
    dst = interface(section.dst)
    assert dst is not None  # noqa: S101  validated
    return Route(
        dst=dst.network,
        gw=address(section.gw or ""),
        mtu=section.mtu or None,
        advmss=section.advmss or None,
        priority=section.priority or None,
        table=section.table,
        scope=section.scope,
    )
