"""A node with a private Open vSwitch, to which the plugin under test attaches containers."""

from __future__ import annotations

import itertools
import json
import os
import re
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from attrs import define, evolve, field

from lab import plugin as lab_plugin
from lab.node import Node, poll
from lab.ovs import Ovs
from lab.plugin import Mode, Outcome, Plugin
from lab.testpmd import Console, Testpmd
from userspace_cni.api import attachment_id

#: How long the plugin waits for the switch, in seconds; long, because the machine may be busy.
TIMEOUT = 20

_numbers = itertools.count(1)
_RESTORE = """
import sys
from contextlib import closing
from userspace_cni.config import settings
from userspace_cni.cni.errors import CniError
from userspace_cni.runtime import Runtime
with closing(Runtime(settings.load())) as runtime:
    for name in sys.argv[1:]:
        try:
            runtime.restore(name)
        except CniError as error:
            print(error)
"""


@define
class Container:
    """A network namespace and its attachment."""

    lab: OvsLab
    name: str
    netns: str
    config: dict[str, Any]
    ifname: str = "eth0"
    result: dict[str, Any] = field(factory=dict)

    @property
    def interface(self) -> dict[str, Any]:
        """The container's interface in the result."""
        (found,) = (i for i in self.result["interfaces"] if i.get("sandbox"))
        assert isinstance(found, dict)
        return found

    @property
    def port(self) -> str:
        """The name of the container's port in the switch."""
        return str(self.result["interfaces"][0]["name"])

    @property
    def document(self) -> Path:
        """The container's hand-over file."""
        return Path(self.interface["socketPath"]).with_name(f"{self.ifname}.json")

    def call(self, command: str, **more: Any) -> Outcome:
        return self.lab.call(command, self, **more)

    def add(self) -> Container:
        self.lab.attached.append(self)
        self.result = self.call("ADD").result
        return self

    def check(self) -> Outcome:
        return self.lab.call("CHECK", self, config=self.config | {"prevResult": self.result})

    def delete(self) -> None:
        self.call("DEL").succeeded()


@define
class OvsLab:
    """A node, its switch and the plugin."""

    node: Node
    ovs: Ovs
    plugin: Plugin
    #: Containers for which ADD was called.
    attached: list[Container] = field(factory=list)

    def call(
        self,
        command: str,
        container: Container,
        *,
        config: dict[str, Any] | None = None,
        **more: Any,
    ) -> Outcome:
        return self.plugin.call(
            command,
            config or container.config,
            container=container.name,
            netns=container.netns,
            ifname=container.ifname,
            node=self.node,
            **more,
        )

    def set_timeout(self, seconds: int) -> None:
        """Set how long the plugin waits for the switch."""
        settings = Path(self.plugin.env["USERSPACE_CNI_CONFIG"])
        settings.write_text(re.sub(r"timeout = \d+", f"timeout = {seconds}", settings.read_text()))
        if self.plugin.daemon is not None:
            self.plugin.daemon.stop()  # it reads the settings only when it starts

    def container(self, config: dict[str, Any], name: str = "", ifname: str = "eth0") -> Container:
        """Return a container without attaching it; add name and version to its *config*."""
        name = name or f"c{next(_numbers)}"
        return Container(self, name, self.node.netns(name), complete(config), ifname)

    def attach(self, config: dict[str, Any], **more: Any) -> Container:
        return self.container(config, **more).add()

    def restore(self, *containers: Container) -> str:
        """Restore attachments on the node as the daemon does; return the error messages."""
        ids = [attachment_id("net", each.name, each.ifname) for each in containers]
        environ = {**os.environ, **self.plugin.env}
        return self.node.run([sys.executable, "-c", _RESTORE, *ids], env=environ).stdout

    def leftovers(self) -> list[str]:
        """Return the contents of the plugin's shared directories, and the plugin's ports."""
        shared = self.plugin.run_dir / "shared"
        files = [str(path) for path in shared.glob("**/*")] if shared.exists() else []
        views = self.plugin.run_dir / "s"
        files += [str(path) for path in views.glob("*")] if views.exists() else []
        rows = self.ovs.vsctl("--bare", "--columns=name", "find", "Port") or ""
        ports = [name for name in rows.split() if name.startswith("uc")]
        links = [name for name in self.node.links() if name.startswith("uc")]
        qos = (self.ovs.vsctl("--bare", "--columns=_uuid", "list", "QoS") or "").split()
        return files + ports + links + qos

    def detach_all(self) -> None:
        """Detach all containers for which ADD was called."""
        for container in self.attached:
            container.call("DEL")
        self.attached.clear()

    def traffic(
        self,
        sender: Console,
        receiver: Console,
        bursts: int = 1,
        expected: int | None = None,
        seconds: float = 30,
    ) -> None:
        """Send from one application to another; all packets, or *expected*, must arrive."""
        for application in (sender, receiver):
            application.command("stop")
            application.command("clear port stats all")
        receiver.command("start")
        sender.send(bursts)
        sent = 32 * bursts * sender.queues
        wanted = sent if expected is None else expected
        if wanted:
            poll(lambda: receiver.received >= wanted, f"{wanted} packets", seconds)
        else:
            time.sleep(0.5)
        assert (sender.sent, receiver.received) == (sent, wanted)

    def passes(self, sender: Testpmd, receiver: Testpmd) -> bool:
        """Return whether all packets from one application reach the other now."""
        try:
            self.traffic(sender, receiver, seconds=1)
        except (TimeoutError, AssertionError):
            return False
        return True


