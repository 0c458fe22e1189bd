"""Rate limits of an interface through the kernel's traffic control: tc-tbf(8).

A queueing discipline limits only outgoing traffic. Incoming traffic is therefore redirected to a
helper interface of kind ``ifb``, which forwards it at its own rate. The CNI plugin ``bandwidth``
works in the same way.

Call these functions in the interface's network namespace, except where they take a
:class:`.Namespace` or a namespace's path.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any

from userspace_cni.cni.errors import CheckFailed, CniError, Code, DataplaneError, InvalidConfig
from userspace_cni.kernel.links import Links
from userspace_cni.kernel.namespace import Namespace
from userspace_cni.kernel.netlink import Refused
from userspace_cni.kernel.pyroute import iproute

if TYPE_CHECKING:
    from contextlib import ExitStack

    from userspace_cni.api import Attachment, Bandwidth
    from userspace_cni.kernel.links import Link
    from userspace_cni.kernel.tags import Tags

_ROOT = 0x10000  # handle 1:
_INGRESS = 0xFFFF0000  # handle ffff:
_EVERY_PROTOCOL = 3  # ETH_P_ALL
#: How long a packet may be queued before it is dropped.
_LATENCY = "25ms"
_RATE_MAX = 2**32 - 1  # bytes a second, struct tc_ratespec
#: Longest burst, in seconds at the full rate: the kernel counts 64 ns ticks in 32 bits.
_BURST_MAX = 270
_FRAMES = 2  # smallest burst; with less than one frame no packet would pass


def validate(limits: Bandwidth, mtu: int) -> None:
    """Raise InvalidConfig if the kernel cannot set *limits* on an interface of *mtu* bytes."""
    for key, rate, burst in (
        ("ingressRate", limits.ingress_rate, limits.ingress_burst),
        ("egressRate", limits.egress_rate, limits.egress_burst),
    ):
        if not rate:
            continue
        speed, size = _shape(rate, burst, mtu)
        if speed > _RATE_MAX or size > speed * _BURST_MAX:
            least = _FRAMES * mtu * 8 // _BURST_MAX + 8
            raise InvalidConfig(
                f"bandwidth.{key}",
                f"expected {least} to {_RATE_MAX * 8} bits per second, and a burst of at most "
                f"{_BURST_MAX} seconds of it, got {rate} with a burst of {burst} bits",
            )


def apply(attachment: Attachment, interface: str, tags: Tags, *, host_end: bool = False) -> None:
    """Set the attachment's rate limits on *interface*, and replace limits that it already has.

    Args:
        attachment: its ``bandwidth`` is used; nothing is done if that is None.
        interface: the interface's name.
        tags: the engine's tags, for the helper interface.
        host_end: *interface* is the host's end of the container's veth, which sends what the
            container receives; by default it is the container's own interface.

    Raises:
        InvalidConfig: if the kernel cannot set limits of these values.
        DataplaneError: if the kernel refuses.

    """
    if attachment.bandwidth is None:
        return
    with Links() as links:
        link = links.require(interface)
        validate(attachment.bandwidth, link.mtu)
        sent, received = _rates(attachment.bandwidth, host_end=host_end)
        remove(links, attachment.id, tags)
        try:
            helper = _helper(links, attachment, link, tags) if received[0] else None
            with iproute(f"limit the interface {interface} by traffic control") as kernel:
                if sent[0]:
                    _limit(kernel, link, sent, link.mtu)
                if helper is not None:
                    _limit(kernel, helper, received, link.mtu)
                    _redirect(kernel, link, helper)
        except Refused as error:
            if error.errno in (errno.ENOENT, errno.EOPNOTSUPP):
                raise DataplaneError(
                    f"{error.msg}: this kernel lacks what bandwidth needs",
                    "load it with: modprobe -a sch_tbf sch_ingress cls_u32 act_mirred ifb; or "
                    f"remove bandwidth from the network ({error.details})",
                ) from error
            raise


def check(attachment: Attachment, interface: str, *, host_end: bool = False) -> None:
    """Raise CheckFailed unless *interface* has the limits that :func:`apply` set."""
    if attachment.bandwidth is None:
        return
    sent, received = _rates(attachment.bandwidth, host_end=host_end)
    with Links() as links:
        link, helper = links.find(interface), links.find(helper_name(attachment.id))
    if link is None:
        raise CheckFailed(f"the interface {interface} is gone, and its rate limits with it")
    with iproute(f"read the rate limits of {interface}") as kernel:
        if sent[0] and _rate_of(kernel, link) != _shape(*sent, link.mtu)[0]:
            raise CheckFailed(f"the interface {interface} has lost the limit of what it sends")
        if received[0] and (
            helper is None
            or not helper.up
            or _rate_of(kernel, helper) != _shape(*received, link.mtu)[0]
            or not any(kernel.get_filters(index=link.index, parent=_INGRESS))
        ):
            raise CheckFailed(f"the interface {interface} has lost the limit of what it receives")


def remove(links: Links, attachment_id: str, tags: Tags) -> None:
    """Remove the attachment's helper interface, if it exists.

    The rest is removed together with the limited interface. A helper without a tag is removed as
    well: the request that created it died before it could tag it.
    """
    helper = links.find(helper_name(attachment_id))
    if helper is None or helper.kind != "ifb":
        return
    if not helper.alias or tags.own(helper, attachment_id):
        links.remove(helper)


def apply_inside(container: Namespace, attachment: Attachment, tags: Tags, undo: ExitStack) -> None:
    """Call :func:`apply` for the interface in the container, and push the undo step."""
    if attachment.bandwidth is not None:
        undo.callback(remove_inside, attachment.netns, attachment.id, tags)
        container.call(apply, attachment, attachment.interface, tags)


def check_inside(attachment: Attachment) -> None:
    """Call :func:`check` for the interface in the container."""
    if attachment.bandwidth is not None:
        with Namespace(attachment.netns) as container:
            container.call(check, attachment, attachment.interface)


def mend_inside(attachment: Attachment, tags: Tags) -> None:
    """Restore limits that the interface in the container has lost, if the interface exists."""
    if attachment.bandwidth is not None:
        with Namespace(attachment.netns) as container:
            container.call(_mend, attachment, tags)


def remove_inside(netns: str | None, attachment_id: str, tags: Tags) -> None:
    """Call :func:`remove` in the container's namespace *netns*, if that still exists."""
    if netns is None:
        return
    try:
        container = Namespace(netns)
    except CniError as error:
        if error.code != Code.INVALID_ENVIRONMENT:
            raise
        return
    with container, container.call(Links) as links:
        remove(links, attachment_id, tags)


