"""The result of an ADD, and its conversion between all versions of the protocol.

One model, with the structure of version 1.1.0, represents every version; :func:`load` and
:func:`dump` convert. Sources: CNI SPEC, section 5 "Result Types", and the history of that section.
"""

from __future__ import annotations

from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
    ip_address,
    ip_interface,
    ip_network,
)
from typing import Any

from attrs import evolve, field, frozen

from userspace_cni.cni.errors import CniError, Code
from userspace_cni.cni.versions import SUPPORTED, at_least

#: The versions that :func:`load` and :func:`dump` support.
VERSIONS = SUPPORTED

#: An address, from :mod:`ipaddress`.
IPAddress = IPv4Address | IPv6Address
#: An address with the length of its prefix, from :mod:`ipaddress`.
IPInterface = IPv4Interface | IPv6Interface
#: A network, from :mod:`ipaddress`.
IPNetwork = IPv4Network | IPv6Network
Json = dict[str, Any]


@frozen(kw_only=True)
class Interface:
    """A network interface: of the container if it has a *sandbox*, otherwise of the host."""

    #: The name.
    name: str
    #: The MAC address; empty if it has none, or it is unknown.
    mac: str = ""
    #: The MTU in bytes; 0 if unknown.
    mtu: int = 0
    #: The path of the network namespace, as in CNI_NETNS.
    sandbox: str = ""
    #: Absolute path of the socket that belongs to this interface (since 1.1.0).
    socket_path: str = ""
    #: PCI address of the device behind it (since 1.1.0).
    pci_id: str = ""


@frozen(kw_only=True)
class IPConfig:
    """An address with its prefix length, the gateway of its subnet, and its interface."""

    #: The address with the length of its prefix.
    address: IPInterface
    #: The gateway of its subnet.
    gateway: IPAddress | None = None
    #: Index into :attr:`Result.interfaces`.
    interface: int | None = None


@frozen(kw_only=True)
class Route:
    """A route of the container. Everything after *gw* exists since 1.1.0."""

    #: The destination.
    dst: IPNetwork
    #: The next hop; None means the gateway of the address, or no gateway with *scope* "link".
    gw: IPAddress | None = None
    #: The path's MTU in bytes.
    mtu: int | None = None
    #: The largest TCP segment to advertise, in bytes.
    advmss: int | None = None
    #: The metric; lower metrics take precedence.
    priority: int | None = None
    #: The number of the routing table.
    table: int | None = None
    #: The kernel's number for the scope: 0 is universe, 253 is link.
    scope: int | None = None


@frozen(kw_only=True)
class DNS:
    """Resolver settings for the container."""

    #: Addresses of name servers, in the order of their use.
    nameservers: tuple[str, ...] = ()
    #: The local domain.
    domain: str = ""
    #: The domains in which short names are looked up.
    search: tuple[str, ...] = ()
    #: Options of the resolver, such as ``ndots:5``.
    options: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.nameservers or self.domain or self.search or self.options)


@frozen(kw_only=True)
class Result:
    """The answer to an ADD, which a chained plugin gets as ``prevResult``."""

    #: The interfaces of the attachment, in the container and on the host.
    interfaces: tuple[Interface, ...] = ()
    #: The container's addresses.
    ips: tuple[IPConfig, ...] = ()
    #: The container's routes.
    routes: tuple[Route, ...] = ()
    #: The container's resolver settings.
    dns: DNS = field(factory=DNS)

    def extended_by(self, other: Result) -> Result:
        """Return this result followed by *other*, with the interface indexes of *other* adapted."""
        offset = len(self.interfaces)
        moved = (
            ip if ip.interface is None else evolve(ip, interface=ip.interface + offset)
            for ip in other.ips
        )
        return Result(
            interfaces=self.interfaces + other.interfaces,
            ips=(*self.ips, *moved),
            routes=self.routes + other.routes,
            dns=other.dns or self.dns,
        )