def complete(config: dict[str, Any]) -> dict[str, Any]:
    return {"cniVersion": "1.1.0", "name": "net", "type": "userspace", **config}


def vhost(bridge_name: str = "br0", **more: Any) -> dict[str, Any]:
    """Return a network's configuration with vhost-user ports."""
    section = {"bridgeName": bridge_name, **more.pop("bridge", {})}
    host = {"engine": "ovs", "iftype": "vhostuser", "bridge": section, **more.pop("host", {})}
    return {"host": host, **more}


def memif(bridge_name: str = "br0", **more: Any) -> dict[str, Any]:
    """Return a network's configuration with memif ports."""
    return vhost(bridge_name, host={"iftype": "memif", **more.pop("host", {})}, **more)


def kernel(
    iftype: str, subnet: str, data: Path, bridge_name: str = "br0", **more: Any
) -> dict[str, Any]:
    """Return a network's configuration with kernel ports and addresses."""
    ipam = {
        "type": "host-local",
        "dataDir": str(data),
        "ranges": [[{"subnet": subnet}]],
    }
    # Debian's host-local supports versions up to 1.0.0.
    host = {"iftype": iftype, **more.pop("host", {})}
    return vhost(bridge_name, host=host, ipam=ipam, cniVersion="1.0.0", **more)


def start(
    container: Container, peer: Container, stack: ExitStack, *options: str, mode: str = "rxonly"
) -> Testpmd:
    """Start a DPDK application in *container* that uses only its hand-over file."""
    return stack.enter_context(
        Testpmd(
            container.lab.node,
            container.netns,
            container.document,
            peer=peer.interface["mac"],
            mode=mode,
            options=options,
        )
    )


def make(directory: Path, stack: ExitStack, mode: Mode = "process", **options: Any) -> OvsLab:
    """Start a node and a switch, which *stack* ends; install the plugin in *directory*."""
    node = stack.enter_context(Node())
    ovs = stack.enter_context(Ovs(node, **options))
    plugin = stack.enter_context(lab_plugin.installed(directory, mode))
    # Use short paths: those of a test's directory do not fit into a socket's address.
    run_dir = node.dir / "run"
    settings = Path(plugin.env["USERSPACE_CNI_CONFIG"])
    settings.write_text(
        f"state_dir = {json.dumps(str(plugin.state_dir))}\nrun_dir = {json.dumps(str(run_dir))}\n"
        f"[engines.ovs]\ndb = {json.dumps(ovs.db)}\ntimeout = {TIMEOUT}\n"
    )
    return OvsLab(node, ovs, evolve(plugin, run_dir=run_dir))
