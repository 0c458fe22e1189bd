"""Benchmark of the VPP engine: connecting, and ADD and DEL on an open connection.

It compares our definitions with all definitions of an installed VPP, and 10 interfaces with 1,000.
It uses the simulator, and a real VPP if one is installed.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from lab import vpp_lab
from lab.vpp import api_dir
from lab.vpp_lab import KINDS, TIMEOUT, VppLab, conf
from userspace_cni_vpp.connection import Connection
from userspace_cni_vpp.sections import BridgeSection

if TYPE_CHECKING:
    from collections.abc import Callable

HOST = conf("memif", "bridge", bridge=BridgeSection(bridge_id=4))
_OURS = "from userspace_cni_vpp.connection import Connection; Connection({0!r}, 5, {1!r}).close()"
_ALL = (
    "from vpp_papi import VPPApiClient; import glob; "
    "c = VPPApiClient(apifiles=glob.glob({1!r} + '/**/*.api.json', recursive=True), "
    "server_address={0!r}); c.connect('bench'); c.disconnect()"
)


def milliseconds(work: Callable[[], object], rounds: int) -> float:
    took = []
    for _ in range(rounds):
        begin = time.perf_counter()
        work()
        took.append(time.perf_counter() - begin)
    return median(took) * 1000


def processes(lab: VppLab, rounds: int) -> None:
    variants = [("nothing", "pass"), ("our definitions", _OURS)]
    if lab.kind == "real":
        variants.append(("all definitions", _ALL))
    for name, code in variants:
        argv = [sys.executable, "-c", code.format(str(lab.vpp.path), api_dir())]
        took = milliseconds(lambda argv=argv: subprocess.run(argv, check=True), rounds)  # type: ignore[misc]
        print(f"  process that connects, {name:16} {took:8.1f} ms")


def calls(lab: VppLab, rounds: int) -> None:
    def connect() -> None:
        Connection(str(lab.vpp.path), TIMEOUT, api_dir()).close()

    connect()
    print(f"  connect again {milliseconds(connect, rounds):30.2f} ms")
    container = lab.container()
    there = 0
    for count in (10, 1000):
        while there < count:
            lab.switch.create_loopback(bytes(6))
            there += 1
        adds, deletes = [], []
        for _ in range(rounds):
            begin = time.perf_counter()
            found = lab.attach(HOST, "10.1.0.2/24", container=container)
            adds.append(time.perf_counter() - begin)
            begin = time.perf_counter()
            found.delete()
            deletes.append(time.perf_counter() - begin)
        print(
            f"  {count:5} interfaces: ADD {median(adds) * 1000:6.2f} ms, "
            f"DEL {median(deletes) * 1000:6.2f} ms"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    rounds = parser.parse_args().rounds
    for kind in KINDS:
        print(kind)
        for lab in vpp_lab.make(kind):
            processes(lab, rounds)
            calls(lab, rounds)


if __name__ == "__main__":
    main()
