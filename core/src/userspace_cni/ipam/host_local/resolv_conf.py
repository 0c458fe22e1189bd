"""DNS settings from a file like /etc/resolv.conf."""

from __future__ import annotations

from userspace_cni.api import DNS, CniError, Code


def read(path: str) -> DNS:
    """Return the settings in the file *path*.

    Raises:
        CniError: 7 if it cannot be read.

    """
    lists: dict[str, list[str]] = {"nameserver": [], "search": [], "options": []}
    domain = ""
    try:
        with open(path, encoding="utf-8", errors="replace") as lines:
            for line in lines:
                keyword, *values = line.split() or [""]
                if keyword == "domain" and values:
                    domain = values[0]
                elif keyword in lists:
                    lists[keyword] += values[:1] if keyword == "nameserver" else values
    except OSError as error:
        raise CniError(
            Code.INVALID_NETWORK_CONFIG,
            f"ipam.resolvConf: {path} cannot be read: {error.strerror}",
            "correct the path, or remove the key",
        ) from error
    return DNS(
        nameservers=tuple(lists["nameserver"]),
        domain=domain,
        search=tuple(lists["search"]),
        options=tuple(lists["options"]),
    )
