"""Checksum offload of kernel interfaces: ethtool ioctls, <linux/ethtool.h>."""

from __future__ import annotations

import fcntl
import socket
import struct
from array import array

from userspace_cni.cni.errors import DataplaneError

_SIOCETHTOOL = 0x8946  # linux/sockios.h
_ETHTOOL_STXCSUM = 0x17


def compute_checksums(interface: str) -> None:
    """Disable transmit checksum offload, so that the kernel computes the checksums itself.

    A userspace switch has no hardware that would fill them in, and receivers drop TCP segments
    without a valid checksum.

    Raises:
        DataplaneError: if the kernel refuses.

    """
    value = array("B", struct.pack("II", _ETHTOOL_STXCSUM, 0))  # struct ethtool_value
    address, _ = value.buffer_info()
    request = struct.pack("16sP16x", interface.encode(), address)  # struct ifreq
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as control:
        try:
            fcntl.ioctl(control, _SIOCETHTOOL, request)
        except OSError as error:
            raise DataplaneError(
                f"cannot switch checksum offload of {interface} off, without which TCP fails",
                error.strerror or "",
            ) from error
