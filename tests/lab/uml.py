"""A second kernel, User Mode Linux, for features that the machine's kernel lacks.

The Debian package ``user-mode-linux`` contains a kernel that runs as a program, with modules. Its
root directory is that of the machine, so that the same interpreter and source tree run in it.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_INIT = """\
#!/bin/sh
export PATH=/usr/sbin:/usr/bin:/sbin:/bin PYTHONDONTWRITEBYTECODE=1 HOME=/tmp
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t tmpfs tmpfs /run
mkdir -p /run/modules/lib
ln -s /usr/lib/uml/modules /run/modules/lib/modules
modprobe -a -d /run/modules {modules}
ip link set lo up
cd {directory}
{command} >{output} 2>&1
echo $? >{status}
sync
poweroff -f
"""


def run(
    command: Sequence[str], modules: Sequence[str], directory: Path, work: Path, timeout: float
) -> tuple[int, str]:
    """Run *command* as root in a new kernel; return its status and its output.

    Args:
        command: run after /proc, /sys and an empty /run are mounted.
        modules: kernel modules to load first.
        directory: the working directory.
        work: an empty directory for temporary files.
        timeout: in seconds, including the start of the kernel.

    """
    kernel = shutil.which("linux.uml")
    assert kernel, "the VLAN tests need a kernel: apt-get install user-mode-linux"
    init, output, status = work / "init", work / "output", work / "status"
    init.write_text(
        _INIT.format(
            modules=shlex.join(modules),
            directory=shlex.quote(str(directory)),
            command=shlex.join(command),
            output=shlex.quote(str(output)),
            status=shlex.quote(str(status)),
        )
    )
    init.chmod(0o755)
    console = subprocess.run(
        [
            kernel,
            "mem=384M",
            "root=/dev/root",
            "rootfstype=hostfs",
            "rootflags=/",
            "rw",
            "quiet",
            f"init={init}",
            f"uml_dir={work}",
            "con=null",
            "con0=null,fd:1",
        ],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=timeout,
        check=False,
        text=True,
        errors="replace",
        env={**os.environ, "TMPDIR": str(work)},
    ).stdout
    if not status.exists():
        raise RuntimeError(f"the kernel did not come to its end:\n{console}")
    return int(status.read_text()), output.read_text(errors="replace")
