"""IP addresses in text, as Go programs read them."""

from __future__ import annotations

from ipaddress import IPv6Address, ip_address, ip_interface
from typing import Any

from userspace_cni.cni.result import IPAddress, IPInterface


def address(text: str) -> IPAddress | None:
    """Return the address that *text* is, None if it is none.

    An IPv4 address in the form of an IPv6 one (``::ffff:10.0.0.1``) is the IPv4 address.
    """
    try:
        found = ip_address(text)
    except ValueError:
        return None
    if isinstance(found, IPv6Address):
        return None if found.scope_id else found.ipv4_mapped or found
    return found


def interface(text: str) -> IPInterface | None:
    """Return the address with a prefix length that *text* is (``10.0.0.2/24``), else None."""
    plain, slash, prefix = text.partition("/")
    if not slash or not (prefix.isascii() and prefix.isdigit()) or (own := address(plain)) is None:
        return None
    try:
        # The prefix of an IPv4 address in the form of an IPv6 one is about the latter: refused.
        return ip_interface(f"{own}/{prefix}")
    except ValueError:
        return None


# -- validators of the configuration's sections


def is_address(_: Any, __: Any, value: Any) -> None:
    """Validate an IP address; an empty text is as good as none."""
    if value and address(value) is None:
        raise ValueError(f"expected an IP address, got {value!r}")


def is_interface(_: Any, __: Any, value: Any) -> None:
    """Validate an address or network with its prefix length."""
    if value is not None and interface(value) is None:
        raise ValueError(f"expected an address with a prefix length (10.0.0.2/24), got {value!r}")


def is_absolute(_: Any, __: Any, value: Any) -> None:
    """Validate the path of a file or directory; an empty text is as good as none."""
    if value and (not value.startswith("/") or "\0" in value):
        raise ValueError(f"expected an absolute path, got {value!r}")
