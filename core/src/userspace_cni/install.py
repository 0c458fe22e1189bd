"""Puts the CNI executable into a directory of CNI plugins.

There are two: the launcher, a Python program that serves the request itself, and the shim, a static
program that passes it to the daemon and has the node's settings in it.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import struct
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import resources
from pathlib import Path

from attrs import frozen

from userspace_cni import directories
from userspace_cni.cni.errors import CniError, Code
from userspace_cni.config.settings import Settings

#: The daemon's systemd unit.
UNIT = "userspace-cni.service"

#: The executable's name, and so the ``type`` of our networks.
NAME = "userspace"
#: The launcher's name beside the shim, which executes it where no daemon listens.
STANDALONE = "userspace-standalone"

_DRAFT = f".{NAME}-draft-"

# The kernel reads the first line of a script up to 127 bytes on old kernels, and splits it at the
# first white space: execve(2), "Interpreter scripts".
_SHEBANG_MAX = 127

_LAUNCHER = """\
import sys
from userspace_cni.plugin import main
sys.exit(main())
"""

# `struct settings` of shim.c: marker, socket, queue, fallback, milliseconds. Texts end with NUL.
_SETTINGS = struct.Struct("=32s108s256s256sI")
_MARKER = b"userspace-cni shim: settings, 1\0"


@frozen
class Difference:
    """A file that is not as :func:`install` would make it."""

    path: Path
    #: SHA-256 in hexadecimal digits; None where there is to be no file, or is none.
    expected: str | None
    found: str | None


def launcher(interpreter: str) -> str:
    """Return the executable's text, bound to *interpreter*.

    ``-I`` keeps out the caller's Python variables, directory and user packages: container runtimes
    pass their whole environment on.
    """
    shebang = f"#!{interpreter} -I\n"
    if len(shebang) <= _SHEBANG_MAX and not any(char.isspace() for char in interpreter):
        return shebang + _LAUNCHER
    # A file that sh reads as a command to run Python on it, and Python as a string, then a program.
    quoted = interpreter.replace("'", "'\\''")
    return f"#!/bin/sh\n'''exec' '{quoted}' -I \"$0\" \"$@\"\n' '''\n" + _LAUNCHER


def shim(program: bytes, settings: Settings, fallback: Path | None) -> bytes:
    """Return the shim *program* with the *settings*, and what it executes without a daemon.

    Raises:
        CniError: 7, a path is too long for the shim, or *program* is no shim of this version.

    """
    if program.count(_MARKER) != 1:
        raise CniError(
            Code.INVALID_NETWORK_CONFIG,
            "the shim is not of this version",
            "install userspace-cni and userspace-cni-shim of the same version",
        )
    filled = _SETTINGS.pack(
        _MARKER,
        _text("the daemon's socket", settings.socket, 107),  # sun_path: unix(7)
        _text("the queue", settings.queue, 255),
        _text("the launcher", fallback, 255) if fallback else b"",
        round(settings.daemon.deadline * 1000) or 1,
    )
    start = program.index(_MARKER)
    return program[:start] + filled + program[start + len(filled) :]


def _text(what: str, path: Path, longest: int) -> bytes:
    encoded = os.fsencode(path)
    if len(encoded) > longest:
        raise CniError(
            Code.INVALID_NETWORK_CONFIG,
            f"{what}: {path}: the path has {len(encoded)} bytes, the shim takes {longest}",
            "choose a shorter one in the node's settings",
        )
    return encoded


def unit(program: Path) -> bytes:
    """Return the daemon's systemd unit, which executes *program* by its path.

    systemd searches directories of its own for programs, not those of whoever installs.
    """
    text = resources.files("userspace_cni.daemon").joinpath(UNIT).read_text(encoding="utf-8")
    # systemd.service(5), "Command lines", and systemd.unit(5), "Specifiers".
    quoted = (
        str(program).replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    )
    return os.fsencode(text.replace("@PROGRAM@", f'"{quoted}"'))


def make_queue(settings: Settings) -> None:
    """Make the directory that :attr:`.Settings.queue` names; none but root may look into it.

    Raises:
        OSError: it cannot be made.

    """
    directories.make(settings.state_dir)
    directories.make(settings.queue, 0o700)


def find_shim() -> bytes | None:
    """Return the shim's program; None if ``userspace-cni-shim`` is not installed."""
    try:
        import userspace_cni_shim
    except ModuleNotFoundError:
        return None
    return userspace_cni_shim.path().read_bytes()


def executables(
    directory: Path,
    interpreter: str = sys.executable,
    *,
    program: bytes | None = None,
    settings: Settings | None = None,
    fallback: bool = True,
) -> dict[str, bytes | None]:
    """Return what *directory* is to hold: content by name, in the order of placing.

    None stands for a file that is not to be there.

    With the shim's *program* that is the shim, and the launcher beside it if there is to be a
    *fallback*; without, the launcher alone.

    Raises:
        CniError: as :func:`shim` does.

    """
    own = os.fsencode(launcher(interpreter))
    if program is None:
        return {NAME: own, STANDALONE: None}
    settings = settings or Settings()
    if not fallback:
        return {NAME: shim(program, settings, None), STANDALONE: None}
    # What the shim names is there before the shim.
    standalone = Path(os.path.abspath(directory)) / STANDALONE
    return {STANDALONE: own, NAME: shim(program, settings, standalone)}


def install(
    directory: Path, files: Mapping[str, bytes | None] | None = None, mode: int = 0o755
) -> Path:
    """Place *files*, by default the launcher, in *directory*; return the executable's path.

    Each is complete and on disk under a temporary name before it takes its own: a runtime that
    executes the old one at this moment is not disturbed, and a crash leaves the old or the new one.

    The directory is made where it is missing.

    Raises:
        OSError: *directory* cannot be made or written.

    """
    _make(directory)
    with _locked(directory) as descriptor:
        for entry in os.listdir(descriptor):
            if entry.startswith(_DRAFT):  # of an installation that was killed: we have the lock
                os.unlink(entry, dir_fd=descriptor)
        for name, content in (executables(directory) if files is None else files).items():
            if content is not None:
                _place(directory, name, content, mode)
            elif os.path.lexists(directory / name):
                os.unlink(directory / name)
            os.fsync(descriptor)
    return directory / NAME


def _make(directory: Path) -> None:
    """Make *directory* and what is missing above it; the mode is ours at every level."""
    if not directory.is_dir():
        _make(directory.absolute().parent)
        directory.mkdir(mode=0o755, exist_ok=True)


def compare(directory: Path, files: Mapping[str, bytes | None]) -> list[Difference]:
    """Return how *directory* differs from what :func:`install` would make of it.

    Raises:
        OSError: a file is there and cannot be read.

    """
    differences = []
    for name, content in files.items():
        path = directory / name
        expected = None if content is None else hashlib.sha256(content).hexdigest()
        try:
            found = hashlib.sha256(path.read_bytes()).hexdigest()
        except FileNotFoundError:
            found = None
        if found != expected:
            differences.append(Difference(path, expected, found))
    return differences


@contextmanager
def _locked(directory: Path) -> Iterator[int]:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield descriptor
    finally:
        os.close(descriptor)


def _place(directory: Path, name: str, content: bytes, mode: int) -> None:
    descriptor, temporary = tempfile.mkstemp(prefix=_DRAFT, dir=directory)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        os.replace(temporary, directory / name)
    except BaseException:
        os.unlink(temporary)
        raise
