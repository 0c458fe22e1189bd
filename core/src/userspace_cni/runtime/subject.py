"""The attachment that a request or a record is about, as engines are given it."""

from __future__ import annotations

from collections.abc import Iterable

from attrs import evolve

from userspace_cni import config
from userspace_cni.api import Addresses, Attachment
from userspace_cni.cni import result as cni_result
from userspace_cni.cni.errors import CheckFailed
from userspace_cni.cni.request import Request
from userspace_cni.cni.result import Interface, IPConfig, Result
from userspace_cni.cni.versions import SUPPORTED
from userspace_cni.config import NetConf
from userspace_cni.handover import ContainerDirectory
from userspace_cni.store import Record

NEWEST = SUPPORTED[-1]


def requested(request: Request, conf: NetConf, directory: ContainerDirectory) -> Attachment:
    """Return the attachment that *request* asks for."""
    return Attachment(
        network=request.network,
        container_id=request.container_id,
        ifname=request.ifname,
        netns=request.netns,
        interface=conf.if0name or request.ifname,
        mac=conf.requested_mac(request),
        mtu=conf.mtu,
        pod=config.pod_of(request.args),
        bandwidth=conf.requested_bandwidth,
        args=conf.pod_args(request),
        directory=directory,
    )


def recorded(
    record: Record, request: Request, conf: NetConf, directory: ContainerDirectory
) -> Attachment:
    """Return the attachment as the host's engine was given it at ADD."""
    own = cni_result.load(record.result, NEWEST)
    attachment = requested(request, conf, directory)
    _, interface = own_interface(own, attachment)
    from_port = record.port.routes if record.port else ()
    return evolve(
        attachment,
        mac=interface.mac or attachment.mac,
        addresses=Addresses(
            ips=without_index(own.ips),
            routes=tuple(route for route in own.routes if route not in from_port),
            dns=own.dns,
        ),
    )


def checked(
    attachment: Attachment, expected: Result, record: Record
) -> tuple[Attachment, Interface]:
    """Return *attachment* as *expected* tells it, and its interface there."""
    index, interface = own_interface(expected, attachment)
    before = _previous_of(record)
    attachment = evolve(
        attachment,
        mac=interface.mac or None,
        addresses=Addresses(
            ips=without_index(ip for ip in expected.ips if ip.interface in (index, None)),
            routes=tuple(route for route in expected.routes if route not in before.routes),
        ),
    )
    return attachment, interface


def without_index(ips: Iterable[IPConfig]) -> tuple[IPConfig, ...]:
    """Return *ips* as engines get them: the index means something in a whole result alone."""
    return tuple(evolve(ip, interface=None) for ip in ips)


def own_interface(expected: Result, attachment: Attachment) -> tuple[int, Interface]:
    """Return the container's interface in a result, and its index; raises CheckFailed."""
    for index, interface in enumerate(expected.interfaces):
        if interface.name == attachment.interface and interface.sandbox:
            return index, interface
    raise CheckFailed(
        f"prevResult.interfaces: the container's interface {attachment.interface} is not in it",
        "give CHECK the result of the ADD; if it is that, DEL and ADD the container again",
    )


def _previous_of(record: Record) -> Result:
    """Return the ``prevResult`` that the ADD of *record* got, empty where it was first."""
    raw = record.config.get("prevResult")
    if raw is None:
        return Result()
    stated = raw.get("cniVersion") or record.config.get("cniVersion")
    return cni_result.load(raw, stated if stated in cni_result.VERSIONS else NEWEST)
