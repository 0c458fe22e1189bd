"""The kernel's side of ports for containers that use the kernel: veth pairs and moved taps."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct
from array import array
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from userspace_cni import netns
from userspace_cni.cni.errors import CniError, Code, DataplaneError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import ExitStack

    from userspace_cni.engine import Attachment

_SIOCETHTOOL = 0x8946  # linux/sockios.h
_ETHTOOL_STXCSUM = 0x17  # linux/ethtool.h
_ALIAS = "userspace-cni-ovs/1"


def alias_of(attachment_id: str) -> str:
    """Return the alias (IFLA_IFALIAS) that tags an interface as an attachment's."""
    return f"{_ALIAS} {attachment_id}"


def create_veth(attachment: Attachment, name: str, mtu: int, undo: ExitStack) -> None:
    """Make a pair: *name* here, the attachment's interface in the container. Both are tagged.

    The container's end does not leave checksums to hardware: no hardware follows in a userspace
    switch, and TCP segments without a checksum would be dropped.
    """
    taken = f"cannot create the veth pair {name} with {attachment.interface}"
    with _opened(attachment.netns) as container, _links(taken) as links:
        try:
            links.link(
                "add",
                ifname=name,
                kind="veth",
                address=attachment.mac_for("host"),
                mtu=mtu,
                ifalias=alias_of(attachment.id),
                peer={
                    "ifname": attachment.interface,
                    "address": attachment.mac_for("container"),
                    "mtu": mtu,
                    "net_ns_fd": container,
                },
            )
        except _refusals() as error:
            _raise_if_taken(links, error, attachment, name)
            raise
        undo.callback(remove_veth, attachment.id, name)
        _withdraw_host_stack(name)
        links.link("set", ifname=name, ifalias=alias_of(attachment.id), state="up")
    netns.call(attachment.netns, _finish_veth, attachment.interface, alias_of(attachment.id))


def revive_veth(attachment_id: str, name: str) -> bool:
    """Set the host's end *name* up if it is there and the attachment's; tell whether it is."""
    with _links(f"cannot set the interface {name} up") as links:
        found = _find(links, name)
        if found is None or found.get_attr("IFLA_IFALIAS") != alias_of(attachment_id):
            return False
        links.link("set", index=found["index"], state="up")
        return True


def remove_veth(attachment_id: str, name: str) -> None:
    """Remove the pair whose host end is *name*, if it is tagged as the attachment's."""
    with _links(f"cannot remove the interface {name}") as links:
        found = _find(links, name)
        if found is not None and found.get_attr("IFLA_IFALIAS") == alias_of(attachment_id):
            links.link("del", index=found["index"])


def has_veth(attachment_id: str, name: str) -> bool:
    """Tell whether the host end *name* is there, up, and tagged as the attachment's."""
    with _links(f"cannot look up the interface {name}") as links:
        found = _find(links, name)
    return (
        found is not None
        and found.get_attr("IFLA_IFALIAS") == alias_of(attachment_id)
        and bool(found["flags"] & 1)  # IFF_UP
    )


def move_tap(attachment: Attachment, name: str, mtu: int) -> None:
    """Move the tap *name*, which the switch made, into the container as its interface."""
    with (
        _opened(attachment.netns) as container,
        _links(f"cannot move the tap {name} into {attachment.netns}") as links,
    ):
        found = _find(links, name)
        if found is None:
            raise DataplaneError(
                f"Open vSwitch has made the port {name}, and there is no such interface here",
                "iftype tap needs ovs-vswitchd in the network namespace of the CNI plugin; "
                "use iftype vhostuser or memif otherwise",
            )
        try:
            links.link(
                "set", index=found["index"], net_ns_fd=container, ifname=attachment.interface
            )
        except _refusals() as error:
            if _error_number(error) == errno.EEXIST:
                raise _has_already(attachment) from error
            raise
    netns.call(attachment.netns, _finish_tap, attachment, mtu)