def load(raw: object, version: str) -> Result:
    """Read the result *raw*, written in *version*.

    *raw* may come from another plugin, so everything is checked.

    Raises:
        CniError: code 6, naming the key and the value that cannot be read.

    """
    if not isinstance(raw, dict):
        raise _unreadable("result", raw, "a JSON object")
    if not at_least(version, "0.3.0"):
        return _load_legacy(raw)
    return Result(
        interfaces=tuple(
            _load_interface(item, f"interfaces[{i}]")
            for i, item in enumerate(_list(raw, "interfaces"))
        ),
        ips=tuple(_load_ip(item, f"ips[{i}]") for i, item in enumerate(_list(raw, "ips"))),
        routes=tuple(
            _load_route(item, f"routes[{i}]") for i, item in enumerate(_list(raw, "routes"))
        ),
        dns=_load_dns(raw.get("dns")),
    )


def dump(result: Result, version: str) -> Json:
    """Return *result* as a JSON object of *version*.

    Raises:
        CniError: code 1 if a version before 0.3.0 cannot express it, because it has no address.

    """
    if not at_least(version, "0.3.0"):
        return _dump_legacy(result, version)
    body: Json = {"cniVersion": version}
    if result.interfaces:
        body["interfaces"] = [_dump_interface(item, version) for item in result.interfaces]
    if result.ips:
        body["ips"] = [_dump_ip(item, version) for item in result.ips]
    if result.routes:
        body["routes"] = [_dump_route(item, version) for item in result.routes]
    if result.dns:
        body["dns"] = _dump_dns(result.dns)
    return body


# -- reading


def _unreadable(path: str, value: object, expected: str) -> CniError:
    return CniError(Code.DECODING_FAILURE, f"{path}: expected {expected}, got {value!r}")


def _list(raw: Json, key: str) -> list[Any]:
    value = raw.get(key)
    if value is None:
        return []
    if not isinstance(value, list):
        raise _unreadable(key, value, "a list")
    return value


def _object(value: object, path: str) -> Json:
    if not isinstance(value, dict):
        raise _unreadable(path, value, "a JSON object")
    return value


def _string(raw: Json, key: str, path: str) -> str:
    value = raw.get(key)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise _unreadable(f"{path}.{key}", value, "a string")
    return value


def _integer(raw: Json, key: str, path: str) -> int | None:
    value = raw.get(key)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise _unreadable(f"{path}.{key}", value, "a non-negative integer")
    return value


def _address(raw: Json, key: str, path: str) -> IPAddress | None:
    text = _string(raw, key, path)
    if not text:
        return None
    try:
        return ip_address(text)
    except ValueError:
        raise _unreadable(f"{path}.{key}", text, "an IP address") from None


def _cidr(raw: Json, key: str, path: str) -> str:
    # ip_interface() would accept "10.0.0.1" as a /32, and a number; neither is in CIDR notation.
    text = _string(raw, key, path)
    if "/" not in text:
        raise _unreadable(f"{path}.{key}", text, "an address with a prefix length (10.0.0.2/24)")
    return text


def _load_interface(value: object, path: str) -> Interface:
    raw = _object(value, path)
    return Interface(
        name=_string(raw, "name", path),
        mac=_string(raw, "mac", path),
        mtu=_integer(raw, "mtu", path) or 0,
        sandbox=_string(raw, "sandbox", path),
        socket_path=_string(raw, "socketPath", path),
        pci_id=_string(raw, "pciID", path),
    )


def _interface_address(raw: Json, key: str, path: str) -> IPInterface:
    text = _cidr(raw, key, path)
    try:
        return ip_interface(text)
    except ValueError:
        raise _unreadable(f"{path}.{key}", text, "an address with a prefix length") from None


def _load_ip(value: object, path: str) -> IPConfig:
    raw = _object(value, path)
    return IPConfig(
        address=_interface_address(raw, "address", path),
        gateway=_address(raw, "gateway", path),
        interface=_integer(raw, "interface", path),
    )


def _load_route(value: object, path: str) -> Route:
    raw = _object(value, path)
    text = _cidr(raw, "dst", path)
    try:
        dst = ip_network(text, strict=False)
    except ValueError:
        raise _unreadable(f"{path}.dst", text, "a network (10.0.0.0/8)") from None
    return Route(
        dst=dst,
        gw=_address(raw, "gw", path),
        mtu=_integer(raw, "mtu", path),
        advmss=_integer(raw, "advmss", path),
        priority=_integer(raw, "priority", path),
        table=_integer(raw, "table", path),
        scope=_integer(raw, "scope", path),
    )


