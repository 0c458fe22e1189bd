"""A lab node, which looks like a whole machine to a CNI client.

It consists of network, mount and PID namespaces with private /run, /opt, /etc/cni and /var/lib/cni.
Container software writes to paths that cannot be configured; here they disappear with the node.
However a test ends, every process ends as well: the kernel kills them with the node's init.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
import uuid
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Self, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from types import TracebackType

T = TypeVar("T")

_PRIVATE = ("/run", "/opt", "/var/lib/cni", "/etc/cni", "/var/lib/containers")
_INIT = """
set -e
for dir in %s; do mkdir -p "$dir"; mount -t tmpfs -o mode=755 lab "$dir"; done
mkdir -p /run/netns /run/lock /opt/cni/bin /etc/cni/net.d
mount --bind /run/netns /run/netns
mount --make-shared /run/netns
ip link set lo up
echo ready
exec env --ignore-signal=CHLD sleep infinity
"""


def poll(probe: Callable[[], T], what: str, seconds: float = 60.0) -> T:
    """Return the probe's first true answer; fail with *what* after *seconds*."""
    deadline = time.monotonic() + seconds
    while not (answer := probe()):
        if time.monotonic() > deadline:
            message = f"waited {seconds:g} s in vain: {what}"
            raise TimeoutError(message)
        time.sleep(0.02)
    return answer


def tool(name: str, package: str) -> str:
    """Return a program's path; if it is missing, raise an error that names its package."""
    path = shutil.which(name)
    if path is None:
        message = f"{name} is missing: apt-get install --no-install-recommends {package}"
        raise RuntimeError(message)
    return path


class Node:
    """A lab node, see the module; a context manager. `dir` is a scratch directory, short-named."""

    def __init__(self) -> None:
        """Choose unique names."""
        self.id = f"lab-{uuid.uuid4().hex[:8]}"
        self.cgroup = f"/{self.id}"
        self.dir = Path()
        self._holder: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        """Start the node's init and wait until its directories are mounted."""
        tool("unshare", "util-linux")
        tool("ip", "iproute2")
        self.dir = Path(tempfile.mkdtemp(prefix="lab-"))
        private = tuple(path for path in _PRIVATE if os.path.realpath(path) == path)
        log = self.dir / "node.log"
        with log.open("w") as errors:
            self._holder = subprocess.Popen(
                # setpriv: if the test run is killed, its nodes end too
                ["setpriv", "--pdeathsig", "KILL", "unshare", "--net", "--mount", "--pid",
                 "--fork", "--kill-child", "--mount-proc", "--propagation", "private",
                 "sh", "-c", _INIT % " ".join(private)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )  # fmt: skip
        if self._stdout(self._holder).readline() != "ready\n":
            said = log.read_text()
            self.close()
            raise RuntimeError(f"cannot make a lab node (it needs root): {said}")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Remove the node."""
        self.close()

    @staticmethod
    def _stdout(process: subprocess.Popen[str]) -> IO[str]:
        if process.stdout is None:
            message = "no pipe"
            raise RuntimeError(message)
        return process.stdout

    def close(self) -> None:
        """Kill every process of the node, wait, remove cgroups and files."""
        if self._holder is not None:
            pids = self._pids()
            # Kill the init first: unshare reaps it and ends; the machine's init may be slow.
            for child in children(self._holder.pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._holder.wait(20)
            self._holder.kill()
            self._holder.wait()
            self._stdout(self._holder).close()
            self._holder = None
            poll(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), "the node's end")
        for top in Path("/sys/fs/cgroup").glob(f"*{self.cgroup}"):
            poll(lambda top=top: _remove_cgroup(top), f"{top} is busy")  # type: ignore[misc]
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(self.dir)

    def _pids(self) -> list[int]:
        """Return the node's processes; those of its containers die with them."""
        mine = self._link("pid_for_children")
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    if os.readlink(entry / "ns/pid") == mine:
                        found.append(int(entry.name))
        return found

    def stop(self, process: subprocess.Popen[bytes], seconds: float = 10) -> None:
        """Terminate a program that popen() started, not its parent nsenter."""
        for child in children(process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
        process.kill()
        process.wait()

    @property
    def pid(self) -> int:
        """The PID, as seen from the machine, of the process that holds the node's namespaces."""
        if self._holder is None:
            message = "the node is not running"
            raise RuntimeError(message)
        return self._holder.pid

    def _link(self, kind: str) -> str:
        return os.readlink(f"/proc/{self.pid}/ns/{kind}")

    def path(self, path: str) -> Path:
        """Return the path through which a path of the node (/run/...) is reached from outside."""
        return Path(f"/proc/{self.pid}/root{path}")

    def command(self, argv: Sequence[str]) -> list[str]:
        """Return the command line that runs argv in the node."""
        spaces = f"/proc/{self.pid}/ns"
        return [
            "nsenter",
            f"--net={spaces}/net",
            f"--mount={spaces}/mnt",
            f"--pid={spaces}/pid_for_children",
            "--",
            *argv,
        ]

    def popen(
        self, argv: Sequence[str], *, log: Path, env: Mapping[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        """Start a program in the node; its output goes to the log."""
        with log.open("ab") as out:
            return subprocess.Popen(
                self.command(argv),
                env={**os.environ, **(env or {})},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
            )

    def run(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        check: bool = True,
        timeout: float = 60,
        stdin: str = "",
    ) -> subprocess.CompletedProcess[str]:
        """Run a program in the node; with `check`, raise an error with its output if it fails."""
        done = subprocess.run(
            self.command(argv),
            env={**os.environ, **(env or {})},
            input=stdin,
            capture_output=True,
            check=False,
            text=True,
            timeout=timeout,
        )
        if check and done.returncode:
            message = f"{' '.join(argv)}: exit {done.returncode}\n{done.stdout}{done.stderr}"
            raise RuntimeError(message)
        return done

    def links(self, netns: str | None = None) -> dict[str, dict[str, Any]]:
        """Return the interfaces of the node (or of a netns path in it) by name, with addresses."""
        enter = ["nsenter", f"--net={netns}"] if netns else []
        listed = json.loads(self.run([*enter, "ip", "-d", "-j", "address"]).stdout)
        return {link["ifname"]: link for link in listed}

    def veths(self) -> list[str]:
        """Return the names of the node's ends of veth pairs."""
        return [
            name
            for name, link in self.links().items()
            if link.get("linkinfo", {}).get("info_kind") == "veth"
        ]

    def netns(self, name: str) -> str:
        """Create a named network namespace in the node; return its path."""
        self.run(["ip", "netns", "add", name])
        path = f"/run/netns/{name}"
        self.enter(path, ["ip", "link", "set", "lo", "up"])
        return path

    def enter(self, netns: str, argv: Sequence[str], *, check: bool = True) -> str:
        """Run a program in a network namespace of the node; return its output."""
        return self.run(["nsenter", f"--net={netns}", "--", *argv], check=check).stdout

    def ping(self, netns: str, address: str) -> None:
        """Fail unless the address answers from the network namespace."""
        self.enter(netns, ["busybox", "ping", "-c", "1", "-W", "5", address])


def children(pid: int) -> list[int]:
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return []
    return [int(child) for child in text.split()]


def _remove_cgroup(top: Path) -> bool:
    """Remove a tree of cgroups, deepest first; return False if a process is still in it."""
    try:
        for directory, _, _ in os.walk(top, topdown=False):
            Path(directory).rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True
