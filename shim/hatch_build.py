"""Build hook that compiles the shim for wheels and editable installations."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

_PROGRAM = "src/userspace_cni_shim/userspace"
# Static and position-independent; address randomisation has no measurable start-up cost.
_FLAGS = [
    *("-std=c11", "-O2", "-fPIE", "-s"),
    *("-Wall", "-Wextra", "-Wshadow", "-Wconversion", "-Werror"),
    *(
        "-fstack-protector-strong",
        "-U_FORTIFY_SOURCE",
        "-D_FORTIFY_SOURCE=2",
        "-Wl,-z,relro,-z,now",
    ),
]
_STATIC_PIE = ["-static-pie"]
# musl-gcc(1) does not support -static-pie; these options are equivalent. The start files come last,
# by name, from musl's directory.
_MUSL_STATIC_PIE = [
    *("-static", "-nostartfiles", "-Wl,-pie,--no-dynamic-linker,-z,text"),
    *("-l:rcrt1.o", "-l:crti.o", "-l:crtn.o"),
]


class BuildHook(BuildHookInterface[Any]):
    """Runs ``$CC``, which defaults to ``musl-gcc`` if it is installed, otherwise to ``cc``.

    musl is preferred because glibc queries the processor's caches at every start. On a virtual
    machine the hypervisor has to answer, which takes ten times as long as the rest of the program.
    """

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:  # noqa: ARG002
        """Compile the shim; mark the wheel as platform-specific but usable with any Python."""
        root = Path(self.root)
        program = root / _PROGRAM
        draft = program.with_name(".userspace")
        chosen = os.environ.get("CC") or ("musl-gcc" if shutil.which("musl-gcc") else "cc")
        link = _MUSL_STATIC_PIE if Path(chosen).name == "musl-gcc" else _STATIC_PIE
        subprocess.run(  # noqa: S603
            [*shlex.split(chosen), *_FLAGS, root / "shim.c", *link, "-o", draft], check=True
        )
        draft.replace(program)  # the old one may be running
        platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{platform}"
        build_data["artifacts"].append(_PROGRAM)
