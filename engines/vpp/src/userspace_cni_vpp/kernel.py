"""The kernel's part of ports for containers that use the kernel: veth pairs."""

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
from userspace_cni.cni.errors import (
    CheckFailed,
    CniError,
    Code,
    DataplaneError,
    DataplaneUnavailable,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import ExitStack

    from userspace_cni.engine import Attachment

_VHOST_NET = "/dev/vhost-net"
_IFF_UP = 1
_SIOCETHTOOL = 0x8946  # linux/sockios.h
_ETHTOOL_STXCSUM = 0x17  # linux/ethtool.h


def require_vhost_net() -> None:
    """Raise DataplaneUnavailable unless this node has what VPP's tap needs."""
    if not os.path.exists(_VHOST_NET):
        raise DataplaneUnavailable(
            f"iftype tap needs {_VHOST_NET}, which this node does not have",
            "load it with: modprobe vhost-net; or use iftype veth",
        )


def create_veth(attachment: Attachment, name: str, mtu: int, undo: ExitStack) -> None:
    """Make a pair: *name* here, the attachment's interface in the container. Both are tagged."""
    alias = _alias(attachment.id)
    with _opened(attachment.netns) as container, _links(f"cannot create {name}") as links:
        try:
            links.link(
                "add",
                ifname=name,
                kind="veth",
                mtu=mtu,
                peer={
                    "ifname": attachment.interface,
                    "address": attachment.mac_for("container"),
                    "mtu": mtu,
                    "net_ns_fd": container,
                },
            )
        except _refusals() as error:
            if _error_number(error) == errno.EEXIST and _find(links, name) is None:
                raise CniError(
                    Code.ALREADY_ATTACHED,
                    f"the container has an interface {attachment.interface} already",
                    f"in {attachment.netns}; DEL it first, or give this attachment another name",
                ) from error
            raise
        # The id in its name makes it ours, should we be killed before the alias is set.
        undo.callback(remove_veth, attachment.id, name)
        # The kernel sees what VPP gets copies of: it must not answer.
        for path, value in (
            (f"ipv6/conf/{name}/disable_ipv6", "1"),
            (f"ipv4/conf/{name}/arp_ignore", "8"),
        ):
            with suppress(FileNotFoundError):
                Path("/proc/sys/net", path).write_text(value, encoding="ascii")
        links.link("set", ifname=name, ifalias=alias, state="up")
    netns.call(attachment.netns, _finish_inside, attachment.interface, alias)


def revive_veth(attachment_id: str, name: str) -> bool:
    """Set the host's end *name* up if it is there and the attachment's; tell whether it is."""
    with _links(f"cannot set the interface {name} up") as links:
        found = _find(links, name)
        if found is None or found.get_attr("IFLA_IFALIAS") != _alias(attachment_id):
            return False
        links.link("set", index=found["index"], state="up")
        return True


def remove_veth(attachment_id: str, name: str) -> None:
    """Remove the pair whose end on the host is *name*, unless another's tag is on it."""
    with _links(f"cannot remove the interface {name}") as links:
        found = _find(links, name)
        if found is not None and found.get_attr("IFLA_IFALIAS") in (None, _alias(attachment_id)):
            try:
                links.link("del", index=found["index"])
            except _refusals() as error:
                # The container's namespace went in between, and the pair with it.
                if _error_number(error) != errno.ENODEV:
                    raise


def check(attachment_id: str, name: str) -> None:
    """Raise CheckFailed unless the host's end *name* is there, up and tagged."""
    with _links(f"cannot look up the interface {name}") as links:
        found = _find(links, name)
    if found is None or found.get_attr("IFLA_IFALIAS") != _alias(attachment_id):
        raise CheckFailed(f"the host's interface {name} is gone, or is not ours")
    if not found["flags"] & _IFF_UP:
        raise CheckFailed(f"the host's interface {name} is down")


def _alias(attachment_id: str) -> str:
    return f"userspace-cni-vpp/1 {attachment_id}"


def _finish_inside(interface: str, alias: str) -> None:
    """Tag the container's end, and have it compute checksums: no hardware follows that would."""
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


def _find(links: Any, name: str) -> Any:
    try:
        return next(iter(links.link("get", ifname=name)), None)
    except _refusals() as error:
        if _error_number(error) == errno.ENODEV:
            return None
        raise


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
