"""Wheels of the project and of its dependencies, for virtualenvs without network access."""

from __future__ import annotations

import fcntl
import hashlib
import subprocess
import sys
from pathlib import Path

from attrs import frozen

ROOT = Path(__file__).resolve().parents[2]
PROJECTS = ("core", "engines/linux", "engines/ovs", "engines/vpp", "shim", "docs/example-engine")
#: Run-time and build-time dependencies of the wheels.
_REQUIRED = (
    "attrs",
    "cattrs",
    "stevedore",
    "pyroute2",
    "ovs",
    "vpp-papi",
    "PyYAML",
    "hatchling",
    "editables",  # to install a package with --editable
    "prometheus-client",
    "pytest",
)
_CONSTRAINTS = ROOT / "constraints.txt"


@frozen
class Wheels:
    """Directories with our wheels and with those of dependencies."""

    ours: Path
    wheelhouse: Path

    def named(self, distribution: str) -> Path:
        """Return the wheel of one of our distributions."""
        (found,) = self.ours.glob(f"{distribution.replace('-', '_')}-*.whl")
        return found


@frozen
class Virtualenv:
    """A new virtualenv that installs only from local wheels."""

    directory: Path
    wheels: Wheels

    @property
    def python(self) -> Path:
        return self.directory / "bin" / "python"

    def install(self, *requirements: str | Path) -> None:
        """Install with plain pip."""
        where = ("--find-links", self.wheels.ours, "--find-links", self.wheels.wheelhouse)
        _run(*_PIP, "--python", self.python, "install", "--no-index", *where, *requirements)

    def run(self, program: str, *arguments: str | Path) -> str:
        """Run one of its programs; return its output."""
        return _run(self.directory / "bin" / program, *arguments)


def virtualenv(directory: Path, wheels: Wheels) -> Virtualenv:
    """Create an empty virtualenv."""
    _run(sys.executable, "-m", "venv", "--without-pip", directory)  # pip takes seconds to install
    return Virtualenv(directory, wheels)


def build(directory: Path) -> Wheels:
    """Build our wheels in *directory*; the wheelhouse is kept for later runs."""
    house = wheelhouse()
    options = ("--no-deps", "--no-index", "--find-links", house, "--wheel-dir", directory)
    _run(*_PIP, "wheel", *options, *(ROOT / project for project in PROJECTS))
    return Wheels(directory, house)


_PIP = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")


def wheelhouse() -> Path:
    """Return a directory with wheels of all dependencies, which is filled at first use."""
    text = _CONSTRAINTS.read_bytes() if _CONSTRAINTS.exists() else b""
    key = hashlib.sha256(text + repr((_REQUIRED, sys.version_info[:2])).encode()).hexdigest()[:12]
    house = ROOT / ".build" / f"wheelhouse-{key}"
    house.parent.mkdir(exist_ok=True)
    with (house.parent / "wheelhouse.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not house.exists():
            draft = house.with_suffix(".draft")
            constraints = ("--constraint", _CONSTRAINTS) if text else ()
            _run(*_PIP, "wheel", "--wheel-dir", draft, *constraints, *_REQUIRED)
            draft.rename(house)
    return house


def _run(*command: str | Path) -> str:
    done = subprocess.run(command, capture_output=True, check=False, text=True)
    if done.returncode:
        message = f"{' '.join(map(str, command))}: exit {done.returncode}\n{done.stderr}"
        raise RuntimeError(message)
    return done.stdout
