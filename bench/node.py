"""The node that is measured: private namespaces with our daemon in them."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from attrs import frozen
from prometheus_client.parser import text_string_to_metric_families

from lab.daemon import Daemon
from lab.node import poll
from userspace_cni.config import settings as node_settings
from userspace_cni.config.settings import Settings
from userspace_cni.install import executables, find_shim, install, make_queue

_MARK = "USERSPACE_CNI_BENCH_NODE"
_HTTP = "127.0.0.1:9469"  # in a private network namespace, where every port is free
_INIT = """
set -e
for directory in /run/netns /var/lib/cni; do
    mkdir -p "$directory"
    mount -t tmpfs bench "$directory"
done
ip link set lo up
exec "$@"
"""


def enter() -> None:
    """Run this program again in new network, mount and PID namespaces.

    There it has PID 1, so that all other processes, network namespaces and interfaces disappear
    with it, even if it is killed.
    """
    if os.environ.pop(_MARK, None):
        return
    os.environ[_MARK] = "1"
    unshare = ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
    own = ["--propagation", "private", "sh", "-c", _INIT, "sh", sys.executable, *sys.argv]
    os.execvp("unshare", [*unshare, *own])


@contextmanager
def namespaces(names: list[str]) -> Iterator[None]:
    """Provide network namespaces with these *names*; one process creates a thousand per second."""
    _ip(f"netns add {name}" for name in names)
    try:
        yield
    finally:
        there = {path.name for path in Path("/run/netns").iterdir()}
        _ip(f"netns delete {name}" for name in names if name in there)


def _ip(lines: Iterator[str]) -> None:
    subprocess.run(["ip", "-batch", "-"], input="\n".join(lines), text=True, check=True)


def settings(directory: Path, more: str = "") -> dict[str, str]:
    """Write settings that keep everything in *directory*; return the environment to use them."""
    directory.mkdir()
    file = directory / "config.toml"
    file.write_text(f'state_dir = "{directory}/state"\nrun_dir = "{directory}/run"\n{more}')
    return {node_settings.VARIABLE: str(file)}


@frozen
class Served:
    """A running daemon and the executable that calls it."""

    executable: Path
    pid: int

    def metrics(self) -> Mapping[str, float]:
        """Return the current metrics by name and label values, such as ``NAME ADD``."""
        with urllib.request.urlopen(f"http://{_HTTP}/metrics", timeout=10) as answer:
            text = answer.read().decode()
        return {
            " ".join((sample.name, *sample.labels.values())): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    def cpu(self) -> float:
        """Return the daemon's processor time in seconds."""
        # Fields 14 and 15 of proc_pid_stat(5); the name, field 2, may contain spaces.
        stat = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(stat[11]) + int(stat[12])) / os.sysconf("SC_CLK_TCK")

    def memory(self) -> dict[str, float]:
        """Return the daemon's resident and proportional memory in MiB."""
        wanted = {"VmRSS:": "resident memory", "Pss:": "proportional memory"}
        lines = [
            line.split()
            for name in ("status", "smaps_rollup")
            for line in Path(f"/proc/{self.pid}/{name}").read_text().splitlines()
        ]
        return {wanted[line[0]]: int(line[1]) / 1024 for line in lines if line[0] in wanted}


@contextmanager
def daemon(directory: Path) -> Iterator[Served]:
    """Run our daemon with all its files in *directory*, and install the shim there."""
    program = find_shim()
    if program is None:
        raise SystemExit("userspace-cni-shim is not installed: make .venv/.ready")
    environ = settings(directory, f'[daemon]\nhttp = "{_HTTP}"\n')
    loaded: Settings = node_settings.load(environ)
    make_queue(loaded)
    executable = install(
        directory, executables(directory, program=program, settings=loaded, fallback=False)
    )
    daemon = Daemon(env=environ, socket=loaded.socket, log=directory / "daemon.log")
    try:
        daemon.start()
        poll(_ready, "the daemon is ready")
        yield Served(executable, daemon.pid)
        if said := daemon.said():
            print(f"\nthe daemon's log:\n{said}")
    finally:
        daemon.stop()


def _ready() -> bool:
    try:
        with urllib.request.urlopen(f"http://{_HTTP}/readyz", timeout=10) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def machine(directory: Path) -> dict[str, Any]:
    """Describe the machine, including the file system of *directory*, where the store will be."""
    found = subprocess.run(
        ["stat", "--file-system", "--format=%T", directory],
        capture_output=True,
        text=True,
        check=True,
    )
    return {
        "cores": len(os.sched_getaffinity(0)),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "filesystem": found.stdout.strip(),
        "load": os.getloadavg()[0],
    }
