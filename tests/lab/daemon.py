"""A private daemon for a test."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from threading import Lock

from attrs import define, field

from lab.node import Node, poll

_PROGRAM = "import sys; from userspace_cni.cli import main; sys.exit(main(['daemon']))"


@define
class Daemon:
    """A process ``userspace-cni daemon`` with the settings named by *env*; it writes to *log*."""

    env: Mapping[str, str]
    socket: Path
    log: Path
    interpreter: str = sys.executable
    node: Node | None = None
    _process: subprocess.Popen[bytes] | None = field(default=None, init=False)
    _guard: Lock = field(factory=Lock, init=False)

    def ensure(self, node: Node | None) -> None:
        """Start the daemon on *node*, or move it there, unless it is running there."""
        with self._guard:
            if self.running and self.node is not node:
                self.stop()
            if not self.running:
                self.start(node)

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """The daemon's process ID."""
        assert self._process is not None
        if self.node is None:
            return self._process.pid
        (child,) = _children(self._process.pid)  # nsenter forks to enter the PID namespace
        return child

    def start(self, node: Node | None = None) -> None:
        """Start the daemon, on *node* if given, and wait until it serves."""
        self.node = node
        command = [self.interpreter, "-I", "-c", _PROGRAM]
        environ = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                node.command(command) if node else command,
                env={**environ, **self.env},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        poll(lambda: self._serves() or not self.running, "the daemon serves")
        assert self.running, self.log.read_text()

    def _serves(self) -> bool:
        # Look for a listener, because the file exists already when the socket is bound.
        listening = Path(
            "/proc/net/unix" if self.node is None else f"/proc/{self.node.pid}/net/unix"
        )
        return any(
            line.split()[3] == "00010000" and line.endswith(f" {self.socket}")
            for line in listening.read_text().splitlines()[1:]
        )

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def wait(self, seconds: float = 60) -> int:
        assert self._process is not None
        return self._process.wait(seconds)

    def stop(self) -> None:
        """End the daemon with SIGTERM, as systemd does; kill it if it does not end."""
        if self._process is None:
            return
        if self.running:
            try:
                self.signal(signal.SIGTERM)
                self._process.wait(30)
            except (ValueError, ProcessLookupError, subprocess.TimeoutExpired):
                self.kill()
        self._process.wait()
        self._process = None

    def kill(self) -> None:
        """Kill the daemon, as a crash would."""
        assert self._process is not None
        children = _children(self._process.pid)
        for pid in (*children, self._process.pid):
            os.kill(pid, signal.SIGKILL)
        self._process.wait()
        poll(lambda: not any(Path(f"/proc/{pid}").exists() for pid in children), "it is gone")

    def said(self) -> str:
        return self.log.read_text()


def _children(pid: int) -> list[int]:
    try:
        return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []
