"""IPAM engine ``host-local``: addresses from ranges, allocated per node.

It behaves like the executable of the reference plugins, and also supports GC and STATUS. Both may
use a directory at the same time. tests/ipam/test_twins.py compares the two and lists intentional
differences.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection
from ipaddress import ip_interface
from typing import ClassVar

from userspace_cni.api import (
    DNS,
    CheckFailed,
    CniError,
    Code,
    InvalidConfig,
    IPAddress,
    IpamEngine,
    IpamInfo,
    IpamRequest,
    IPConfig,
    Result,
)
from userspace_cni.cni.request import version_of
from userspace_cni.cni.versions import at_least
from userspace_cni.config.decoding import structure
from userspace_cni.ipam import asked
from userspace_cni.ipam.address import address, interface
from userspace_cni.ipam.host_local import resolv_conf
from userspace_cni.ipam.host_local.leases import Leases, owner
from userspace_cni.ipam.host_local.ranges import Range, RangeSet, range_sets
from userspace_cni.ipam.host_local.section import HostLocalSection, RangeSetSection
from userspace_cni.ipam.routes import routes

_DATA_DIR = "/var/lib/cni/networks"
#: The first CNI version with more than one address per family.
_SEVERAL = "0.3.0"


class HostLocal(IpamEngine):
    """Allocates addresses from the ranges of the network."""

    info: ClassVar[IpamInfo] = IpamInfo(
        name="host-local",
        api_version=(1, 0),
        summary="addresses from ranges, stored in files that the executable understands",
        section=HostLocalSection,
    )

    def __init__(self) -> None:
        """Begin without any cached leases."""
        self._leases: dict[str, Leases] = {}
        self._guard = threading.Lock()

    def add(self, request: IpamRequest) -> Result:
        """Allocate an address from each range set; if one fails, free those already allocated."""
        section: HostLocalSection = request.section
        sets = _sets(request)
        wanted = _wanted(request)
        dns = resolv_conf.read(section.resolv_conf) if section.resolv_conf else DNS()
        leases = self._of(request)
        found: list[IPConfig] = []
        with leases.locked(request.until):
            try:
                for index, own in enumerate(sets):
                    asked_for = next((one for one in wanted if own.range_of(one)), None)
                    if asked_for is None:
                        found.append(_next(leases, index, own, request))
                    else:
                        wanted.remove(asked_for)
                        found.append(_this(leases, index, own, asked_for, request))
                _require_all_given(wanted, sets)
            except CniError:
                for _ in found:
                    _release(leases, request)
                raise
        return Result(ips=tuple(found), routes=routes(section.routes), dns=dns)

    def delete(self, request: IpamRequest) -> None:
        """Free all addresses of the attachment, in any range."""
        leases = self._of(request)
        with leases.locked(request.until):
            for _ in _sections(request) or "-":
                _release(leases, request)

    def check(self, request: IpamRequest) -> None:
        """Raise CheckFailed if the attachment has no address."""
        leases = self._of(request)
        with leases.locked(request.until):
            if not any(leases.has(whose) for whose in _owners(request)):
                raise CheckFailed(
                    f"container {request.container_id} has no address for {request.ifname} "
                    f"in {leases.directory}"
                )

    def gc(self, request: IpamRequest, valid: Callable[[], Collection[tuple[str, str]]]) -> None:
        """Free all addresses except those of *valid* attachments."""
        leases = self._of(request)
        with leases.locked(request.until):
            attachments = valid()
            stay = {owner(*one) for one in attachments}
            stay |= {owner(container_id, "") for container_id, _ in attachments}
            leases.release_all_but(stay.__contains__)

    def status(self, request: IpamRequest) -> None:
        """Raise CniError 50 if a range set has no address left."""
        sets = _sets(request)
        leases = self._of(request)
        taken = leases.taken()
        for own in sets:
            if all(str(one) in taken for one, _ in own.after(None)):
                raise _exhausted(own, leases, Code.NOT_AVAILABLE)

    def _of(self, request: IpamRequest) -> Leases:
        directory = f"{request.section.data_dir or _DATA_DIR}/{request.network}"
        with self._guard:
            return self._leases.setdefault(directory, Leases(directory))


def _sections(request: IpamRequest) -> list[tuple[str, RangeSetSection]]:
    """Return the range sets with their paths; those from the runtime come first."""
    section: HostLocalSection = request.section
    given = {str(key).lower(): value for key, value in _runtime_config(request).items()}
    path = "runtimeConfig.ipRanges"
    by_runtime = structure(given.get("ipranges") or [], tuple[RangeSetSection, ...], path)
    own = section.range_sets
    old = len(own) - len(section.ranges or ())
    paths = ["ipam"] * old + [f"ipam.ranges[{at}]" for at in range(len(own) - old)]
    return [
        *((f"{path}[{at}]", one) for at, one in enumerate(by_runtime)),
        *zip(paths, own, strict=True),
    ]


def _runtime_config(request: IpamRequest) -> dict[str, object]:
    given = request.config.get("runtimeConfig")
    return given if isinstance(given, dict) else {}


def _sets(request: IpamRequest) -> list[RangeSet]:
    """Return the range sets of the network; raise InvalidConfig."""
    sets = range_sets(_sections(request))
    if not sets:
        raise InvalidConfig("ipam.ranges", "missing; host-local needs a range to allocate from")
    families = [own.ranges[0].first.version for own in sets]
    if len({*families}) < len(families) and not at_least(version_of(request.config), _SEVERAL):
        raise InvalidConfig(
            "ipam.ranges",
            f"cniVersion {version_of(request.config)} allows one address of each family, "
            f"got {len(sets)} range sets",
            f"raise cniVersion to {_SEVERAL} or later, or remove range sets",
        )
    return sets


def _wanted(request: IpamRequest) -> list[IPAddress]:
    """Return the requested addresses without duplicates; prefix lengths are ignored."""
    (by_environment,) = asked.by_environment(request.args, "IP")
    texts = [("CNI_ARGS IP", text) for text in (by_environment,) if text]
    for keys in (("args", "cni", "ips"), ("runtimeConfig", "ips")):
        path, listed = asked.by_configuration(request.config, *keys)
        texts += [(path, text) for text in listed]
    found: dict[IPAddress, None] = {}
    for path, text in texts:
        own = interface(text) if "/" in text else address(text)
        if own is None:
            raise InvalidConfig(path, f"expected IP addresses, got {text!r}")
        found[address(text.partition("/")[0]) or own] = None
    return [*found]


def _owners(request: IpamRequest) -> tuple[bytes, bytes]:
    """Return the contents of the attachment's leases: the current and the older format."""
    return owner(request.container_id, request.ifname), owner(request.container_id, "")


def _release(leases: Leases, request: IpamRequest) -> None:
    new, old = _owners(request)
    if not leases.release(new):
        leases.release(old)


def _require_all_given(wanted: list[IPAddress], sets: list[RangeSet]) -> None:
    if wanted:
        raise CniError(
            Code.IPAM,
            f"cannot allocate the requested addresses {', '.join(map(str, wanted))}",
            f"request one address of each range set: {'; '.join(map(str, sets))}",
        )


def _this(
    leases: Leases, index: int, own: RangeSet, asked_for: IPAddress, request: IpamRequest
) -> IPConfig:
    """Allocate the requested address *asked_for*."""
    there = own.range_of(asked_for)
    assert there is not None  # noqa: S101  the caller has checked it
    if asked_for == there.gateway:
        raise CniError(
            Code.IPAM,
            f"the requested address {asked_for} is the subnet's gateway",
            "request another one",
        )
    if not leases.reserve(str(asked_for), owner(request.container_id, request.ifname)):
        raise CniError(
            Code.IPAM,
            f"the requested address {asked_for} is taken",
            f"request another one of {own}; {leases.directory}/{asked_for} names its owner",
        )
    return _allocated(leases, index, asked_for, there)


def _next(leases: Leases, index: int, own: RangeSet, request: IpamRequest) -> IPConfig:
    """Allocate the next free address."""
    for whose in _owners(request):
        for one in leases.addresses(whose):
            if own.range_of(one):
                raise CniError(
                    Code.IPAM,
                    f"container {request.container_id} already has the address {one} for "
                    f"{request.ifname}",
                    f"DEL it first; the lease is {leases.directory}/{one}",
                )
    whose = owner(request.container_id, request.ifname)
    for one, there in own.after(leases.last(index)):
        if leases.reserve(str(one), whose):
            return _allocated(leases, index, one, there)
    raise _exhausted(own, leases, Code.IPAM)


def _allocated(leases: Leases, index: int, one: IPAddress, there: Range) -> IPConfig:
    leases.set_last(index, str(one))
    return IPConfig(
        address=ip_interface((one, there.subnet.network.prefixlen)), gateway=there.gateway
    )


def _exhausted(own: RangeSet, leases: Leases, code: Code) -> CniError:
    return CniError(
        code,
        f"no address is left in the range set {own}",
        f"enlarge it, or free leases in {leases.directory}: GC frees those of no container",
    )
