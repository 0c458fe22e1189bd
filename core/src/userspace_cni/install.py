"""Installation of the CNI executable into a directory of CNI plugins.

There are two executables. The launcher is a Python program that serves requests itself. The shim is
a static program that passes requests to the daemon; the node's settings are written into it.
"""

from __future__ import annotations

import hashlib
import os
import struct
import sys
from collections.abc import Mapping
from importlib import resources
from pathlib import Path

from attrs import frozen

from userspace_cni.cni.errors import CniError, Code
from userspace_cni.config.settings import Settings
from userspace_cni.files import locked, make, replace

#: The daemon's systemd unit.
UNIT = "userspace-cni.service"

#: The executable's name, which is also the ``type`` in network configurations.
NAME = "userspace"
#: The launcher's name beside the shim, which executes it if no daemon listens.
STANDALONE = "userspace-standalone"

_DRAFT = f".{NAME}-draft-"

# Old kernels read only 127 bytes of a script's first line, and every kernel splits it at the first
# white space: execve(2), "Interpreter scripts".
_SHEBANG_MAX = 127

_LAUNCHER = """\
import sys
from userspace_cni.plugin import main
sys.exit(main())
"""

# `struct settings` of shim.c: marker, socket, queue, fallback, deadline in ms. Texts end with NUL.
_SETTINGS = struct.Struct("=32s108s256s256sI")
_MARKER = b"userspace-cni shim: settings, 1\0"


@frozen
class Difference:
    """A file that differs from what :func:`install` would write."""

    path: Path
    #: SHA-256 in hexadecimal; None if no file is expected or found.
    expected: str | None
    found: str | None


def launcher(interpreter: str) -> str:
    """Return the launcher's text, bound to *interpreter*.

    ``-I`` isolates it from the caller's Python variables, directory and user packages, because
    container runtimes pass on their whole environment.
    """
    shebang = f"#!{interpreter} -I\n"
    if len(shebang) <= _SHEBANG_MAX and not any(char.isspace() for char in interpreter):
        return shebang + _LAUNCHER
    # A polyglot: sh executes Python on the file, and Python reads sh's command as a string.
    quoted = interpreter.replace("'", "'\\''")
    return f"#!/bin/sh\n'''exec' '{quoted}' -I \"$0\" \"$@\"\n' '''\n" + _LAUNCHER


def shim(program: bytes, settings: Settings, fallback: Path | None) -> bytes:
    """Return the shim with the node's settings written into it.

    Args:
        program: the shim as packaged.
        settings: the node's settings.
        fallback: path of the launcher to execute if no daemon listens; None for none.

    Raises:
        CniError: 7 if a path is too long for the shim, or *program* is not a shim of this version.

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
            f"{what}: {path}: the path has {len(encoded)} bytes, the shim accepts {longest}",
            "choose a shorter one in the node's settings",
        )
    return encoded


def unit(program: Path) -> bytes:
    """Return the daemon's systemd unit, which executes *program* by its absolute path.

    The path is needed because systemd does not use the PATH of the user who installs.
    """
    text = resources.files("userspace_cni.daemon").joinpath(UNIT).read_text(encoding="utf-8")
    # systemd.service(5), "Command lines", and systemd.unit(5), "Specifiers".
    quoted = (
        str(program).replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    )
    return os.fsencode(text.replace("@PROGRAM@", f'"{quoted}"'))


def make_queue(settings: Settings) -> None:
    """Create the directory :attr:`.Settings.queue`, which only root may read.

    Raises:
        OSError: if it cannot be created.

    """
    make(settings.state_dir)
    make(settings.queue, 0o700)


def find_shim() -> bytes | None:
    """Return the packaged shim, or None if ``userspace-cni-shim`` is not installed."""
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
    """Return the files to install: contents by name, in the order of installation.

    The content None means that there must be no such file.

    Args:
        directory: the directory of CNI plugins.
        interpreter: the Python interpreter of the launcher.
        program: the packaged shim; if None, only the launcher is installed.
        settings: the node's settings for the shim.
        fallback: whether to install the launcher beside the shim.

    Raises:
        CniError: the errors of :func:`shim`.

    """
    own = os.fsencode(launcher(interpreter))
    if program is None:
        return {NAME: own, STANDALONE: None}
    settings = settings or Settings()
    if not fallback:
        return {NAME: shim(program, settings, None), STANDALONE: None}
    # Install the launcher first, because the shim refers to it.
    standalone = Path(os.path.abspath(directory)) / STANDALONE
    return {STANDALONE: own, NAME: shim(program, settings, standalone)}


def install(
    directory: Path, files: Mapping[str, bytes | None] | None = None, mode: int = 0o755
) -> Path:
    """Install *files* in *directory*, which is created if it is missing.

    Each file is written to disk under a temporary name and then renamed. A runtime that is
    executing the old file is not disturbed, and a crash leaves either the old or the new file.

    Args:
        directory: the directory of CNI plugins.
        files: see :func:`executables`; by default only the launcher.
        mode: the mode of the files.

    Returns:
        The executable's path.

    Raises:
        OSError: if *directory* cannot be created or written to.

    """
    _make(directory)
    with locked(directory) as descriptor:
        for entry in os.listdir(descriptor):
            if entry.startswith(_DRAFT):  # left by an installation that was killed
                os.unlink(entry, dir_fd=descriptor)
        for name, content in (executables(directory) if files is None else files).items():
            if content is not None:
                replace(descriptor, name, content, mode, draft=_DRAFT, durable=True)
            elif os.path.lexists(directory / name):
                os.unlink(directory / name)
                os.fsync(descriptor)
    return directory / NAME


def _make(directory: Path) -> None:
    """Create *directory* and its missing parents, all with mode 0755."""
    if not directory.is_dir():
        _make(directory.absolute().parent)
        directory.mkdir(mode=0o755, exist_ok=True)


def compare(directory: Path, files: Mapping[str, bytes | None]) -> list[Difference]:
    """Return how *directory* differs from what :func:`install` would write.

    Raises:
        OSError: if a file exists but cannot be read.

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
