"""Addresses requested through CNI_ARGS, ``args.cni`` or ``runtimeConfig``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from userspace_cni.api import CniError, Code, InvalidConfig

_BOOLEANS = {"1": True, "true": True, "0": False, "false": False}


def by_environment(args: Mapping[str, str], *known: str) -> list[str]:
    """Return the values of the *known* keys of CNI_ARGS; empty for absent keys.

    Raises:
        CniError: 4 for unknown keys, unless CNI_ARGS contains IgnoreUnknown=1.

    """
    ignored = _BOOLEANS.get(args.get("IgnoreUnknown", "0").lower())
    if ignored is None:
        raise CniError(
            Code.INVALID_ENVIRONMENT,
            f"CNI_ARGS IgnoreUnknown: expected 0 or 1, got {args['IgnoreUnknown']!r}",
        )
    unknown = sorted(args.keys() - {"IgnoreUnknown", *known})
    if unknown and not ignored:
        raise CniError(
            Code.INVALID_ENVIRONMENT,
            f"CNI_ARGS: the IPAM plugin does not know {', '.join(unknown)}",
            "set IgnoreUnknown=1 if they are meant for other plugins",
        )
    return [args.get(key, "") for key in known]


def by_configuration(config: Mapping[str, Any], *path: str) -> tuple[str, list[str]]:
    """Return the dotted *path* and the list of strings at that path of *config*.

    Keys are matched without regard to case, as Go programs do.

    Raises:
        CniError: 7 if the value is not a list of strings.

    """
    found: Any = config
    for key in path:
        if not isinstance(found, Mapping):
            found = None
            break
        found = {str(name).lower(): value for name, value in found.items()}.get(key.lower())
    written = ".".join(path)
    if found is None:
        return written, []
    if not isinstance(found, list) or not all(isinstance(item, str) for item in found):
        raise InvalidConfig(written, f"expected a list of strings, got {found!r}")
    return written, found
