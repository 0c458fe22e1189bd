"""``userspace-cni new-engine``: write the package of a new engine.

The package is a renamed copy of the example engine, so it works and has tests from the start.
"""

from __future__ import annotations

import re
from pathlib import Path

from userspace_cni.cni.errors import CniError, Code

_EXAMPLE = Path(__file__).with_name("example-engine")
_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
_FILES = ("LICENSE", "README.md", "pyproject.toml", "src/**/*.py", "src/**/py.typed", "tests/*.py")


def write(name: str, directory: Path) -> Path:
    """Write the package of the engine *name* below *directory*; return its path.

    Raises:
        CniError: 7 when the name is invalid, 5 when the package's directory exists.

    """
    if not _NAME.fullmatch(name):
        raise CniError(
            Code.INVALID_NETWORK_CONFIG,
            f"the name of an engine has lower-case letters, digits and hyphens, got {name!r}",
            "choose one such as grout",
        )
    package = directory / f"userspace-cni-{name}"
    if package.exists():
        raise CniError(
            Code.IO_FAILURE, f"{package} exists already", "remove it, or choose another name"
        )
    identifier = name.replace("-", "_")
    renamed = {
        "example-engine": f"userspace-cni-{name}",
        "example_engine": f"userspace_cni_{identifier}",
        "Example": "".join(part.capitalize() for part in name.split("-")),
        "example": name,
    }
    for pattern in _FILES:
        for source in sorted(_EXAMPLE.glob(pattern)):
            relative = _renamed(str(source.relative_to(_EXAMPLE)), renamed)
            target = package / relative
            target.parent.mkdir(parents=True, exist_ok=True)
            text = source.read_text()
            target.write_text(text if source.name == "LICENSE" else _renamed(text, renamed))
    return package


def _renamed(text: str, names: dict[str, str]) -> str:
    return re.sub("|".join(map(re.escape, names)), lambda found: names[found[0]], text)
