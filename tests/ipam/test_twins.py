"""Our host-local behaves like the executable, step by step on the same files.

Intentional differences and their reasons:

- Errors have other texts and codes: ours name the value and the remedy.
- The mode of a lease is 0600, as in newer versions of the executable; Debian's version uses 0644.
- DEL reads neither CNI_ARGS nor the ranges: it does not need them, and an error in them must not
  keep the address forever.
- A lease that cannot be removed is an error; the executable reports success and keeps the address.
- A default range end before the range's start is refused; the executable would allocate addresses
  of other subnets.
- A ``dataDir`` that is neither empty nor absolute is left to the executable, because it is relative
  to the executable's working directory. So are sections with unknown keys, in any case.
- If two addresses of one range set are requested, only the first is tried; the executable tries
  both. The request fails in both cases.
- Changes to an existing file without the lock are noticed with the next change of the directory;
  the executable reads every file every time.
- GC and STATUS are supported: see test_host_local.py.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ipam.twins import Call, by_engine, by_executable, contents, network
from userspace_cni.ipam import Chooser

#: Total number of steps; set TWIN_STEPS for more.
_STEPS = int(os.environ.get("TWIN_STEPS", "2400"))
_STEPS_EACH = 40

_CONTAINERS = ("c1", "c2", "c3", "c4", "c5", "a.long-container_id")
_RANGES: tuple[dict[str, Any], ...] = (
    {"subnet": "10.77.0.0/29"},
    {"subnet": "10.77.0.0/24", "rangeStart": "10.77.0.250"},
    {"subnet": "10.77.1.0/24", "rangeStart": "10.77.1.3", "rangeEnd": "10.77.1.6"},
    {"subnet": "10.77.2.0/30", "gateway": "10.77.2.2"},
    {"subnet": "10.77.3.0/24", "rangeStart": "10.77.3.9", "rangeEnd": "10.77.3.9"},
    {"subnet": "10.77.4.0/24", "rangeEnd": "10.77.4.3", "gateway": "10.77.9.1"},
)
_RANGES6: tuple[dict[str, Any], ...] = (
    {"subnet": "fd77::/125"},
    {"subnet": "fd77:1::/64", "rangeStart": "fd77:1::fffe", "rangeEnd": "fd77:1::1:1"},
    {"subnet": "fd77:2:0:0:1::/80", "rangeEnd": "fd77:2:0:0:1::3", "gateway": "fd77:2::1"},
)


@attrs.frozen
class Network:
    """A network with small ranges."""

    ipam: dict[str, Any]
    #: Range sets that the runtime passes through the capability ``ipRanges``.
    given: list[list[dict[str, Any]]]
    #: All its range sets.
    sets: list[list[dict[str, Any]]]


@st.composite
def networks(draw: st.DrawFn) -> Network:
    four = draw(st.permutations(_RANGES))
    six = draw(st.permutations(_RANGES6))
    # The first two ranges overlap.
    four = [one for one in four if one is not _RANGES[draw(st.integers(0, 1))]]
    sets: list[list[dict[str, Any]]] = []
    for pool, count in ((four, draw(st.integers(0, 3))), (six, draw(st.integers(0, 2)))):
        for _ in range(count):
            size = min(draw(st.integers(1, 2)), len(pool))
            if size:
                sets.append([pool.pop() for _ in range(size)])
    sets = sets or [[four.pop()]]
    sets = draw(st.permutations(sets))
    split = draw(st.integers(0, len(sets)))
    ipam: dict[str, Any] = {"ranges": sets[split:]}
    given = sets[:split] if draw(st.booleans()) else []
    ipam["ranges"] = sets[len(given) :]
    ordered = [*given, *ipam["ranges"]]
    if ipam["ranges"] and len(ipam["ranges"][0]) == 1 and draw(st.booleans()):
        (old,), *ipam["ranges"] = ipam["ranges"]
        ipam |= old
    if draw(st.booleans()):
        ipam["routes"] = [{"dst": "10.9.1.2/16", "gw": "10.77.0.1"}, {"dst": "::/0"}]
    if draw(st.booleans()):
        ipam |= {"gateway": ipam.get("gateway"), "resolvConf": ""}
    return Network(ipam, given, ordered)


def _addresses(net: Network) -> list[str]:
    """Return some addresses in and beside the ranges."""
    found = ["10.78.0.1", "fd78::1"]
    for own in (one for each in net.sets for one in each):
        subnet = ip_network(own["subnet"])
        found += [str(subnet[number]) for number in range(4)]
        found += [own[key] for key in ("rangeStart", "rangeEnd", "gateway") if key in own]
    return found


@attrs.frozen
class Foreign:
    """Another program writes a file; with None it creates a directory or removes the file."""

    name: str
    content: bytes | None


@st.composite
def _asked(draw: st.DrawFn, net: Network) -> tuple[str, dict[str, Any]]:
    """Request addresses, at most one of each range set."""
    address = draw(st.sampled_from(_addresses(net)))
    prefix = draw(st.sampled_from(["", "/24"])) if "." in address else ""
    match draw(st.integers(0, 3)):
        case 0:
            return f"IP={address}{prefix}", {}
        case 1:
            return "K8S_POD_NAME=p;IgnoreUnknown=true", {"args": {"cni": {"ips": [address]}}}
        case 2:
            return "", {"runtimeConfig": {"ips": [f"{address}{prefix}"]}}
        case _:
            one, other = net.sets[0][0], net.sets[-1][-1]
            both = [str(ip_network(own["subnet"])[2]) for own in (one, other)]
            if len(net.sets) == 1:
                both = both[:1] * 2
            return "", {"runtimeConfig": {"ips": both}}


@st.composite
def steps(draw: st.DrawFn, net: Network) -> tuple[Call | Foreign, bool]:
    """Return a step, and whether the two implementations swap their directories for it."""
    addresses = st.sampled_from(_addresses(net))
    swapped = draw(st.booleans())
    container = draw(st.sampled_from(_CONTAINERS))
    ifname = draw(st.sampled_from(["eth0", "net1"]))
    keys: dict[str, Any] = {"runtimeConfig": {"ipRanges": net.given}} if net.given else {}
    kind = draw(st.integers(0, 19))
    if kind < 8:
        return Call("ADD", container, ifname, "", keys), swapped
    if kind < 11:
        args, asked = draw(_asked(net))
        if "runtimeConfig" in asked and keys:
            asked = {"runtimeConfig": {**keys["runtimeConfig"], **asked["runtimeConfig"]}}
        return Call("ADD", container, ifname, args, {**keys, **asked}), swapped
    if kind < 15:
        return Call("DEL", container, ifname, "", keys), swapped
    if kind < 17:
        return Call("CHECK", container, ifname, "", keys), swapped
    prefix = draw(st.sampled_from(["", "", "", "below/", "last_reserved_ip.0", "README"]))
    name = f"{prefix}{draw(addresses)}" if prefix.endswith("/") or not prefix else prefix
    content = draw(
        st.sampled_from(
            [
                None,
                b"",
                container.encode(),
                f"{container}\r\n{ifname}".encode(),
                f"  {container}\r\n{ifname}\n".encode(),
                f"{container}\n{ifname}".encode(),
                b"\xff" * 5000,
                *(one.encode() for one in _addresses(net)[2:4]),
                f"{_addresses(net)[3]}\n".encode(),
            ]
        )
    )
    return Foreign(name, content), swapped


def _write(directory: Path, foreign: Foreign) -> None:
    path = directory / foreign.name
    if foreign.content is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.is_dir():
            # A change in place is not visible in the directory's time.
            path.unlink(missing_ok=True)
            path.write_bytes(foreign.content)
    elif path.is_dir():
        shutil.rmtree(path)
    elif path.exists():
        path.unlink()
    elif not path.name.startswith("last"):
        path.mkdir(parents=True)


@settings(max_examples=max(_STEPS // _STEPS_EACH, 1))
@given(data=st.data())
@pytest.mark.timeout(36000)
def test_both_do_the_same_at_every_step(data: st.DataObject) -> None:
    net = data.draw(networks())
    one, other = (Path(tempfile.mkdtemp()) for _ in range(2))
    chooser = Chooser(("host-local",))
    try:
        for step, swapped in data.draw(
            st.lists(steps(net), min_size=_STEPS_EACH, max_size=_STEPS_EACH)
        ):
            theirs, ours = (other, one) if swapped else (one, other)
            if isinstance(step, Foreign):
                for directory in (theirs, ours):
                    _write(directory / "twins", step)
                continue
            expected = by_executable(network(net.ipam, theirs), step)
            assert by_engine(chooser, network(net.ipam, ours), step) == expected
            assert contents(one) == contents(other)
    finally:
        shutil.rmtree(one)
        shutil.rmtree(other)
