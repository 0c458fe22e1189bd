"""Packages of newer Debian suites, unpacked into a directory without installing them.

They come from the mirror that the machine's apt uses; only the suite differs.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

_KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"


def _run(*argv: str, cwd: Path | None = None) -> str:
    done = subprocess.run(argv, cwd=cwd, check=False, capture_output=True, text=True)
    if done.returncode:
        message = f"{' '.join(argv)}: exit {done.returncode}\n{done.stdout}{done.stderr}"
        raise RuntimeError(message)
    return done.stdout


def _own_codename() -> str:
    for line in Path("/etc/os-release").read_text().splitlines():
        key, _, value = line.partition("=")
        if key == "VERSION_CODENAME":
            return value.strip('"')
    message = "/etc/os-release has no VERSION_CODENAME: is this Debian?"
    raise RuntimeError(message)


def _mirror() -> str:
    """Return the address from which apt gets the main component of the machine's suite."""
    listing = _run(
        "apt-get",
        "indextargets",
        "--format",
        "$(CODENAME) $(COMPONENT) $(ORIGIN) $(REPO_URI)",
        "Created-By: Packages",
    )
    codename = _own_codename()
    for line in listing.splitlines():
        release, component, origin, uri = line.split(" ", 3)
        if (release, component, origin) == (codename, "main", "Debian"):
            return uri
    message = f"apt has no source for {codename}/main: run apt-get update"
    raise RuntimeError(message)


def unpack(packages: Sequence[str], suites: Sequence[str], into: Path) -> None:
    """Download packages from the given suites and unpack them (without installing) below `into`."""
    work = into / ".apt"
    for name in ("lists/partial", "cache/archives/partial", "parts", "debs"):
        (work / name).mkdir(parents=True, exist_ok=True)
    (work / "parts/lab.sources").write_text(
        f"Types: deb\nURIs: {_mirror()}\nSuites: {' '.join(suites)}\nComponents: main\n"
        f"Signed-By: {_KEYRING}\n"
    )
    private = [
        f"-oDir::Etc::sourcelist={os.devnull}",
        f"-oDir::Etc::sourceparts={work / 'parts'}",
        f"-oDir::State::lists={work / 'lists'}",
        f"-oDir::Cache={work / 'cache'}",
        "-oAPT::Sandbox::User=root",
        "-oAcquire::Languages=none",
    ]
    _run("apt-get", *private, "update")
    _run("apt-get", *private, "download", *packages, cwd=work / "debs")
    for deb in sorted((work / "debs").glob("*.deb")):
        _run("dpkg-deb", "-x", str(deb), str(into))
