"""How what is optional is installed: told in errors that miss it."""

from __future__ import annotations

import re
import sys

_CORE = "userspace-cni"


def pip(*arguments: str) -> str:
    """Return the command that installs into this interpreter, whatever ``pip`` is first in PATH."""
    return " ".join((sys.executable or "python3", "-m", "pip", "install", *arguments))


def pip_extra(extra: str) -> str:
    """Return the command that installs userspace-cni with *extra*."""
    return pip(f"'{_CORE}[{extra}]'")


def packages() -> set[str]:
    """Return the extras that install one more package of ours, such as an engine."""
    from importlib.metadata import PackageNotFoundError, requires

    try:
        required = requires(_CORE) or []
    except PackageNotFoundError:  # run from its source
        return set()
    found = (re.fullmatch(rf"{_CORE}-.+;\s*extra == ['\"](.+)['\"]", line) for line in required)
    return {match[1] for match in found if match}
