"""Results in every version of the protocol, in both directions."""

from __future__ import annotations

from ipaddress import ip_address, ip_interface, ip_network
from itertools import pairwise
from typing import Any

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from userspace_cni.cni.errors import CniError, Code
from userspace_cni.cni.result import (
    DNS,
    VERSIONS,
    Interface,
    IPConfig,
    Result,
    Route,
    dump,
    load,
)

LEGACY = ("0.1.0", "0.2.0")
WITH_IP_VERSION = ("0.3.0", "0.3.1", "0.4.0")

HOST = {"name": "br0", "mac": "02:00:00:00:00:01"}
INSIDE = {"name": "eth0", "mac": "02:00:00:00:00:02", "sandbox": "/run/netns/a"}
DEFAULT4 = {"dst": "0.0.0.0/0", "gw": "10.1.0.1"}
LINK4 = {"dst": "192.0.2.0/24"}
DEFAULT6 = {"dst": "::/0", "gw": "fd00::1"}
EXTRAS4 = {"mtu": 1400, "advmss": 1360, "priority": 0, "table": 0, "scope": 0}
IP_A = {"address": "10.1.0.5/16", "gateway": "10.1.0.1", "interface": 1}
IP_B = {"address": "10.2.0.5/24", "interface": 0}
IP_6 = {"address": "fd00::5/64", "gateway": "fd00::1", "interface": 1}
DNS_JSON = {
    "nameservers": ["10.1.0.53", "fd00::53"],
    "domain": "example.org",
    "search": ["a.example.org", "b.example.org"],
    "options": ["ndots:5"],
}

RICH = Result(
    interfaces=(
        Interface(name="br0", mac="02:00:00:00:00:01", mtu=1500),
        Interface(
            name="eth0",
            mac="02:00:00:00:00:02",
            mtu=1400,
            sandbox="/run/netns/a",
            socket_path="/run/a.sock",
            pci_id="0000:00:1f.6",
        ),
    ),
    ips=(
        IPConfig(address=ip_interface("10.1.0.5/16"), gateway=ip_address("10.1.0.1"), interface=1),
        IPConfig(address=ip_interface("10.2.0.5/24"), interface=0),
        IPConfig(address=ip_interface("fd00::5/64"), gateway=ip_address("fd00::1"), interface=1),
    ),
    routes=(
        Route(
            dst=ip_network("0.0.0.0/0"),
            gw=ip_address("10.1.0.1"),
            mtu=1400,
            advmss=1360,
            priority=0,
            table=0,
            scope=0,
        ),
        Route(dst=ip_network("192.0.2.0/24")),
        Route(dst=ip_network("::/0"), gw=ip_address("fd00::1"), priority=7),
    ),
    dns=DNS(
        nameservers=("10.1.0.53", "fd00::53"),
        domain="example.org",
        search=("a.example.org", "b.example.org"),
        options=("ndots:5",),
    ),
)

#: The representation of RICH in each version.
EXPECTED: dict[str, dict[str, Any]] = {
    "1.1.0": {
        "interfaces": [
            HOST | {"mtu": 1500},
            INSIDE | {"mtu": 1400, "socketPath": "/run/a.sock", "pciID": "0000:00:1f.6"},
        ],
        "ips": [IP_A, IP_B, IP_6],
        "routes": [DEFAULT4 | EXTRAS4, LINK4, DEFAULT6 | {"priority": 7}],
        "dns": DNS_JSON,
    },
    "1.0.0": {
        "interfaces": [HOST, INSIDE],
        "ips": [IP_A, IP_B, IP_6],
        "routes": [DEFAULT4, LINK4, DEFAULT6],
        "dns": DNS_JSON,
    },
    **{
        version: {
            "interfaces": [HOST, INSIDE],
            "ips": [IP_A | {"version": "4"}, IP_B | {"version": "4"}, IP_6 | {"version": "6"}],
            "routes": [DEFAULT4, LINK4, DEFAULT6],
            "dns": DNS_JSON,
        }
        for version in WITH_IP_VERSION
    },
    **{
        version: {
            "ip4": {"ip": "10.1.0.5/16", "gateway": "10.1.0.1", "routes": [DEFAULT4, LINK4]},
            "ip6": {"ip": "fd00::5/64", "gateway": "fd00::1", "routes": [DEFAULT6]},
            "dns": DNS_JSON,
        }
        for version in LEGACY
    },
}


def _plain_interfaces(result: Result) -> Result:
    interfaces = tuple(
        Interface(name=item.name, mac=item.mac, sandbox=item.sandbox) for item in result.interfaces
    )
    routes = tuple(Route(dst=route.dst, gw=route.gw) for route in result.routes)
    return evolve(result, interfaces=interfaces, routes=routes)


def _legacy(result: Result) -> Result:
    """Return what versions before 0.3.0 can express: one address per family, no interface."""
    firsts = (
        next((ip for ip in result.ips if ip.address.version == family), None) for family in (4, 6)
    )
    ips = tuple(evolve(ip, interface=None) for ip in firsts if ip)
    families = [ip.address.version for ip in ips]
    routes = tuple(
        Route(dst=route.dst, gw=route.gw)
        for family in families
        for route in result.routes
        if route.dst.version == family
    )
    return Result(ips=ips, routes=routes, dns=result.dns)


