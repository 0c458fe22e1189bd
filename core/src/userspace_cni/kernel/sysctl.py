"""Kernel settings of the calling thread's network namespace (/proc/sys/net)."""

from __future__ import annotations

import os

from userspace_cni.cni.errors import DataplaneError

_ROOT = "/proc/sys/net"


def write(name: str, value: str) -> None:
    """Set the kernel setting *name*, such as ``ipv4/ip_forward``, to *value*.

    The setting is read first and written only if it differs, because /proc/sys may be read-only.

    Raises:
        DataplaneError: if the setting cannot be read, or has another value and cannot be written.

    """
    path = f"{_ROOT}/{name}"
    try:
        with open(path, "rb", buffering=0) as file:
            there = file.read(64)
        if there.strip() != value.encode():
            with open(path, "wb", buffering=0) as file:
                file.write(value.encode())
    except OSError as error:
        raise DataplaneError(
            f"cannot set the kernel setting {path} to {value}",
            f"{error.strerror}; is IPv6 in the kernel, and /proc/sys writable?",
        ) from error


def forward(versions: set[int]) -> None:
    """Enable forwarding of packets of the given IP *versions* (4, 6)."""
    if 4 in versions:
        write("ipv4/ip_forward", "1")
    if 6 in versions:
        write("ipv6/conf/all/forwarding", "1")


def ignore_router_advertisements(interface: str) -> None:
    """Make *interface* ignore IPv6 router advertisements.

    Otherwise a container could install routes and addresses on the host (CVE-2020-10749).
    """
    _write_if_ipv6(interface, "accept_ra", "0")


def trust_own_addresses(interface: str) -> None:
    """Disable duplicate address detection on *interface*, which must not be up yet.

    The detection takes up to two seconds, and until it ends the host cannot forward packets to the
    container. It is not needed: the MAC address is generated from the attachment and unique.
    """
    _write_if_ipv6(interface, "accept_dad", "0")


def no_link_local_address(interface: str) -> None:
    """Give *interface* no IPv6 link-local address: as a bridge port it needs none.

    The interface must not be up yet.
    """
    _write_if_ipv6(interface, "addr_gen_mode", "1")


def withdraw_host(interface: str) -> None:
    """Keep the host's network stack from answering on *interface*, a port of a userspace switch.

    The switch receives copies of the frames, so the kernel sees them as well.
    """
    _write_if_ipv6(interface, "disable_ipv6", "1")
    write(f"ipv4/conf/{interface}/arp_ignore", "8")


def enable_ipv6(interface: str) -> None:
    """Enable IPv6 on *interface*; container runtimes create namespaces with IPv6 disabled."""
    write(f"ipv6/conf/{interface}/disable_ipv6", "0")


def keep_ipv6_addresses(interface: str) -> None:
    """Keep the IPv6 addresses of *interface* while it is down, as the kernel does for IPv4."""
    write(f"ipv6/conf/{interface}/keep_addr_on_down", "1")


def _write_if_ipv6(interface: str, name: str, value: str) -> None:
    # A kernel without IPv6 has nothing to set.
    if os.path.exists(f"{_ROOT}/ipv6"):
        write(f"ipv6/conf/{interface}/{name}", value)