def helper_name(attachment_id: str) -> str:
    """Return the name of an attachment's helper interface."""
    return f"ul{attachment_id[:13]}"


def _mend(attachment: Attachment, tags: Tags) -> None:
    try:
        check(attachment, attachment.interface)
    except CheckFailed:
        with Links() as links:
            there = links.find(attachment.interface)
        # A tap that a switch created has no tag.
        if there is not None and (not there.alias or tags.own(there, attachment.id)):
            apply(attachment, attachment.interface, tags)


def _rates(limits: Bandwidth, *, host_end: bool) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return (rate, burst) for what the interface sends and for what it receives, in bits."""
    ingress = limits.ingress_rate, limits.ingress_burst
    egress = limits.egress_rate, limits.egress_burst
    return (ingress, egress) if host_end else (egress, ingress)


def _shape(rate: int, burst: int, mtu: int) -> tuple[int, int]:
    """Convert to bytes per second and bytes; the default burst is a tenth of a second."""
    return max(1, rate // 8), max((burst or rate // 10) // 8, _FRAMES * mtu)


def _limit(kernel: Any, link: Link, rate: tuple[int, int], mtu: int) -> None:
    """Limit what *link* sends."""
    speed, burst = _shape(*rate, mtu)
    kernel.tc("replace", "tbf", link.index, _ROOT, rate=speed, burst=burst, latency=_LATENCY)


def _helper(links: Links, attachment: Attachment, link: Link, tags: Tags) -> Link:
    name = helper_name(attachment.id)
    links.create(name, "ifb", mtu=link.mtu)
    links.change(name, ifalias=tags.encode(attachment), up=True)
    return links.require(name)


def _redirect(kernel: Any, link: Link, helper: Link) -> None:
    """Redirect what *link* receives to *helper*."""
    if any(qdisc["handle"] == _INGRESS for qdisc in kernel.get_qdiscs(index=link.index)):
        kernel.tc("del", "ingress", link.index)
    kernel.tc("add", "ingress", link.index)
    kernel.tc(
        "add-filter",
        "u32",
        link.index,
        parent=_INGRESS,
        prio=1,
        protocol=_EVERY_PROTOCOL,
        target=_ROOT,
        keys=["0x0/0x0+0"],
        action={
            "kind": "mirred",
            "direction": "egress",
            "action": "redirect",
            "ifindex": helper.index,
        },
    )


def _rate_of(kernel: Any, link: Link) -> int | None:
    """Return the rate limit of *link* in bytes per second, or None if it has none."""
    for qdisc in kernel.get_qdiscs(index=link.index):
        if qdisc.get_attr("TCA_KIND") == "tbf":
            found = qdisc.get_attr("TCA_OPTIONS").get_attr("TCA_TBF_PARMS")["rate"]
            assert isinstance(found, int)  # noqa: S101  pyroute2 is not typed
            return found
    return None
