"""Rootful podman with its CNI backend and private directories."""

from __future__ import annotations

import json
import shlex
from typing import TYPE_CHECKING

from lab.images import BUSYBOX, WAIT
from lab.node import tool

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Mapping
    from pathlib import Path

    from lab.images import Images
    from lab.node import Node


class Podman:
    """A podman in a lab node, with its storage in the node's directory."""

    def __init__(
        self,
        node: Node,
        bin_dir: Path,
        conf_dir: Path,
        default_network: str,
        env: Mapping[str, str],
    ) -> None:
        """Write podman's configuration; plugins inherit `env` from podman."""
        tool("podman", "podman")
        tool("conmon", "conmon")
        tool("runc", "runc")
        self.node = node
        root = node.dir / "podman"
        root.mkdir()
        text = json.dumps  # JSON strings are TOML strings
        plugins = _with_environment(bin_dir, root / "bin", env)
        (root / "containers.conf").write_text(
            f"""\
[containers]
# podman asks for more than a container host may be allowed to give
default_ulimits = ["nofile=1024:4096", "nproc=4096:8192"]
cgroups = "no-conmon"
cgroupns = "host"
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime = "runc"
tmp_dir = {text(str(root / "tmp"))}
volume_path = {text(str(root / "volumes"))}
[network]
network_backend = "cni"
cni_plugin_dirs = [{text(str(plugins))}]
network_config_dir = {text(str(conf_dir))}
default_network = {text(default_network)}
"""
        )
        (root / "storage.conf").write_text(
            f"""\
[storage]
driver = "overlay"
graphroot = {text(str(root / "storage"))}
runroot = "/run/lab-podman"
"""
        )
        #: Environment variables for executing podman.
        self.env = {
            **env,
            "CONTAINERS_CONF": str(root / "containers.conf"),
            "CONTAINERS_STORAGE_CONF": str(root / "storage.conf"),
        }

    def __call__(self, *argv: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run podman."""
        return self.node.run(["podman", *argv], env=self.env, check=check)

    def load(self, images: Images) -> None:
        """Load the busybox image."""
        self("load", "-q", "-i", str(images.busybox))

    def run(self, name: str, *options: str) -> None:
        """Start a container that waits."""
        self("run", "-d", "--pull=never", f"--cgroup-parent={self.node.cgroup}",
             "--name", name, *options, BUSYBOX, *WAIT)  # fmt: skip

    def execute(self, name: str, *command: str) -> str:
        """Run a program in a container; return its output."""
        return self("exec", name, *command).stdout

    def remove(self, name: str) -> None:
        """Stop and remove a container."""
        self("rm", "-f", "-t", "5", name)


def _with_environment(bin_dir: Path, wrapped: Path, env: Mapping[str, str]) -> Path:
    """Wrap the plugins so that they always get `env`.

    The DEL usually comes from `podman container cleanup`, which conmon starts when a container
    ends, and conmon does not pass on podman's environment.
    """
    wrapped.mkdir()
    exports = "".join(f"export {name}={shlex.quote(value)}\n" for name, value in env.items())
    for plugin in bin_dir.iterdir():
        program = wrapped / plugin.name
        program.write_text(f'#!/bin/sh\n{exports}exec {shlex.quote(str(plugin))} "$@"\n')
        program.chmod(0o755)
    return wrapped
