"""Construction of attachments from requests and records, for engines."""

from __future__ import annotations

from collections.abc import Iterable

from attrs import evolve

from userspace_cni.api import Addresses, Attachment
from userspace_cni.cni import result as cni_result
from userspace_cni.cni.errors import CheckFailed
from userspace_cni.cni.result import Interface, IPConfig, Result
from userspace_cni.cni.versions import SUPPORTED
from userspace_cni.handover import ContainerDirectory
from userspace_cni.runtime.plan import Plan
from userspace_cni.store import Record

NEWEST = SUPPORTED[-1]


def requested(plan: Plan, directory: ContainerDirectory) -> Attachment:
    """Return the attachment of a request, without addresses."""
    target, conf, asked = plan.target, plan.conf, plan.asked
    return Attachment(
        network=target.network,
        container_id=target.container_id,
        ifname=target.ifname,
        netns=target.netns,
        interface=conf.if0name or target.ifname,
        mac=asked.mac,
        mtu=conf.mtu,
        pod=asked.pod,
        bandwidth=asked.bandwidth,
        args=asked.args,
        directory=directory,
    )


def recorded(record: Record, plan: Plan, directory: ContainerDirectory) -> Attachment:
    """Return the attachment as the host engine got it during ADD."""
    own = cni_result.load(record.result, NEWEST)
    attachment = requested(plan, directory)
    _, interface = _own_interface(own, attachment)
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
    record: Record, plan: Plan, expected: Result, directory: ContainerDirectory
) -> tuple[Attachment, Interface]:
    """Return the attachment with the values of the result *expected*, and its interface in it."""
    attachment = requested(plan, directory)
    index, interface = _own_interface(expected, attachment)
    before = record.conf.previous
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
    """Return *ips* without interface indexes, which only make sense in a complete result."""
    return tuple(evolve(ip, interface=None) for ip in ips)


def _own_interface(expected: Result, attachment: Attachment) -> tuple[int, Interface]:
    for index, interface in enumerate(expected.interfaces):
        if interface.name == attachment.interface and interface.sandbox:
            return index, interface
    raise CheckFailed(
        f"prevResult.interfaces: the container's interface {attachment.interface} is missing",
        "pass the ADD's result to CHECK; if it is that result, DEL and ADD the container again",
    )
