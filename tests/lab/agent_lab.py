"""A container with a VPP and the agent, on a host with a VPP."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lab.vpp import api_dir
from lab.vpp_lab import TIMEOUT, Attached, VppLab, conf
from userspace_cni.agent.sources import DIRECTORY_VARIABLE
from userspace_cni.handover import dump
from userspace_cni_vpp import connection
from userspace_cni_vpp.container import API_DIR_VARIABLE, API_SOCKET_VARIABLE
from userspace_cni_vpp.sections import BridgeSection
from userspace_cni_vpp.switch import Switch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lab.netns import Namespace

BRIDGED = conf("memif", "bridge", bridge=BridgeSection(bridge_id=4))


class Inside:
    """A container with a VPP and the agent."""

    def __init__(self, lab: VppLab) -> None:
        self.lab = lab
        self.netns: Namespace = lab.container()
        self.vpp: Any = lab.vpp_in(self.netns)
        self.log = self.vpp.path.with_name("agent.log")
        self.ready = self.vpp.path.with_name("ready")
        #: The container's ID.
        self.id = self.netns.path.replace("/", "c")[1:]

    def attach(self, ifname: str, address: str, host: Any = BRIDGED) -> Attached:
        """Attach the container on the host, and publish the hand-over file."""
        found = self.lab.attach(
            host, address, container=self.netns, container_id=self.id, ifname=ifname
        )
        directory = self.lab.directory(self.id)
        directory.publish(ifname, dump(found.attachment, found.handoff(), "vpp"))
        return found

    @property
    def environ(self) -> dict[str, str]:
        return {
            **os.environ,
            API_SOCKET_VARIABLE: str(self.vpp.path),
            API_DIR_VARIABLE: api_dir(),
            DIRECTORY_VARIABLE: self.lab.directory(self.id).path,
        }

    def command(self, *arguments: str) -> list[str]:
        agent = Path(sys.executable).with_name("userspace-cni-agent")
        return [
            "nsenter", f"--net={self.netns.path}", str(agent), "--ready-file", str(self.ready),
            "--annotations", "/nowhere", *arguments,
        ]  # fmt: skip

    def agent(self, *arguments: str) -> int:
        """Run the agent until it ends; return its exit status."""
        with self.log.open("ab") as log:
            return subprocess.run(
                self.command(*arguments), env=self.environ, stderr=log, check=False, timeout=60
            ).returncode

    @contextmanager
    def watching(self, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
        """Run the agent with --watch while the context lasts."""
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                self.command("--watch", "--interval", "0.1", *arguments),
                env=self.environ,
                stderr=log,
            )
        with process:
            try:
                yield process
            finally:
                process.send_signal(signal.SIGTERM)
                try:
                    assert process.wait(20) == 0, self.log.read_text()
                finally:
                    process.kill()

    @property
    def interfaces(self) -> list[str]:
        """The tags in the container's VPP."""
        return sorted(port.tag for port in self.switch.ports() if port.tag)

    @property
    def switch(self) -> Switch:
        """The container's VPP."""
        return Switch(connection.connect(str(self.vpp.path), TIMEOUT, api_dir()))
