"""Our IPAM engines accept the same configurations as the executables and refuse the others.

Sections that an engine cannot read at all, for example with values that are not addresses, are left
to the executable.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from ipam.twins import Call, by_engine, by_executable, contents, engine, network
from userspace_cni.ipam import Chooser

if TYPE_CHECKING:
    from collections.abc import Iterable

#: Number of examples of each kind; set TWIN_STEPS for more.
_EXAMPLES = int(os.environ.get("TWIN_STEPS", "200"))

_SUBNETS = (
    *("10.77.0.0/24", "10.77.0.0/24", "10.77.0.1/24", "10.77.0.0/30", "10.77.0.0/31"),
    *("10.77.0.0/32", "fd77::/64", "fd77::1/64", "fd77::/126", "fd77::/127", "10.77.0.0"),
    *("::ffff:10.77.0.0/120", "10.77.0.0/255.255.255.0", "10.077.0.0/24", "nonsense", ""),
)
_ADDRESSES = (
    *(None, None, None, "", "10.77.0.0", "10.77.0.1", "10.77.0.2", "10.77.0.5", "10.77.0.254"),
    *("10.77.0.255", "10.78.0.1", "fd77::", "fd77::5", "fd77::ffff", "::ffff:10.77.0.4"),
    *("10.77.0.05", "fe80::1%eth0", "nonsense", 7),
)
_VERSIONS = ("0.1.0", "0.2.0", "0.3.1", "0.4.0", "1.0.0")
_ARGS = (
    *("", "", "IP=", "IP=10.77.0.7", "IP=10.77.0.7/24", "IP=fd77::7", "IP=nonsense", "MAC=1"),
    *("MAC=1;IgnoreUnknown=1", "MAC=1;IgnoreUnknown=TRUE", "MAC=1;IgnoreUnknown=0"),
    *("IgnoreUnknown=maybe", "IP=10.77.0.7,10.78.0.7/24", "IP=10.77.0.7/24,10.78.0.7/24"),
    "IP=10.77.0.7/24;GATEWAY=10.77.0.1",
    "GATEWAY=10.77.0.1,fd77::1",
    "GATEWAY=nonsense",
)
_IPS: tuple[Any, ...] = (
    None,
    [],
    ["10.77.0.8"],
    ["10.77.0.8/24"],
    ["fd77::8/64", "10.77.0.8/24"],
    [""],
    ["no"],
    7,
)


def _objects(**keys: Iterable[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Return JSON objects in which each key may be missing."""
    values = {key: st.sampled_from([*one]) for key, one in keys.items()}
    return st.fixed_dictionaries({}, optional=values)


_ROUTES = st.lists(
    _objects(dst=("10.9.0.0/16", "10.9.1.2/16", "::/0", "nonsense"), gw=_ADDRESSES).map(
        lambda one: {"dst": "10.8.0.0/16", **one}
    ),
    max_size=2,
)
_ENDS = {"rangeStart": _ADDRESSES, "rangeEnd": _ADDRESSES, "gateway": _ADDRESSES}
_RANGES = _objects(subnet=_SUBNETS, **_ENDS).map(lambda one: {"subnet": "10.79.0.0/24", **one})


@st.composite
def _asked(draw: st.DrawFn) -> tuple[str, dict[str, Any]]:
    keys: dict[str, Any] = {}
    if draw(st.booleans()):
        keys["args"] = {"cni": {"ips": draw(st.sampled_from(_IPS))}}
    if draw(st.booleans()):
        keys["runtimeConfig"] = {"ips": draw(st.sampled_from(_IPS))}
    return draw(st.sampled_from(_ARGS)), keys


@settings(max_examples=_EXAMPLES)
@given(
    old=_objects(subnet=_SUBNETS, **_ENDS),
    ranges=st.lists(st.lists(_RANGES, max_size=2), max_size=2),
    routes=st.none() | _ROUTES,
    version=st.sampled_from(_VERSIONS),
    asked=st.just(("", {})) | _asked(),
)
def test_host_local(
    old: dict[str, Any],
    ranges: list[list[dict[str, Any]]],
    routes: list[dict[str, Any]] | None,
    version: str,
    asked: tuple[str, dict[str, Any]],
) -> None:
    # A default end before the start: see test_twins.py.
    backwards = [one for own in [[old], *ranges] for one in own if not one.get("rangeEnd")]
    assume(not any(str(one.get("rangeStart", "")).endswith((".254", ".255")) for one in backwards))
    ipam = {**old, "ranges": ranges, "routes": routes}
    call = Call("ADD", args=asked[0], keys=asked[1])
    one, other = (Path(tempfile.mkdtemp()) for _ in range(2))
    try:
        conf = network(ipam, other, version)
        chooser = Chooser(("host-local",))
        assume(engine(chooser, conf, call))
        expected = by_executable(network(ipam, one, version), call)
        assert by_engine(chooser, conf, call) == expected
        # The engine refuses an invalid configuration before it creates a directory.
        if expected != "configuration":
            assert contents(one) == contents(other)
    finally:
        shutil.rmtree(one)
        shutil.rmtree(other)


_DNS = _objects(
    nameservers=(["10.0.0.1"], [], None), domain=("example.org", "", None), search=(["a.b"],)
)
_STATIC = _objects(
    address=("10.77.0.2/24", "fd77::2/64", "10.77.0.2", "", None), gateway=_ADDRESSES
)


@settings(max_examples=_EXAMPLES)
@given(
    ipam=st.fixed_dictionaries(
        {"addresses": st.none() | st.lists(_STATIC, max_size=3), "routes": st.none() | _ROUTES},
        optional={"dns": st.none() | _DNS},
    ),
    version=st.sampled_from(_VERSIONS),
    asked=st.just(("", {})) | _asked(),
    command=st.sampled_from(["ADD", "ADD", "CHECK"]),
)
def test_static(
    ipam: dict[str, Any], version: str, asked: tuple[str, dict[str, Any]], command: str
) -> None:
    assume(command == "ADD" or version in ("0.4.0", "1.0.0"))
    conf: dict[str, Any] = {
        "cniVersion": version,
        "name": "twins",
        "type": "userspace",
        "ipam": {"type": "static", **ipam},
        "prevResult": {
            "cniVersion": version,
            "ips": [
                {"version": "4", "address": "10.77.0.2/24", "gateway": "10.77.0.1"},
                {"version": "6", "address": "fd77::2/64"},
            ],
        },
    }
    call = Call(command, args=asked[0], keys=asked[1])
    chooser = Chooser(("static",))
    assume(engine(chooser, conf, call))
    assert by_engine(chooser, conf, call) == by_executable(conf, call)
