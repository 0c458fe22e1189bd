"""Commands that install optional parts, for error messages."""

from __future__ import annotations

import re
import sys

_CORE = "userspace-cni"


def pip(*arguments: str) -> str:
    """Return the command that installs packages for this interpreter, whatever PATH is."""
    return " ".join((sys.executable or "python3", "-m", "pip", "install", *arguments))


def pip_extra(extra: str) -> str:
    """Return the command that installs userspace-cni with *extra*."""
    return pip(f"'{_CORE}[{extra}]'")


def packages() -> set[str]:
    """Return the extras that install another package of this project, such as an engine."""
    from importlib.metadata import PackageNotFoundError, requires

    try:
        required = requires(_CORE) or []
    except PackageNotFoundError:  # run from the source tree
        return set()
    found = (re.fullmatch(rf"{_CORE}-.+;\s*extra == ['\"](.+)['\"]", line) for line in required)
    return {match[1] for match in found if match}
