"""A CNI plugin with its network, and the execution of requests."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from attrs import define, field

#: The reference plugins of the CNI project, where Debian installs them.
REFERENCE_PLUGINS = Path("/usr/lib/cni")


@define
class Execution:
    """A run of a program with minimal overhead: posix_spawn(3) and two files in memory."""

    command: list[str]
    stdin: bytes
    environ: Mapping[str, str]
    status: int = field(default=-1, init=False)
    output: str = field(default="", init=False)
    _pid: int = field(default=0, init=False)
    _given: int = field(init=False)
    _said: int = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._given = os.memfd_create("stdin")
        os.pwrite(self._given, self.stdin, 0)
        self._said = os.memfd_create("stdout")

    def start(self) -> None:
        self._pid = os.posix_spawn(
            self.command[0],
            self.command,
            self.environ,
            file_actions=[
                (os.POSIX_SPAWN_DUP2, self._given, 0),
                (os.POSIX_SPAWN_DUP2, self._said, 1),
                (os.POSIX_SPAWN_DUP2, self._said, 2),
            ],
        )

    def wait(self) -> None:
        _, status = os.waitpid(self._pid, 0)
        self.status = os.waitstatus_to_exitcode(status)

    def finish(self) -> None:
        """Keep the program's output and close the files."""
        self.output = os.pread(self._said, 1 << 20, 0).decode(errors="replace")
        os.close(self._given)
        os.close(self._said)


def measure(executions: Sequence[Execution]) -> float:
    """Run all executions at once; return the seconds from the first start to the last end."""
    begin = time.perf_counter()
    for one in executions:
        one.start()
    for one in executions:
        one.wait()
    took = time.perf_counter() - begin
    for one in executions:
        one.finish()
    return took


@define
class Contender:
    """A plugin with its network."""

    name: str
    executable: Path
    network: Mapping[str, Any]
    environ: Mapping[str, str] = field(factory=dict)

    def request(
        self, command: str, container: str = "", namespace: str = "", ifname: str = "eth0"
    ) -> Execution:
        environ = {
            **os.environ,
            **self.environ,
            "CNI_COMMAND": command,
            "CNI_PATH": f"{self.executable.parent}:{REFERENCE_PLUGINS}",
        }
        if container:
            environ |= {
                "CNI_CONTAINERID": container,
                "CNI_NETNS": f"/run/netns/{namespace}",
                "CNI_IFNAME": ifname,
            }
        return Execution([str(self.executable)], json.dumps(self.network).encode(), environ)

    def call(self, command: str, container: str = "", namespace: str = "") -> float:
        """Execute one request and return its duration in seconds."""
        execution = self.request(command, container, namespace)
        took = measure([execution])
        if execution.status:
            raise SystemExit(f"{self.name} {command}: {execution.output}")
        return took

    def about(self) -> str:
        """Return the first line that the plugin prints when it is run without a command."""
        done = subprocess.run(
            [self.executable], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )
        said = (done.stdout + done.stderr).splitlines()
        return said[0] if said and not done.returncode else "unknown"


def peer(text: str) -> Contender:
    """Parse ``NAME=PATH:CONF``; CONF is a file with the network configuration."""
    name, equals, rest = text.partition("=")
    executable, colon, conf = rest.partition(":")
    if not (name and equals and executable and colon and conf):
        raise ValueError(text)
    network = json.loads(Path(conf).read_text())
    return Contender(name, Path(executable).absolute(), network)
