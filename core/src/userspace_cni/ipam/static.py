"""IPAM engine ``static``: addresses given by the configuration or the runtime.

It behaves like the executable of the reference plugins, and stores nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, ClassVar

from attrs import evolve, field, frozen

from userspace_cni.api import (
    DNS,
    CheckFailed,
    InvalidConfig,
    IpamEngine,
    IpamInfo,
    IpamRequest,
    IPConfig,
    Result,
)
from userspace_cni.cni import result
from userspace_cni.cni.request import version_of
from userspace_cni.cni.versions import at_least
from userspace_cni.ipam import asked
from userspace_cni.ipam.address import address, interface, is_address, is_interface
from userspace_cni.ipam.routes import RouteSection, routes

#: The first CNI version with more than one address per family.
_SEVERAL = "0.3.0"


@frozen(kw_only=True)
class AddressSection:
    """An address with its prefix length."""

    address: str = field(validator=is_interface)
    gateway: str | None = field(default=None, validator=is_address)


@frozen(kw_only=True)
class DnsSection:
    """DNS settings of the container."""

    nameservers: tuple[str, ...] | None = None
    domain: str | None = None
    search: tuple[str, ...] | None = None
    options: tuple[str, ...] | None = None


@frozen(kw_only=True)
class StaticSection:
    """The section ``ipam``, as documented for the reference plugin."""

    type: str
    addresses: tuple[AddressSection, ...] | None = None
    routes: tuple[RouteSection, ...] | None = None
    dns: DnsSection | None = None


class Static(IpamEngine):
    """Returns the addresses that the network or the runtime gives."""

    info: ClassVar[IpamInfo] = IpamInfo(
        name="static",
        api_version=(1, 0),
        summary="the addresses given by the configuration or the runtime",
        section=StaticSection,
    )

    def add(self, request: IpamRequest) -> Result:
        """Return the addresses."""
        section: StaticSection = request.section
        dns = section.dns or DnsSection()
        return Result(
            ips=_addresses(request),
            routes=routes(section.routes),
            dns=DNS(
                nameservers=tuple(dns.nameservers or ()),
                domain=dns.domain or "",
                search=tuple(dns.search or ()),
                options=tuple(dns.options or ()),
            ),
        )

    def delete(self, request: IpamRequest) -> None:
        """Do nothing: nothing is kept."""

    def check(self, request: IpamRequest) -> None:
        """Raise CheckFailed if an address has another gateway in ``prevResult``."""
        previous = request.config.get("prevResult")
        if not isinstance(previous, dict):
            raise InvalidConfig("prevResult", "missing; CHECK compares with it")
        there = result.load(previous, previous.get("cniVersion") or version_of(request.config))
        for own in _addresses(request):
            for ip in there.ips:
                if ip.address.ip == own.address.ip:
                    if own.gateway not in (None, ip.gateway):
                        raise CheckFailed(
                            f"{ip.address} of {request.ifname} has the gateway {ip.gateway}, "
                            f"expected {own.gateway}"
                        )
                    break

    def gc(self, request: IpamRequest, valid: Callable[[], Collection[tuple[str, str]]]) -> None:
        """Do nothing: nothing is kept."""

    def status(self, request: IpamRequest) -> None:
        """Raise if the addresses of the configuration cannot be used."""
        _addresses(request)


def _addresses(request: IpamRequest) -> tuple[IPConfig, ...]:
    """Return the addresses of the attachment.

    Addresses in CNI_ARGS are added to those of the configuration; gateways in CNI_ARGS are for
    these added addresses. Addresses in ``args.cni`` replace all of these, and those in
    ``runtimeConfig`` replace all others.
    """
    by_environment, gateways = asked.by_environment(request.args, "IP", "GATEWAY")
    section: StaticSection = request.section
    found = [
        IPConfig(address=_interface("ipam.addresses", one.address), gateway=_gateway(one.gateway))
        for one in section.addresses or ()
    ]
    added = _named("CNI_ARGS IP", by_environment.split(",")) if by_environment else []
    for gateway in gateways.split(",") if gateways else ():
        own = address(gateway.strip())
        if own is None:
            raise InvalidConfig("CNI_ARGS GATEWAY", f"expected IP addresses, got {gateway!r}")
        added = [evolve(ip, gateway=own) if own in ip.address.network else ip for ip in added]
    found += added
    for keys in (("args", "cni", "ips"), ("runtimeConfig", "ips")):
        path, listed = asked.by_configuration(request.config, *keys)
        if listed:
            found = _named(path, listed)
    families = [ip.address.version for ip in found]
    if len({*families}) < len(families) and not at_least(version_of(request.config), _SEVERAL):
        raise InvalidConfig(
            "ipam.addresses",
            f"cniVersion {version_of(request.config)} allows one address of each family, "
            f"got {', '.join(str(ip.address) for ip in found)}",
            f"raise cniVersion to {_SEVERAL} or later, or remove addresses",
        )
    return tuple(found)


def _named(path: str, texts: Collection[str]) -> list[IPConfig]:
    return [IPConfig(address=_interface(path, text.strip())) for text in texts]


def _interface(path: str, text: str) -> Any:
    found = interface(text)
    if found is None:
        raise InvalidConfig(
            path, f"expected addresses with prefix lengths (10.0.0.2/24), got {text!r}"
        )
    return found


def _gateway(text: str | None) -> Any:
    return address(text) if text else None
