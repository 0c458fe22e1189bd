"""A private Open vSwitch in a lab node, with its own database and sockets, without hugepages."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from lab.node import poll

if TYPE_CHECKING:
    from lab.node import Node

_SCHEMA = "/usr/share/openvswitch/vswitch.ovsschema"
#: Paths of ovs-vswitchd in the packages openvswitch-switch-dpdk and openvswitch-switch.
DPDK = "/usr/lib/openvswitch-switch-dpdk/ovs-vswitchd-dpdk"
PLAIN = "/usr/lib/openvswitch-switch/ovs-vswitchd"


class Ovs:
    """An Open vSwitch, see the module; a context manager. `dir` has all files except in /run."""

    def __init__(
        self, node: Node, *, dpdk: bool = True, program: str = DPDK, name: str = "ovs"
    ) -> None:
        """Prepare the switch; without *dpdk* it does not initialize DPDK (dpdk-init)."""
        self.node = node
        self.dir = node.dir / name
        self.dir.mkdir()
        self._dpdk = dpdk
        self._program = program
        self._starts = 0
        self._env = {f"OVS_{key}DIR": str(self.dir) for key in ("RUN", "DB", "LOG")}
        self._server: subprocess.Popen[bytes] | None = None
        self._switch: subprocess.Popen[bytes] | None = None

    @property
    def db(self) -> str:
        return f"unix:{self.dir}/db.sock"

    @property
    def log(self) -> str:
        return (self.dir / "ovs-vswitchd.log").read_text(errors="replace")

    def __enter__(self) -> Self:
        self.node.run(["ovsdb-tool", "create", f"{self.dir}/conf.db", _SCHEMA])
        self.start_server()
        other = {"per-port-memory": "true"}
        if self._dpdk:
            other |= {
                "dpdk-init": "true",
                "dpdk-lcore-mask": "0x1",
                "pmd-cpu-mask": "0x2",
                "pmd-maxsleep": "200",
                "dpdk-extra": "--no-huge --legacy-mem -m 768 --no-pci "
                f"--file-prefix={self.node.id}-{self.dir.name}",
            }
        settings = (f"other_config:{key}={json.dumps(value)}" for key, value in other.items())
        self.vsctl("--no-wait", "init", "--", "set", "Open_vSwitch", ".", *settings)
        self.start_switch()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop_switch()
        self.stop_server()

    def start_server(self) -> None:
        """Start ovsdb-server."""
        self._server = self.node.popen(
            [
                "ovsdb-server",
                f"{self.dir}/conf.db",
                f"--remote=punix:{self.dir}/db.sock",
                "--private-key=db:Open_vSwitch,SSL,private_key",
                "--certificate=db:Open_vSwitch,SSL,certificate",
                "--ca-cert=db:Open_vSwitch,SSL,ca_cert",
                f"--unixctl={self.dir}/ovsdb.ctl",
                f"--log-file={self.dir}/ovsdb-server.log",
                "-vconsole:off",
            ],
            log=self.dir / "ovsdb-server.out",
            env=self._env,
        )
        poll((self.dir / "db.sock").exists, "ovsdb-server")
        poll(lambda: self.vsctl("--no-wait", "show", check=False) is not None, "ovsdb-server")

    def listen(self, remote: str) -> None:
        """Serve the database at a further address, such as ptcp:6640:127.0.0.1."""
        control = f"{self.dir}/ovsdb.ctl"
        self.node.run(["ovs-appctl", "-t", control, "ovsdb-server/add-remote", remote])

    def stop_server(self) -> None:
        """End ovsdb-server and keep its file."""
        if self._server is not None:
            self.node.stop(self._server)
            self._server = None
            (self.dir / "db.sock").unlink(missing_ok=True)

    def start_switch(self) -> None:
        """Start ovs-vswitchd and wait until it has applied the database."""
        self._switch = self.node.popen(
            [
                self._program,
                self.db,
                f"--unixctl={self.dir}/vswitchd.ctl",
                f"--pidfile={self.dir}/ovs-vswitchd.pid",
                "--overwrite-pidfile",
                f"--log-file={self.dir}/ovs-vswitchd.log",
                "-vconsole:off",
            ],
            log=self.dir / "ovs-vswitchd.out",
            env=self._env,
        )
        # ovs-vsctl waits only if it has changed something.
        self._starts += 1
        self.vsctl("set", "Open_vSwitch", ".", f"external_ids:lab-start={self._starts}")

    def revive(self) -> str:
        """Start ovs-vswitchd again if it has crashed; return the end of its log in that case.

        Then only one test fails instead of all tests that share the switch.
        """
        if self._switch is None or self._switch.poll() is None:
            return ""
        died = f"ovs-vswitchd died with status {self._switch.returncode}: {self.log[-2000:]}"
        self.start_switch()
        return died

    def stop_switch(self) -> None:
        """End ovs-vswitchd and its taps properly; kill it if it hangs, as DPDK 22.11 may."""
        if self._switch is not None:
            control = f"{self.dir}/vswitchd.ctl"
            self.node.run(
                ["ovs-appctl", "--timeout=20", "-t", control, "exit", "--cleanup"], check=False
            )
            try:
                self._switch.wait(10)
            except subprocess.TimeoutExpired:
                self.kill_switch()
            self._switch = None

    def kill_switch(self) -> None:
        """Kill ovs-vswitchd, as the kernel does when it is out of memory."""
        assert self._switch is not None
        path = Path(f"/proc/{self._switch.pid}/task/{self._switch.pid}/children")
        for child in path.read_text().split():
            os.kill(int(child), signal.SIGKILL)
        self._switch.wait()
        self._switch = None

    def vsctl(self, *arguments: str, check: bool = True) -> str | None:
        """Run ovs-vsctl as an administrator does; without *check* return None if it fails."""
        done = self.node.run(
            ["ovs-vsctl", f"--db={self.db}", "--timeout=20", *arguments],
            env=self._env,
            check=check,
        )
        return None if done.returncode else done.stdout.strip()

    def add_bridge(self, name: str) -> None:
        """Create a bridge on the userspace datapath, as an administrator does."""
        self.vsctl("add-br", name, "--", "set", "bridge", name, "datapath_type=netdev")

    def bridges(self) -> list[str]:
        return (self.vsctl("list-br") or "").split()

    def ports(self, bridge: str) -> list[str]:
        return (self.vsctl("list-ports", bridge) or "").split()

    def get(self, table: str, record: str, column: str) -> str:
        return self.vsctl("--if-exists", "get", table, record, column) or ""

    def row(self, table: str, record: str) -> dict[str, Any]:
        """Return a row with its columns in the notation of ovs-vsctl."""
        listed = json.loads(self.vsctl("--format=json", "list", table, record) or "")
        return dict(zip(listed["headings"], listed["data"][0], strict=True))

    def until_link(self, port: str, state: str = "up", seconds: float = 20) -> None:
        poll(lambda: self.get("Interface", port, "link_state") == state, f"{port} {state}", seconds)
