"""A node for the demos, with a minimal container runtime.

The node is a separate network namespace, so that a demo does not interfere with anything else on
this machine. The runtime works like any container runtime: it creates a network namespace for each
container, and executes the CNI plugin with the environment and standard input that the
specification requires.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

REFERENCE_PLUGINS = Path("/usr/lib/cni")
_BIN = Path(sys.executable).parent


def say(text: str) -> None:
    """Print a heading."""
    print(f"\n\033[1m{text}\033[0m" if sys.stdout.isatty() else f"\n{text}", flush=True)


class Node:
    """Everything that the demo creates; leaving the context removes it in any case."""

    def __init__(self, ipam: str) -> None:
        self._ipam = ipam
        self._name = f"demo-{os.getpid()}"
        self._cleanup = ExitStack()

    def __enter__(self) -> Self:
        directory = self._cleanup.enter_context(tempfile.TemporaryDirectory(prefix="demo-"))
        self.directory = Path(directory)
        self._environ = {
            "PATH": os.environ["PATH"],
            "USERSPACE_CNI_CONFIG": str(self.directory / "config.toml"),
        }
        (self.directory / "config.toml").write_text(
            f'state_dir = "{directory}/state"\nrun_dir = "{directory}/run"\n'
        )
        self.cni_bin_dir = self.directory / "bin"
        self.cni_bin_dir.mkdir()
        self._add_namespace(self._name)
        self.command("userspace-cni", "install", "--cni-bin-dir", str(self.cni_bin_dir))
        (self.cni_bin_dir / self._ipam).symlink_to(REFERENCE_PLUGINS / self._ipam)
        return self

    def __exit__(self, *_: object) -> None:
        self._cleanup.close()

    def container(self, name: str) -> str:
        """Create a container, which here is only a network namespace, and return its path."""
        namespace = f"{self._name}-{name}"
        self._add_namespace(namespace)
        return f"/run/netns/{namespace}"

    def cni(self, command: str, network: dict[str, Any], container: str, netns: str) -> str:
        """Execute the plugin as a container runtime does, and return what it printed."""
        return self._run(
            [str(self.cni_bin_dir / "userspace")],
            netns=f"/run/netns/{self._name}",
            stdin=json.dumps(network),
            CNI_COMMAND=command,
            CNI_CONTAINERID=container,
            CNI_NETNS=netns,
            CNI_IFNAME="eth0",
            CNI_PATH=str(self.cni_bin_dir),
        )

    def command(self, program: str, *arguments: str) -> str:
        """Run one of the project's own commands."""
        return self._run([str(_BIN / program), *arguments], netns=f"/run/netns/{self._name}")

    def inside(self, netns: str, *command: str) -> str:
        """Run *command* in a container."""
        return self._run(list(command), netns=netns)

    def outside(self, *command: str) -> str:
        """Run *command* on the node."""
        return self._run(list(command), netns=f"/run/netns/{self._name}")

    def _add_namespace(self, name: str) -> None:
        subprocess.run(["ip", "netns", "add", name], check=True)
        self._cleanup.callback(subprocess.run, ["ip", "netns", "delete", name], check=True)
        self._run(["ip", "link", "set", "lo", "up"], netns=f"/run/netns/{name}")

    def _run(self, command: list[str], *, netns: str, stdin: str = "", **variables: str) -> str:
        done = subprocess.run(
            ["nsenter", f"--net={netns}", *command],
            input=stdin,
            env=self._environ | variables,
            stdout=subprocess.PIPE,
            text=True,
            check=False,
        )
        if done.returncode:
            print(done.stdout, flush=True)
            raise SystemExit(f"{' '.join(command)} {variables.get('CNI_COMMAND', '')} failed")
        return done.stdout
