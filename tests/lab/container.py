"""Applications in real containers, run by podman from a minimal image.

What a real image would contain is mounted read-only from the machine: libraries, this project's
virtualenv, and dpdk-testpmd.
"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from lab.images import BUSYBOX
from lab.testpmd import PROGRAM, Console, command_line

if TYPE_CHECKING:
    from lab.node import Node
    from lab.podman import Podman

ROOT = Path(__file__).parents[2]
AGENT = str(Path(sys.executable).with_name("userspace-cni-agent"))
CLI = str(Path(sys.executable).with_name("userspace-cni"))
#: Path of the shared directory in the container.
MOUNT = "/var/run/userspace-cni"


def mounts() -> list[tuple[str, str]]:
    """Return (source, target) of each read-only mount."""
    same = {"/usr", sys.base_prefix, str(ROOT), *map(str, Path("/").glob("lib*"))}
    below = {path for path in same if not any(path.startswith(f"{o}/") for o in same)}
    return [(str(Path(path).resolve()), path) for path in sorted(below)]


def application(queues: int, *options: str, prefix: str, peer: str) -> str:
    """Return a shell command for the container: testpmd through our image's entry point."""
    line = command_line([], queues, *options, prefix=prefix, peer=peer)
    variables = {"PATH": f"{Path(AGENT).parent}:/bin:/usr/bin", "RUNTIME_DIRECTORY": "/tmp"}
    settings = [f"{name}={value}" for name, value in variables.items()]
    entry_point = str(ROOT / "deploy/dpdk-app/entrypoint.sh")
    return "exec " + shlex.join(["env", *settings, "sh", entry_point, PROGRAM, *line])


def podman_line(node: Node, *options: str, script: str) -> str:
    """Return a shell command that runs *script* in a podman container with a terminal."""
    volumes = [f"--volume={source}:{target}:ro" for source, target in mounts()]
    fixed = [
        "podman", "run", "--rm", "-i", "-t", "--pull=never", f"--cgroup-parent={node.cgroup}",
        *volumes, *options,
    ]  # fmt: skip
    return (
        f"exec {shlex.join(fixed)} --network=ns:$USERSPACE_CNI_NETNS "
        f"--volume=$USERSPACE_CNI_DIRECTORY:{MOUNT} {shlex.join([BUSYBOX, 'sh', '-c', script])}"
    )


def start(
    podman: Podman, conf_dir: Path, bin_dir: Path, network: str, script: str, *, queues: int
) -> Console:
    """Run *script* in a container attached to *network*, and wait for testpmd's prompt."""
    line = [
        CLI, "run", "--cni-conf-dir", str(conf_dir), "--cni-bin-dir", str(bin_dir),
        "--network", network, "--", "sh", "-c", podman_line(podman.node, script=script),
    ]  # fmt: skip
    return Console(podman.node, line, queues, podman.env)