def _as_version_tells(result: Result, version: str) -> Result:
    if version == "1.1.0":
        return result
    return _legacy(result) if version in LEGACY else _plain_interfaces(result)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_result_is_written_as_each_version_demands(version: str) -> None:
    assert dump(RICH, version) == {"cniVersion": version, **EXPECTED[version]}


@pytest.mark.parametrize("version", VERSIONS)
def test_a_result_of_each_version_is_read(version: str) -> None:
    assert load(EXPECTED[version], version) == _as_version_tells(RICH, version)


@pytest.mark.parametrize("source", VERSIONS)
@pytest.mark.parametrize("target", VERSIONS)
def test_every_version_converts_to_every_other(source: str, target: str) -> None:
    converted = dump(load(EXPECTED[source], source), target)
    poorer = min(source, target, key=VERSIONS.index)
    assert converted == dump(_as_version_tells(RICH, poorer), target)


@pytest.mark.parametrize("version", VERSIONS)
def test_an_empty_result_has_no_empty_keys(version: str) -> None:
    one = Result(ips=(IPConfig(address=ip_interface("10.0.0.1/8")),))
    if version in LEGACY:
        expected: dict[str, Any] = {"ip4": {"ip": "10.0.0.1/8"}}
    else:
        expected = {"ips": [{"address": "10.0.0.1/8"}]}
        if version in WITH_IP_VERSION:
            expected["ips"][0]["version"] = "4"
        assert dump(Result(), version) == {"cniVersion": version}
    assert dump(one, version) == {"cniVersion": version, **expected}
    assert load({}, version) == Result()
    assert load(dict.fromkeys(("interfaces", "ips", "routes", "dns", "ip4")), version) == Result()


@pytest.mark.parametrize("version", LEGACY)
def test_a_result_without_address_cannot_be_said_before_0_3_0(version: str) -> None:
    with pytest.raises(CniError) as caught:
        dump(evolve(RICH, ips=()), version)
    assert caught.value.code == Code.INCOMPATIBLE_VERSION
    assert version in caught.value.msg
    assert "without an IP address" in caught.value.msg
    assert "ipam" in caught.value.details


@pytest.mark.parametrize("version", LEGACY)
def test_a_legacy_result_of_ipv6_alone_converts_up(version: str) -> None:
    raw = {"ip6": {"ip": "fd00::5/64", "routes": [{"dst": "::/0"}]}}
    assert dump(load(raw, version), "0.4.0") == {
        "cniVersion": "0.4.0",
        "ips": [{"version": "6", "address": "fd00::5/64"}],
        "routes": [{"dst": "::/0"}],
    }


def test_extension_moves_the_indexes_of_what_comes_after() -> None:
    ours = Result(
        interfaces=(Interface(name="h"), Interface(name="net1", sandbox="/n")),
        ips=(
            IPConfig(address=ip_interface("10.9.0.2/24"), interface=1),
            IPConfig(address=ip_interface("10.9.0.3/24")),
        ),
        routes=(Route(dst=ip_network("10.8.0.0/16")),),
    )
    both = RICH.extended_by(ours)
    assert [item.name for item in both.interfaces] == ["br0", "eth0", "h", "net1"]
    assert [ip.interface for ip in both.ips] == [1, 0, 1, 3, None]
    assert both.interfaces[both.ips[3].interface or 0].name == "net1"
    assert both.routes == (*RICH.routes, *ours.routes)
    assert both.dns == RICH.dns
    assert RICH.extended_by(evolve(ours, dns=DNS(domain="x"))).dns == DNS(domain="x")
    assert Result().extended_by(ours) == ours


