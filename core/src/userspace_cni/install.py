"""Puts the CNI executable into a directory of CNI plugins."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

#: The executable's name, and so the ``type`` of our networks.
NAME = "userspace"

# The kernel reads the first line of a script up to 127 bytes on old kernels, and splits it at the
# first white space: execve(2), "Interpreter scripts".
_SHEBANG_MAX = 127

_LAUNCHER = """\
import sys
from userspace_cni.plugin import main
sys.exit(main())
"""


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


def install(directory: Path, interpreter: str = sys.executable) -> Path:
    """Place the executable in *directory*, atomically; return its path.

    It is complete under a temporary name before it takes its own: a runtime that executes the old
    one at this moment is not disturbed.

    Raises:
        OSError: *directory* does not exist or cannot be written.

    """
    target = directory / NAME
    descriptor, temporary = tempfile.mkstemp(prefix=f".{NAME}-", dir=directory)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(launcher(interpreter))
            file.flush()
            os.fchmod(file.fileno(), 0o755)
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        os.unlink(temporary)
        raise
    return target
