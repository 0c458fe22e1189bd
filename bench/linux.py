"""Benchmark of a veth in a Linux bridge with host-local, against the CNI reference plugins.

Contenders take turns in shuffled rounds, in one run on one machine, because only the ratio of their
times is meaningful. Our engine removes its bridge with the last port, whereas the Go plugin
`bridge` keeps its bridge forever. To make them comparable, each contender has one attachment that
exists during the whole run, so every request finds a bridge.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from attrs import asdict

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from bench import node
from bench.contender import REFERENCE_PLUGINS, Contender, peer
from bench.figures import table
from bench.sections import SECTIONS, Bench, prepare
from userspace_cni.install import install

_PORTS_MAX = 1023  # ports of a Linux bridge, including that of the permanent attachment


def network(directory: Path, name: str, subnet: str, **keys: object) -> dict[str, Any]:
    ipam = {
        "type": "host-local",
        "dataDir": str(directory / "leases"),
        "ranges": [[{"subnet": subnet}]],
    }
    return {"cniVersion": "1.0.0", "name": name, "ipam": ipam, **keys}


def own_network(directory: Path, name: str, subnet: str) -> dict[str, Any]:
    bridge = {"bridgeName": f"bench-{name}", "gateway": True, "defaultRoute": True}
    host = {"engine": "linux", "iftype": "veth", "netType": "bridge", "bridge": bridge}
    return network(directory, name, subnet, type="userspace", host=host)


def reference(directory: Path) -> Contender:
    keys = {"type": "bridge", "bridge": "bench-go", "isGateway": True, "isDefaultGateway": True}
    return Contender(
        "bridge (Go)", REFERENCE_PLUGINS / "bridge", network(directory, "go", "10.1.0.0/16", **keys)
    )


def one_process(directory: Path) -> Contender:
    environ = node.settings(directory / "alone")
    return Contender(
        "userspace, one process",
        install(directory / "alone"),
        own_network(directory, "alone", "10.3.0.0/16"),
        environ,
    )


def run(options: argparse.Namespace) -> dict[str, Any]:
    with ExitStack() as stack:
        directory = Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-", dir=options.directory))
        )
        machine = node.machine(directory)
        served = stack.enter_context(node.daemon(directory / "daemon"))
        names = [f"standing-{number}" for number in range(3 + len(options.peer))]
        stack.enter_context(node.namespaces(names))
        bench = Bench(
            go=reference(directory),
            daemon=Contender(
                "userspace, daemon",
                served.executable,
                own_network(directory, "own", "10.2.0.0/16"),
            ),
            one_process=one_process(directory),
            peers=options.peer,
            served=served,
            rounds=options.rounds,
            attachments=options.attachments,
            idle=options.idle,
        )
        prepare(bench)
        sections = {}
        for name in (name for name in SECTIONS if name in options.sections):
            title, measure = SECTIONS[name]
            rows = measure(bench)
            print(table(title, rows), flush=True)
            sections[name] = [asdict(row) for row in rows]
        return {
            "machine": machine,
            "reference": {"name": bench.go.name, "version": debian_version()},
            "peers": {one.name: one.about() for one in bench.peers},
            "rounds": bench.rounds,
            "attachments": bench.attachments,
            "sections": sections,
            "failures": bench.failures,
        }


def debian_version() -> str:
    query = ["dpkg-query", "--show", "--showformat=${Version}", "containernetworking-plugins"]
    return subprocess.run(query, capture_output=True, text=True, check=True).stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=30, help="default: %(default)s")
    parser.add_argument(
        "--attachments",
        type=int,
        default=1000,
        help="on each bridge, 2 to 1022; default: %(default)s",
    )
    parser.add_argument(
        "--idle", type=float, default=10, help="seconds to watch the idle daemon; default: 10"
    )
    parser.add_argument(
        "--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS), help="default: all"
    )
    parser.add_argument(
        "--peer", type=peer, action="append", default=[], metavar="NAME=PATH:CONF",
        help="another CNI plugin, and a file with its network configuration",
    )  # fmt: skip
    parser.add_argument(
        "--directory", type=Path, default=Path("/var/tmp"),
        help="where the daemon keeps its store; on the disk that /var is on. default: %(default)s",
    )  # fmt: skip
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    options = parser.parse_args()
    if options.rounds < 1 or not 2 <= options.attachments < _PORTS_MAX:
        parser.error(f"at least 1 round, 2 to {_PORTS_MAX - 1} attachments")
    node.enter()
    figures = run(options)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")
    if figures["failures"].get("userspace, daemon"):
        raise SystemExit("requests failed")


if __name__ == "__main__":
    main()