def require_kernel_datapath() -> None:
    """Raise DataplaneError unless this kernel has Open vSwitch's own datapath."""
    from pyroute2 import GenericNetlinkSocket
    from pyroute2.netlink import genlmsg

    try:
        with GenericNetlinkSocket() as control:
            control.bind("ovs_datapath", genlmsg)
    except Exception as error:
        raise DataplaneError(
            "host.bridge.datapathType system: this kernel has no Open vSwitch datapath",
            "load it with: modprobe openvswitch; or use the userspace datapath, netdev",
        ) from error


def _finish_veth(interface: str, alias: str) -> None:
    with _links(f"cannot set up the container's interface {interface}") as links:
        links.link("set", ifname=interface, ifalias=alias)
    value = array("B", struct.pack("II", _ETHTOOL_STXCSUM, 0))
    address, _ = value.buffer_info()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        try:
            fcntl.ioctl(control, _SIOCETHTOOL, struct.pack("16sP", interface.encode(), address))
        except OSError as error:
            raise DataplaneError(
                f"cannot switch checksum offload of {interface} off, without which TCP fails",
                error.strerror or "",
            ) from error


def _finish_tap(attachment: Attachment, mtu: int) -> None:
    with _links(
        f"cannot set up the container's interface {attachment.interface} with MTU {mtu}"
    ) as links:
        links.link(
            "set",
            ifname=attachment.interface,
            address=attachment.mac_for("container"),
            mtu=mtu,
            ifalias=alias_of(attachment.id),
        )


def _withdraw_host_stack(name: str) -> None:
    """Keep the host's own network stack from answering the container on a port of the switch.

    The userspace datapath takes copies of the frames: the kernel sees them, too.
    """
    for path, value in (
        (f"ipv6/conf/{name}/disable_ipv6", "1"),
        (f"ipv4/conf/{name}/arp_ignore", "8"),
    ):
        # FileNotFoundError: the kernel has no IPv6, and nothing is to be kept.
        with suppress(FileNotFoundError):
            Path("/proc/sys/net", path).write_text(value, encoding="ascii")


def _find(links: Any, name: str) -> Any:
    try:
        return next(iter(links.link("get", ifname=name)), None)
    except _refusals() as error:
        if _error_number(error) == errno.ENODEV:
            return None
        raise


def _raise_if_taken(links: Any, error: Exception, attachment: Attachment, name: str) -> None:
    if _error_number(error) != errno.EEXIST:
        return
    if _find(links, name) is None:
        raise _has_already(attachment) from error
    raise DataplaneError(
        f"the interface name {name} is taken on the host",
        f"see ip -d link show {name}, and remove it with: ip link delete {name}",
    ) from error


def _has_already(attachment: Attachment) -> CniError:
    return CniError(
        Code.ALREADY_ATTACHED,
        f"the container has an interface {attachment.interface} already",
        f"in {attachment.netns}; DEL it first, or give this attachment another name",
    )


def _refusals() -> tuple[type[Exception], ...]:
    """Return what a netlink socket raises: pyroute2's error is no OSError."""
    from pyroute2.netlink.exceptions import NetlinkError

    return NetlinkError, OSError


def _error_number(error: Exception) -> int:
    return int(getattr(error, "code", 0) or getattr(error, "errno", 0) or 0)


@contextmanager
def _links(failure: str) -> Iterator[Any]:
    """Open a netlink socket; what the kernel refuses becomes a DataplaneError about *failure*."""
    from pyroute2.iproute.linux import IPRoute

    try:
        with IPRoute() as links:
            yield links
    except _refusals() as error:
        words = os.strerror(_error_number(error))
        raise DataplaneError(failure, f"the kernel says: {words}") from error


@contextmanager
def _opened(path: str) -> Iterator[int]:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise CniError(
            Code.INVALID_ENVIRONMENT,
            f"the container's network namespace {path} cannot be opened",
            f"{error.strerror}; has the container ended?",
        ) from error
    try:
        yield descriptor
    finally:
        os.close(descriptor)