def _load_dns(value: object) -> DNS:
    if value is None:
        return DNS()
    raw = _object(value, "dns")

    def strings(key: str) -> tuple[str, ...]:
        items = _list(raw, key)
        if not all(isinstance(item, str) for item in items):
            raise _unreadable(f"dns.{key}", items, "a list of strings")
        return tuple(items)

    return DNS(
        nameservers=strings("nameservers"),
        domain=_string(raw, "domain", "dns"),
        search=strings("search"),
        options=strings("options"),
    )


def _load_legacy(raw: Json) -> Result:
    """Read a result of 0.1.0 or 0.2.0: at most one address of each family, with its routes."""
    ips: list[IPConfig] = []
    routes: list[Route] = []
    for key in ("ip4", "ip6"):
        if raw.get(key) is None:
            continue
        family = _object(raw[key], key)
        ips.append(
            IPConfig(
                address=_interface_address(family, "ip", key),
                gateway=_address(family, "gateway", key),
            )
        )
        routes += [
            _load_route(item, f"{key}.routes[{i}]")
            for i, item in enumerate(_list(family, "routes"))
        ]
    return Result(ips=tuple(ips), routes=tuple(routes), dns=_load_dns(raw.get("dns")))


# -- writing


def _present(**members: object) -> Json:
    return {key: value for key, value in members.items() if value not in (None, "", 0)}


def _text(address: IPAddress | None) -> str:
    return "" if address is None else str(address)


def _dump_interface(interface: Interface, version: str) -> Json:
    body: Json = {"name": interface.name}
    body |= _present(mac=interface.mac, sandbox=interface.sandbox)
    if at_least(version, "1.1.0"):
        body |= _present(
            mtu=interface.mtu, socketPath=interface.socket_path, pciID=interface.pci_id
        )
    return body


def _dump_ip(ip: IPConfig, version: str) -> Json:
    body: Json = {"address": str(ip.address)}
    if not at_least(version, "1.0.0"):
        body["version"] = str(ip.address.version)
    if ip.gateway is not None:
        body["gateway"] = str(ip.gateway)
    if ip.interface is not None:
        body["interface"] = ip.interface
    return body


def _dump_route(route: Route, version: str) -> Json:
    body: Json = {"dst": str(route.dst)} | _present(gw=_text(route.gw))
    if at_least(version, "1.1.0"):
        # Table 0 and scope 0 have a meaning to the kernel, so only None means "absent".
        optional = {
            "mtu": route.mtu,
            "advmss": route.advmss,
            "priority": route.priority,
            "table": route.table,
            "scope": route.scope,
        }
        body |= {key: value for key, value in optional.items() if value is not None}
    return body


def _dump_dns(dns: DNS) -> Json:
    return {
        key: value
        for key, value in {
            "nameservers": list(dns.nameservers),
            "domain": dns.domain,
            "search": list(dns.search),
            "options": list(dns.options),
        }.items()
        if value
    }


def _dump_legacy(result: Result, version: str) -> Json:
    body: Json = {"cniVersion": version}
    for key, family in (("ip4", 4), ("ip6", 6)):
        ip = next((ip for ip in result.ips if ip.address.version == family), None)
        if ip is None:
            continue
        body[key] = {"ip": str(ip.address)} | _present(gateway=_text(ip.gateway))
        routes = [
            _dump_route(route, version) for route in result.routes if route.dst.version == family
        ]
        if routes:
            body[key]["routes"] = routes
    if "ip4" not in body and "ip6" not in body:
        raise CniError(
            Code.INCOMPATIBLE_VERSION,
            f"cniVersion {version} cannot express a result without an IP address",
            'give the network an "ipam" section, or a cniVersion of 0.3.0 or later',
        )
    if result.dns:
        body["dns"] = _dump_dns(result.dns)
    return body
