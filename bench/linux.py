"""ADD and DEL of a veth into a Linux bridge with host-local, beside the Go plugin ``bridge``.

Contenders take turns in shuffled rounds, in one run on one machine, so that their ratio means
something; milliseconds alone do not.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from userspace_cni.install import install

REFERENCE_PLUGINS = Path("/usr/lib/cni")
MARK = "USERSPACE_CNI_BENCH_NODE"


@dataclass
class Contender:
    """A plugin with its network, and the wall times of its calls in seconds."""

    name: str
    executable: Path
    network: dict[str, Any]
    times: dict[str, list[float]]

    def call(self, command: str, number: int, netns: str, path: Path) -> None:
        environ = os.environ | {
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": f"bench-{number}",
            "CNI_NETNS": netns,
            "CNI_IFNAME": "eth0",
            "CNI_PATH": str(path),
        }
        stdin = json.dumps(self.network).encode()
        start = time.perf_counter()
        done = subprocess.run(
            [self.executable], input=stdin, env=environ, capture_output=True, check=False
        )
        self.times.setdefault(command, []).append(time.perf_counter() - start)
        if done.returncode:
            raise SystemExit(f"{self.name} {command}: {done.stdout.decode()}{done.stderr.decode()}")


def contenders(directory: Path) -> list[Contender]:
    def network(name: str, subnet: str, **keys: object) -> dict[str, Any]:
        ipam = {
            "type": "host-local",
            "dataDir": str(directory / "leases"),
            "ranges": [[{"subnet": subnet}]],
        }
        return {"cniVersion": "1.0.0", "name": name, "ipam": ipam, **keys}

    bridge = {"bridgeName": "bench-own", "gateway": True, "defaultRoute": True}
    host = {"engine": "linux", "iftype": "veth", "netType": "bridge", "bridge": bridge}
    return [
        Contender(
            "bridge (Go)",
            REFERENCE_PLUGINS / "bridge",
            network(
                "go",
                "10.1.0.0/16",
                type="bridge",
                bridge="bench-go",
                isGateway=True,
                isDefaultGateway=True,
            ),
            {},
        ),
        Contender(
            "userspace, one process",
            install(directory),
            network("own", "10.2.0.0/16", type="userspace", host=host),
            {},
        ),
    ]


def measure(rounds: int) -> list[Contender]:
    with tempfile.TemporaryDirectory(prefix="bench-") as text:
        directory = Path(text)
        settings = directory / "config.toml"
        settings.write_text(f'state_dir = "{text}/state"\nrun_dir = "{text}/run"\n')
        os.environ["USERSPACE_CNI_CONFIG"] = str(settings)
        field = contenders(directory)
        namespace = f"bench-{os.getpid()}"
        for number in range(-1, rounds):
            for contender in random.sample(field, len(field)):
                subprocess.run(["ip", "netns", "add", namespace], check=True)
                try:
                    for command in ("ADD", "DEL"):
                        netns = f"/run/netns/{namespace}"
                        contender.call(command, number, netns, REFERENCE_PLUGINS)
                finally:
                    subprocess.run(["ip", "netns", "delete", namespace], check=True)
            if number < 0:  # the first round fills caches and makes the bridges
                for contender in field:
                    contender.times.clear()
        return field


def report(field: list[Contender]) -> dict[str, Any]:
    reference = field[0]
    print(f"{'':24}{'command':>9}{'median ms':>11}{'min':>8}{'max':>8}{'ratio':>8}")
    rows = []
    for command in ("ADD", "DEL"):
        base = statistics.median(reference.times[command])
        for contender in field:
            times = contender.times[command]
            median = statistics.median(times)
            row = {
                "name": contender.name,
                "command": command,
                "n": len(times),
                "median_ms": median * 1000,
                "ratio": median / base,
            }
            rows.append(row)
            print(
                f"{contender.name:24}{command:>9}{median * 1000:11.1f}{min(times) * 1000:8.1f}"
                f"{max(times) * 1000:8.1f}{median / base:8.2f}"
            )
    return {"reference": reference.name, "rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    options = parser.parse_args()
    if MARK not in os.environ:
        # A network namespace of our own is the node: no bridge of this machine is touched.
        os.environ[MARK] = "1"
        os.execvp("unshare", ["unshare", "--net", sys.executable, *sys.argv])
    figures = report(measure(options.rounds))
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
