"""Persistent tap in the container, for an application in the container."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any

from userspace_cni.api import DataplaneError, DataplaneUnavailable
from userspace_cni.kernel import limits
from userspace_cni.kernel.links import Links
from userspace_cni.kernel.namespace import Namespace
from userspace_cni.kernel.veth import taken_inside
from userspace_cni_linux import inside

if TYPE_CHECKING:
    from contextlib import ExitStack

    from userspace_cni.api import Attachment
    from userspace_cni.kernel.links import Link
    from userspace_cni_linux.sections import TapSection

DEVICE = Path("/dev/net/tun")

# linux/if_tun.h
_TUNSETIFF = 0x400454CA
_TUNSETPERSIST = 0x400454CB
_TUNSETOWNER = 0x400454CC
_TUNSETGROUP = 0x400454CE
_IFF_TAP = 0x0002
_IFF_NO_PI = 0x1000
_IFF_TUN_EXCL = 0x8000
_IFF_MULTI_QUEUE = 0x0100


def require_device() -> None:
    """Raise DataplaneUnavailable unless the kernel supports taps."""
    if not DEVICE.exists():
        raise DataplaneUnavailable(
            f"{DEVICE} does not exist: no tap can be made",
            "load the module with: modprobe tun; in a container, pass the device in",
        )


def create(attachment: Attachment, section: TapSection, undo: ExitStack) -> Link:
    """Create the tap in the container and return it.

    Raises:
        CniError: code 103 if the container already has an interface of that name.
        DataplaneUnavailable: if the tap device cannot be opened.
        DataplaneError: if the kernel refuses.

    """
    options: dict[str, Any] = {"address": attachment.mac_for("container")}
    if attachment.mtu is not None:
        options["mtu"] = attachment.mtu
    with Namespace(attachment.netns) as container:
        links, device = container.call(_open, attachment.interface)
        with links:
            try:
                inside.require_new(links, attachment)
                undo.callback(inside.remove, attachment.netns, attachment.id)
                _make(links, device, attachment, section)
            finally:
                os.close(device)
            links.change(attachment.interface, **options)
            limits.apply_inside(container, attachment, inside.TAGS, undo)
            return links.require(attachment.interface)


def _open(name: str) -> tuple[Links, int]:
    """Open a netlink socket and the tap device; both work in the calling thread's namespace."""
    try:
        device = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise DataplaneUnavailable(
            f"cannot open {DEVICE}, to make the tap {name}", error.strerror or ""
        ) from error
    try:
        return Links(), device
    except BaseException:
        os.close(device)
        raise


def _make(links: Links, device: int, attachment: Attachment, section: TapSection) -> None:
    name = attachment.interface
    flags = _IFF_TAP | _IFF_NO_PI | _IFF_TUN_EXCL
    if section.multi_queue:
        flags |= _IFF_MULTI_QUEUE
    try:
        fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH22x", name.encode(), flags))
        if section.owner is not None:
            fcntl.ioctl(device, _TUNSETOWNER, section.owner)
        if section.group is not None:
            fcntl.ioctl(device, _TUNSETGROUP, section.group)
        links.change(name, ifalias=inside.TAGS.encode(attachment))
        # Set this last. Until then the tap disappears when the descriptor is closed, so no tap
        # can be left behind without a tag.
        fcntl.ioctl(device, _TUNSETPERSIST, 1)
    except OSError as error:
        # EBUSY: a tap of that name exists. EINVAL: another kind of interface has that name.
        taken = error.errno in (errno.EBUSY, errno.EINVAL, errno.EEXIST)
        if taken and links.find(name) is not None:
            raise taken_inside(attachment) from error
        raise DataplaneError(f"cannot create the tap {name}", error.strerror or "") from error
