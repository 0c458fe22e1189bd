"""Which addresses somebody asks for: by CNI_ARGS, by ``args.cni`` or by ``runtimeConfig``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from userspace_cni.api import CniError, Code, InvalidConfig

_BOOLEANS = {"1": True, "true": True, "0": False, "false": False}


def by_environment(args: Mapping[str, str], *known: str) -> list[str]:
    """Return the values of the *known* keys of CNI_ARGS, empty for those that are absent.

    Raises:
        CniError: 4 for keys that are not known, unless CNI_ARGS say that these are to be ignored.

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
    """Return the list of texts at that *path* of *config*, and how the path is written.

    Keys are matched as Go programs match them, whatever their case.

    Raises:
        CniError: 7 for anything else than a list of texts.

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