@pytest.mark.parametrize(
    ("version", "raw", "key", "value"),
    [
        ("1.1.0", [], "result", "[]"),
        ("1.1.0", "text", "result", "text"),
        ("1.1.0", {"interfaces": {}}, "interfaces", "{}"),
        ("1.1.0", {"interfaces": [7]}, "interfaces[0]", "7"),
        ("1.1.0", {"interfaces": [{"name": 8}]}, "interfaces[0].name", "8"),
        ("1.0.0", {"interfaces": [{}, {"mac": []}]}, "interfaces[1].mac", "[]"),
        ("1.1.0", {"interfaces": [{"mtu": "1500"}]}, "interfaces[0].mtu", "'1500'"),
        ("1.1.0", {"interfaces": [{"mtu": -1}]}, "interfaces[0].mtu", "-1"),
        ("1.1.0", {"interfaces": [{"sandbox": True}]}, "interfaces[0].sandbox", "True"),
        ("1.1.0", {"interfaces": [{"socketPath": 1}]}, "interfaces[0].socketPath", "1"),
        ("1.1.0", {"interfaces": [{"pciID": 2}]}, "interfaces[0].pciID", "2"),
        ("0.3.1", {"ips": "10.0.0.1/8"}, "ips", "10.0.0.1/8"),
        ("0.3.1", {"ips": [None]}, "ips[0]", "None"),
        ("0.4.0", {"ips": [{"address": "10.0.0.1"}]}, "ips[0].address", "10.0.0.1"),
        ("1.0.0", {"ips": [{"address": "10.0.0.1/33"}]}, "ips[0].address", "10.0.0.1/33"),
        ("1.0.0", {"ips": [{"address": 167772161}]}, "ips[0].address", "167772161"),
        ("1.0.0", {"ips": [{}]}, "ips[0].address", "''"),
        (
            "1.0.0",
            {"ips": [{"address": "10.0.0.1/8", "gateway": "there"}]},
            "ips[0].gateway",
            "there",
        ),
        (
            "1.0.0",
            {"ips": [{"address": "10.0.0.1/8", "interface": True}]},
            "ips[0].interface",
            "True",
        ),
        ("1.0.0", {"ips": [{"address": "10.0.0.1/8", "interface": 0.5}]}, "interface", "0.5"),
        ("1.0.0", {"routes": [{"dst": "10.0.0.0"}]}, "routes[0].dst", "10.0.0.0"),
        ("1.0.0", {"routes": [{"dst": "x/8"}]}, "routes[0].dst", "x/8"),
        ("1.0.0", {"routes": [{"dst": "10.0.0.0/8", "gw": "g"}]}, "routes[0].gw", "'g'"),
        ("1.1.0", {"routes": [{"dst": "10.0.0.0/8", "table": "x"}]}, "routes[0].table", "'x'"),
        ("1.0.0", {"dns": []}, "dns", "[]"),
        ("1.0.0", {"dns": {"nameservers": "1.1.1.1"}}, "nameservers", "1.1.1.1"),
        ("1.0.0", {"dns": {"search": [1]}}, "dns.search", "[1]"),
        ("1.0.0", {"dns": {"domain": 1}}, "dns.domain", "1"),
        ("0.2.0", {"ip4": []}, "ip4", "[]"),
        ("0.2.0", {"ip4": {}}, "ip4.ip", "''"),
        ("0.1.0", {"ip6": {"ip": "fd00::1"}}, "ip6.ip", "fd00::1"),
        (
            "0.1.0",
            {"ip4": {"ip": "10.0.0.1/8", "routes": [{"dst": 1}]}},
            "ip4.routes[0].dst",
            "1",
        ),
    ],
)
def test_an_unreadable_result_is_told_by_key_and_value(
    version: str, raw: object, key: str, value: str
) -> None:
    with pytest.raises(CniError) as caught:
        load(raw, version)
    assert caught.value.code == Code.DECODING_FAILURE
    assert key in caught.value.msg
    assert value in caught.value.msg


_NAMES = st.text("abcdefghij0123456789", min_size=1, max_size=15)
_COUNTS = st.none() | st.integers(0, 2**32 - 1)
_ADDRESSES = st.ip_addresses()
_INTERFACES = st.builds(
    Interface,
    name=_NAMES,
    mac=st.sampled_from(["", "02:00:00:00:00:07"]),
    mtu=st.integers(0, 65535),
    sandbox=st.sampled_from(["", "/run/netns/x"]),
    socket_path=st.sampled_from(["", "/run/s"]),
    pci_id=st.sampled_from(["", "0000:00:00.0"]),
)
_IPS = st.builds(
    IPConfig,
    address=st.builds(
        lambda address, length: ip_interface(f"{address}/{length}"),
        _ADDRESSES,
        st.integers(0, 32),
    ),
    gateway=st.none() | _ADDRESSES,
    interface=st.none() | st.integers(0, 9),
)
_ROUTES = st.builds(
    Route,
    dst=st.builds(
        lambda address, length: ip_network(f"{address}/{length}", strict=False),
        _ADDRESSES,
        st.integers(0, 32),
    ),
    gw=st.none() | _ADDRESSES,
    mtu=_COUNTS,
    advmss=_COUNTS,
    priority=_COUNTS,
    table=_COUNTS,
    scope=_COUNTS,
)
_WORDS = st.lists(st.text(min_size=1, max_size=9), max_size=3).map(tuple)
_RESULTS = st.builds(
    Result,
    interfaces=st.lists(_INTERFACES, max_size=3).map(tuple),
    ips=st.lists(_IPS, min_size=1, max_size=4).map(tuple),
    routes=st.lists(_ROUTES, max_size=4).map(tuple),
    dns=st.builds(DNS, nameservers=_WORDS, domain=st.text(), search=_WORDS, options=_WORDS),
)


@given(_RESULTS, st.sampled_from(VERSIONS))
def test_what_is_written_is_read_back(result: Result, version: str) -> None:
    assert load(dump(result, version), version) == _as_version_tells(result, version)


@given(_RESULTS, st.lists(st.sampled_from(VERSIONS), min_size=2, max_size=4))
def test_a_detour_over_other_versions_loses_only_what_the_poorest_cannot_say(
    result: Result, way: list[str]
) -> None:
    poorest = min(way, key=VERSIONS.index)
    raw = dump(result, way[0])
    for before, after in pairwise(way):
        raw = dump(load(raw, before), after)
    assert raw == dump(_as_version_tells(result, poorest), way[-1])
