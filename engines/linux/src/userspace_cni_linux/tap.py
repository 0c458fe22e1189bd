"""A persistent tap in the container, whose other end is an application in the container."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from pathlib import Path
from typing import TYPE_CHECKING

from userspace_cni import netns
from userspace_cni.cni.errors import CniError, Code, DataplaneError, DataplaneUnavailable
from userspace_cni_linux import inside, tags
from userspace_cni_linux.links import Links

if TYPE_CHECKING:
    from contextlib import ExitStack

    from userspace_cni.engine import Attachment
    from userspace_cni_linux.links import Link
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
    """Raise DataplaneUnavailable unless the kernel offers taps."""
    if not DEVICE.exists():
        raise DataplaneUnavailable(
            f"{DEVICE} does not exist: no tap can be made",
            "load the module with: modprobe tun; in a container, pass the device in",
        )


def create(attachment: Attachment, section: TapSection, undo: ExitStack) -> Link:
    """Make the tap in the container, and return it."""
    options: dict[str, object] = {"address": attachment.mac_for("container")}
    if attachment.mtu is not None:
        options["mtu"] = attachment.mtu
    undo.callback(inside.remove, attachment.netns, attachment.id)
    alias = tags.encode(attachment)
    netns.call(attachment.netns, _make, attachment.interface, section, alias)
    return netns.call(attachment.netns, inside.configure, attachment.interface, options)


def _make(name: str, section: TapSection, alias: str) -> None:
    flags = _IFF_TAP | _IFF_NO_PI | _IFF_TUN_EXCL
    if section.multi_queue:
        flags |= _IFF_MULTI_QUEUE
    try:
        device = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise DataplaneUnavailable(
            f"cannot open {DEVICE}, to make the tap {name}", error.strerror or ""
        ) from error
    try:
        fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH22x", name.encode(), flags))
        if section.owner is not None:
            fcntl.ioctl(device, _TUNSETOWNER, section.owner)
        if section.group is not None:
            fcntl.ioctl(device, _TUNSETGROUP, section.group)
        inside.tag_interface(name, alias)
        # Last: until then the tap ends with this descriptor, so none is ever left without a tag.
        fcntl.ioctl(device, _TUNSETPERSIST, 1)
    except OSError as error:
        # EBUSY: a tap of that name. EINVAL: an interface of that name that is no tap.
        if error.errno in (errno.EBUSY, errno.EINVAL, errno.EEXIST):
            with Links() as links:
                if links.find(name) is not None:
                    raise CniError(
                        Code.ALREADY_ATTACHED,
                        f"the container has an interface {name} already",
                        "DEL it first, or give this attachment another name",
                    ) from error
        raise DataplaneError(f"cannot create the tap {name}", error.strerror or "") from error
    finally:
        os.close(device)
