"""Benchmark of ADD and DEL of vhost-user ports on OVS-DPDK: our engine against ovs-vsctl.

The engine runs in a long-lived process, as in the daemon. Contenders take turns in shuffled rounds,
in one run on one private switch, because only the ratio of their times is meaningful. Afterwards
the switch is filled, to measure an ADD with many ports.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from lab.node import Node as LabNode
from lab.ovs import Ovs
from userspace_cni import config
from userspace_cni.api import Attachment, EngineContext
from userspace_cni.handover import ContainerDirectory
from userspace_cni.kernel.tags import short_name
from userspace_cni.locks import Locks
from userspace_cni_ovs import switch
from userspace_cni_ovs.host import OvsHostEngine

BRIDGE = "br0"


@dataclass
class Contender:
    """A way to add and remove a port, with the wall times of its calls in milliseconds."""

    name: str
    add: Callable[[int], None]
    delete: Callable[[int], None]
    times: dict[str, list[float]] = field(default_factory=dict)

    def measure(self, command: str, number: int) -> float:
        start = time.perf_counter()
        {"ADD": self.add, "DEL": self.delete}[command](number)
        took = (time.perf_counter() - start) * 1000
        self.times.setdefault(command, []).append(took)
        return took


def engine(ovs: Ovs, directory: Path) -> Contender:
    def shared(container: str) -> ContainerDirectory:
        return ContainerDirectory(directory / "shared", container, directory / "s")

    driver = OvsHostEngine(
        EngineContext(settings={"db": ovs.db}, lock=Locks(directory / "locks", 60).hold)
    )
    raw = {"iftype": "vhostuser", "bridge": {"bridgeName": BRIDGE}}
    conf = config.engine_conf(raw, "host", driver.info, {})

    def attachment(number: int) -> Attachment:
        name = f"c{number}"
        return Attachment(
            network="bench",
            container_id=name,
            ifname="eth0",
            netns="",
            interface="eth0",
            directory=shared(name),
        )

    def delete(number: int) -> None:
        driver.delete(attachment(number).id, conf, None)
        shared(f"c{number}").withdraw("eth0", attachment(number).id)

    return Contender(
        "engine ovs", lambda number: void(driver.add(attachment(number), conf, ExitStack())), delete
    )


class Waiting:
    """Measures how long an ADD waits for ovs-vswitchd; the rest is the engine's own time."""

    def __init__(self) -> None:
        self.milliseconds: list[float] = []
        self._await_port = switch.await_port
        switch.await_port = self._measured  # type: ignore[assignment]

    def _measured(self, *arguments: Any) -> None:
        start = time.perf_counter()
        self._await_port(*arguments)
        self.milliseconds.append((time.perf_counter() - start) * 1000)


def void(_: object) -> None:
    """Discard a return value."""


def vsctl(ovs: Ovs, directory: Path, *, predecessor: bool) -> Contender:
    """Return a contender that calls ovs-vsctl: minimally, or as the Go predecessor does."""

    def run(*arguments: str) -> None:
        subprocess.run(
            ["ovs-vsctl", f"--db={ovs.db}", "--timeout=60", *arguments],
            check=True,
            stdout=subprocess.DEVNULL,
        )

    def names(number: int) -> tuple[str, str]:
        path = directory / "vsctl" / f"c{number}"
        path.mkdir(parents=True, exist_ok=True)
        return short_name(f"{number:016x}"), f"{path}/eth0.sock"

    def add(number: int) -> None:
        name, socket = names(number)
        create = ("add-port", BRIDGE, name, "--", "set", "Interface", name)
        options = ("type=dpdkvhostuserclient", f"options:vhost-server-path={socket}")
        if predecessor:
            run("br-exists", BRIDGE)
            run(*create, options[0])
            run("set", "Interface", name, options[1])
            run("get", "Port", name, "mac")
        else:
            run(*create, *options, f"external_ids:number={number}")
            run("get", "Interface", name, "ofport", "error")

    def delete(number: int) -> None:
        run("del-port", BRIDGE, names(number)[0])
        if predecessor:
            run("list-ports", BRIDGE)

    return Contender("ovs-vsctl, as in Go" if predecessor else "ovs-vsctl, least", add, delete)


def compare(contenders: list[Contender], rounds: int) -> dict[str, Any]:
    for number in range(-1, rounds):
        for contender in random.sample(contenders, len(contenders)):
            contender.measure("ADD", 10_000 + number)
            contender.measure("DEL", 10_000 + number)
        if number < 0:  # the first round fills caches
            for contender in contenders:
                contender.times.clear()
    print(f"{'':22}{'command':>9}{'median ms':>11}{'min':>8}{'max':>8}{'ratio':>8}")
    rows: dict[str, Any] = {}
    for command in ("ADD", "DEL"):
        base = statistics.median(contenders[1].times[command])
        for contender in contenders:
            times = contender.times[command]
            median = statistics.median(times)
            rows[f"{contender.name} {command}"] = {"ms": median, "ratio": median / base}
            print(
                f"{contender.name:22}{command:>9}{median:11.1f}{min(times):8.1f}"
                f"{max(times):8.1f}{median / base:8.2f}"
            )
    return rows


def fill(contenders: list[Contender], ports: int) -> dict[str, Any]:
    """Add *ports* ports by the engine; at some counts, see what one more costs each contender."""
    waiting = Waiting()
    names = [c.name for c in contenders] + ["engine's own share"]
    print(f"\n{'ports there':>12}" + "".join(f"{name + ', ADD ms':>30}" for name in names))
    rows: dict[str, Any] = {}
    own = contenders[0]
    for number in range(1, ports + 1):
        own.add(number)
        if number in (10, 100, ports):
            for contender in contenders:
                contender.times.clear()
            waiting.milliseconds.clear()
            for extra in range(15):
                for contender in random.sample(contenders, len(contenders)):
                    contender.measure("ADD", 20_000 + extra)
                    contender.delete(20_000 + extra)
            medians = {c.name: statistics.median(c.times["ADD"]) for c in contenders}
            medians["engine's own share"] = statistics.median(
                whole - wait
                for whole, wait in zip(own.times["ADD"], waiting.milliseconds, strict=True)
            )
            rows[str(number)] = medians
            print(f"{number:12}" + "".join(f"{medians[name]:30.1f}" for name in names))
    for number in range(1, ports + 1):
        own.delete(number)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--ports", type=int, default=1000)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    arguments = parser.parse_args()
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        ovs = stack.enter_context(Ovs(stack.enter_context(LabNode())))
        ovs.add_bridge(BRIDGE)
        contenders = [
            engine(ovs, directory),
            vsctl(ovs, directory, predecessor=False),
            vsctl(ovs, directory, predecessor=True),
        ]
        figures = {
            "rounds": compare(contenders, arguments.rounds),
            "fill": fill(contenders, arguments.ports),
        }
        left = ovs.ports(BRIDGE)
        if left:
            raise SystemExit(f"left behind: {', '.join(left)}")
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
