"""Compiles the shim into the package, for wheels and for editable installations."""

from __future__ import annotations

import os
import shlex
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

_PROGRAM = "src/userspace_cni_shim/userspace"
# Position-independent and still static: address randomisation costs no measurable start-up time.
_FLAGS = [
    *("-std=c11", "-O2", "-static-pie", "-fPIE", "-s"),
    *("-Wall", "-Wextra", "-Wshadow", "-Wconversion", "-Werror"),
    *(
        "-fstack-protector-strong",
        "-U_FORTIFY_SOURCE",
        "-D_FORTIFY_SOURCE=2",
        "-Wl,-z,relro,-z,now",
    ),
]


class BuildHook(BuildHookInterface[Any]):
    """Runs ``$CC``, by default ``cc``."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:  # noqa: ARG002
        """Compile; mark the wheel as one for this platform, whatever the Python."""
        root = Path(self.root)
        program = root / _PROGRAM
        draft = program.with_name(".userspace")
        compiler = shlex.split(os.environ.get("CC", "cc"))
        subprocess.run([*compiler, *_FLAGS, root / "shim.c", "-o", draft], check=True)  # noqa: S603
        draft.replace(program)  # the old one may be running
        platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{platform}"
        build_data["artifacts"].append(_PROGRAM)
