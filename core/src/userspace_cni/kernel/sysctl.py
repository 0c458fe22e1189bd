"""Kernel settings of the calling thread's network namespace (/proc/sys/net)."""

from __future__ import annotations

import os

from userspace_cni.cni.errors import DataplaneError

_ROOT = "/proc/sys/net"


def write(name: str, value: str) -> None:
    """Set the kernel setting *name*, such as ``ipv4/ip_forward``, unless it has *value* already.

    It is read first, because /proc/sys may be read-only where somebody else has set it.

    Raises:
        DataplaneError: when it can be neither found as wanted nor set.

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
    """Let this namespace forward packets of the IP *versions* (4, 6)."""
    if 4 in versions:
        write("ipv4/ip_forward", "1")
    if 6 in versions:
        write("ipv6/conf/all/forwarding", "1")


def ignore_router_advertisements(interface: str) -> None:
    """Keep *interface* from taking routes and addresses from whoever is on its link.

    On the host's side that would be a container (CVE-2020-10749).
    """
    _write_if_ipv6(interface, "accept_ra", "0")


def trust_own_addresses(interface: str) -> None:
    """Spare *interface*, not up yet, duplicate address detection.

    The host can forward no packet to a container before its link-local address there is usable,
    which would take up to two seconds; its MAC address is ours, and so unique.
    """
    _write_if_ipv6(interface, "accept_dad", "0")


def no_link_local_address(interface: str) -> None:
    """Keep *interface*, not up yet, from speaking IPv6 itself: it is a mere port of a bridge."""
    _write_if_ipv6(interface, "addr_gen_mode", "1")


def withdraw_host(interface: str) -> None:
    """Keep the host's own network stack from answering on *interface*, a port of a switch.

    A userspace switch takes copies of the frames: the kernel sees them, too.
    """
    _write_if_ipv6(interface, "disable_ipv6", "1")
    write(f"ipv4/conf/{interface}/arp_ignore", "8")


def enable_ipv6(interface: str) -> None:
    """Let *interface* have IPv6 addresses; runtimes create namespaces with IPv6 disabled."""
    write(f"ipv6/conf/{interface}/disable_ipv6", "0")


def keep_ipv6_addresses(interface: str) -> None:
    """Keep the IPv6 addresses of *interface* while it is down, as IPv4's are."""
    write(f"ipv6/conf/{interface}/keep_addr_on_down", "1")


def _write_if_ipv6(interface: str, name: str, value: str) -> None:
    # A kernel without IPv6 has nothing to set.
    if os.path.exists(f"{_ROOT}/ipv6"):
        write(f"ipv6/conf/{interface}/{name}", value)
