"""dpdk-testpmd: a DPDK application that sends, receives and counts packets."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pty
import re
import select
import signal
import subprocess
import tempfile
import time
import tty
from pathlib import Path
from typing import TYPE_CHECKING, Self

from lab.node import children, poll
from userspace_cni.agent import command
from userspace_cni.api import Memif, VhostUser
from userspace_cni.handover import load

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lab.node import Node

#: Debian's package dpdk-dev contains it.
PROGRAM = "dpdk-testpmd"
#: The prompt, followed by messages that the driver's threads may print.
_PROMPT = re.compile(rb"testpmd> (\s*Port \d+: link state change event\s*)*\Z")


def device(document: Path) -> tuple[list[str], int]:
    """Return the EAL arguments, from the agent, and the number of queues of a hand-over file."""
    handoff = load(json.loads(document.read_text()), str(document.parent)).handoff
    if isinstance(memif := handoff.port, Memif):
        queues = max(memif.rx_queues, memif.tx_queues)
    else:
        assert isinstance(handoff.port, VhostUser)
        queues = handoff.port.queues
    with contextlib.redirect_stdout(io.StringIO()) as said:
        told = ["--directory", str(document.parent), "eal-args", handoff.interface]
        assert command.main(told) == command.DONE
    return said.getvalue().split(), queues


def command_line(
    eal_arguments: Sequence[str], queues: int, *options: str, prefix: str, peer: str = ""
) -> list[str]:
    """Return the arguments of a testpmd that uses little memory and waits for commands."""
    return [
        # Threads are not pinned, because the lab shares its processors.
        "--lcores",
        "(0,1)@(0-1)",
        "--no-huge",
        f"--file-prefix={prefix}",
        "-m",
        "64",
        "--no-pci",
        "--no-telemetry",
        *eal_arguments,
        "--",
        "-i",
        "--total-num-mbufs=4096",
        *([f"--eth-peer=0,{peer}"] if peer else []),
        f"--rxq={queues}",
        f"--txq={queues}",
        *options,
    ]


class Console:
    """A command that eventually runs a testpmd, which waits for commands."""

    def __init__(
        self, node: Node, command: Sequence[str], queues: int, env: Mapping[str, str] | None = None
    ) -> None:
        """Start *command* on *node* and wait for the prompt."""
        self.queues = queues
        self._said = b""
        # Use a terminal: on a pipe the output would be buffered and arrive after the prompt.
        self._terminal, theirs = pty.openpty()
        self._runtime = tempfile.TemporaryDirectory(prefix="testpmd-")
        tty.setraw(theirs)
        try:
            self._process = subprocess.Popen(
                node.command(command),
                # DPDK leaves files in this directory when the program has ended.
                env={**os.environ, **(env or {}), "RUNTIME_DIRECTORY": self._runtime.name},
                stdin=theirs,
                stdout=theirs,
                stderr=subprocess.STDOUT,
            )
        finally:
            os.close(theirs)
        self._node = node
        try:
            self.log = self._until_prompt(30)
        except BaseException:
            self.kill()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.quit()

    def command(self, text: str, seconds: float = 10) -> str:
        """Type a command and return what it prints."""
        os.write(self._terminal, text.encode() + b"\n")
        return self._until_prompt(seconds)

    def send(self, bursts: int = 1) -> None:
        """Send bursts of 32 packets from each queue, then receive."""
        self.command(f"start tx_first {bursts}")

    @property
    def counters(self) -> dict[str, int]:
        """Return the port's counters: ``RX-packets``, ``TX-packets``, ``TX-dropped``, ..."""
        shown = self.command("show port stats 0")
        return {key: int(value) for key, value in re.findall(r"([RT]X-\w+): +(\d+)", shown)}

    @property
    def received(self) -> int:
        return self.counters["RX-packets"]

    @property
    def sent(self) -> int:
        return self.counters["TX-packets"]

    @property
    def link(self) -> str:
        match = re.search(r"Link status: (\w+)", self.command("show port info 0"))
        return match[1] if match else ""

    def reconnect(self) -> None:
        """Stop and start the port, as a DPDK application does to reconnect."""
        for text in ("stop", "port stop 0", "port start 0"):
            self.command(text)
        poll(lambda: self.link == "up", "the application's link")

    def quit(self) -> None:
        """End the program as a user does."""
        with contextlib.suppress(OSError):
            os.write(self._terminal, b"quit\n")
        deadline = time.monotonic() + 10
        while self._process.poll() is None and time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                if select.select([self._terminal], [], [], 0.05)[0]:
                    os.read(self._terminal, 65536)
        self.kill()

    def kill(self) -> None:
        """End the program at once."""
        self._node.stop(self._process, 0.2)
        with contextlib.suppress(OSError):
            os.close(self._terminal)
        self._runtime.cleanup()

    def crash(self) -> None:
        """Kill the program, as the kernel does when it is out of memory; its files stay."""
        # If there is a PID namespace to enter, the program is a child of nsenter.
        for pid in children(self._process.pid) or [self._process.pid]:
            os.kill(pid, signal.SIGKILL)
        self._process.wait()

    def _until_prompt(self, seconds: float) -> str:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if select.select([self._terminal], [], [], 0.1)[0]:
                try:
                    said = os.read(self._terminal, 65536)
                except OSError:
                    said = b""
                if not said:
                    raise RuntimeError(f"testpmd ended\n{self._said.decode(errors='replace')}")
                self._said += said
            if _PROMPT.search(self._said):
                shown, self._said = self._said.decode(errors="replace"), b""
                return shown
        raise TimeoutError(f"testpmd has no prompt\n{self._said.decode(errors='replace')}")


class Testpmd(Console):
    """A running testpmd with one port, in a network namespace of a lab node."""

    __test__ = False

    def __init__(
        self,
        node: Node,
        netns: str,
        document: Path,
        *,
        peer: str,
        mode: str = "rxonly",
        options: Sequence[str] = (),
    ) -> None:
        """Start with the hand-over file *document*; send to the MAC address *peer*."""
        arguments, queues = device(document)
        prefix = f"{document.stem}-{document.parent.name}-{os.getpid()}"
        line = command_line(
            arguments, queues, f"--forward-mode={mode}", *options, prefix=prefix, peer=peer
        )
        super().__init__(node, ["nsenter", f"--net={netns}", "--", PROGRAM, *line], queues)
