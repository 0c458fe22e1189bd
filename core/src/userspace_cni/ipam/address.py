"""Parsing of IP addresses as Go programs do it."""

from __future__ import annotations

from ipaddress import IPv6Address, ip_address, ip_interface
from typing import Any

from userspace_cni.cni.result import IPAddress, IPInterface


def address(text: str) -> IPAddress | None:
    """Parse an IP address; return None if *text* is not one.

    An IPv4-mapped IPv6 address (``::ffff:10.0.0.1``) becomes the IPv4 address.
    """
    try:
        found = ip_address(text)
    except ValueError:
        return None
    if isinstance(found, IPv6Address):
        return None if found.scope_id else found.ipv4_mapped or found
    return found


def interface(text: str) -> IPInterface | None:
    """Parse an address with a prefix length (``10.0.0.2/24``); return None if it is not one."""
    plain, slash, prefix = text.partition("/")
    if not slash or not (prefix.isascii() and prefix.isdigit()) or (own := address(plain)) is None:
        return None
    try:
        # The prefix length of an IPv4-mapped address counts IPv6 bits, so it is refused here.
        return ip_interface(f"{own}/{prefix}")
    except ValueError:
        return None


# -- validators of the configuration's sections


def is_address(_: Any, __: Any, value: Any) -> None:
    """Validate an IP address; an empty text is accepted."""
    if value and address(value) is None:
        raise ValueError(f"expected an IP address, got {value!r}")


def is_interface(_: Any, __: Any, value: Any) -> None:
    """Validate an address or network with its prefix length."""
    if value is not None and interface(value) is None:
        raise ValueError(f"expected an address with a prefix length (10.0.0.2/24), got {value!r}")


def is_absolute(_: Any, __: Any, value: Any) -> None:
    """Validate an absolute path; an empty text is accepted."""
    if value and (not value.startswith("/") or "\0" in value):
        raise ValueError(f"expected an absolute path, got {value!r}")
