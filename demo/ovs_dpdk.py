"""Attach two DPDK applications to OVS-DPDK, and let them exchange packets.

First by vhost-user, then by memif. The switch is private to this demo: it has its own network
namespace and directory, and uses no hugepages and no PCI device. The applications are dpdk-testpmd,
each in its own network namespace. They only know what the plugin handed over to them.
"""

from __future__ import annotations

import json
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

# The lab of the tests starts private switches and drives testpmd.
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from lab.node import Node, poll
from lab.ovs import Ovs
from lab.plugin import Plugin, attachments
from lab.testpmd import Testpmd, device
from userspace_cni.install import install

BRIDGE = "demo0"
CONTAINERS = ("sender", "receiver")
ROUNDS = 25
BURSTS = 4  # of 32 packets, from each queue; more at once could overrun a ring of 256
SECONDS = 3


def say(text: str) -> None:
    """Print a heading."""
    print(f"\n\033[1m{text}\033[0m" if sys.stdout.isatty() else f"\n{text}", flush=True)


def main() -> None:
    """Start a switch, attach and use both types of ports, and show that nothing is left."""
    with ExitStack() as stack:
        say("A private Open vSwitch with DPDK: no hugepages, no PCI devices")
        node = stack.enter_context(Node())
        ovs = stack.enter_context(Ovs(node))
        print(ovs.get("Open_vSwitch", ".", "dpdk_version").strip('"'))
        plugin = installed(node, ovs)
        for iftype in ("vhostuser", "memif"):
            show(node, ovs, plugin, iftype)
        say("What is left")
        shared = sorted(str(path) for path in (plugin.run_dir / "shared").glob("**/*"))
        print(f"attachments: {len(attachments(plugin))}")
        print(f"bridges in Open vSwitch: {', '.join(ovs.bridges()) or 'none'}")
        print(f"files in shared directories: {', '.join(shared) or 'none'}")
        if attachments(plugin) or ovs.bridges() or shared:
            raise SystemExit("something was left behind")


def installed(node: Node, ovs: Ovs) -> Plugin:
    """Install the plugin as an operator does, with settings for the private switch."""
    bin_dir = node.dir / "bin"
    bin_dir.mkdir()
    install(bin_dir)
    settings = node.dir / "config.toml"
    settings.write_text(
        f'state_dir = "{node.dir}/state"\nrun_dir = "{node.dir}/run"\n'
        f'[engines.ovs]\ndb = "{ovs.db}"\n'
    )
    return Plugin(
        bin_dir=bin_dir,
        state_dir=node.dir / "state",
        run_dir=node.dir / "run",
        env={"USERSPACE_CNI_CONFIG": str(settings)},
    )


def show(node: Node, ovs: Ovs, plugin: Plugin, iftype: str) -> None:
    """Attach two containers with ports of *iftype*, exchange packets, and detach them."""
    network: dict[str, Any] = {
        "cniVersion": "1.1.0",
        "name": f"demo-{iftype}",
        "type": "userspace",
        "host": {
            "engine": "ovs",
            "iftype": iftype,
            "bridge": {"bridgeName": BRIDGE, "create": True, "vlanId": 77},
        },
    }
    say(f"{iftype}: the network's configuration")
    print(json.dumps(network, indent=2))

    documents: dict[str, Path] = {}
    macs: dict[str, str] = {}
    namespaces = {name: node.netns(f"{name}-{iftype}") for name in CONTAINERS}

    def call(command: str, name: str, config: dict[str, Any]) -> Any:
        outcome = plugin.call(command, config, container=name, netns=namespaces[name], node=node)
        if outcome.status:
            raise SystemExit(f"{command} {name} failed: {outcome.out}{outcome.err}")
        return json.loads(outcome.out) if outcome.out else None

    results: dict[str, Any] = {}
    for name in CONTAINERS:
        say(f"{iftype}: ADD container {name}")
        results[name] = call("ADD", name, network)
        print(json.dumps(results[name], indent=2))
        interface = results[name]["interfaces"][-1]
        macs[name] = interface["mac"]
        documents[name] = Path(interface["socketPath"]).with_name("eth0.json")

    say(f"{iftype}: what the sender finds beside its socket, {documents['sender'].name}")
    print(documents["sender"].read_text())
    print(f"its EAL arguments: {' '.join(device(documents['sender'])[0])}")

    with ExitStack() as stack:
        sender, receiver = (
            stack.enter_context(Testpmd(node, namespaces[name], documents[name], peer=macs[other]))
            for name, other in (CONTAINERS, CONTAINERS[::-1])
        )
        if iftype == "vhostuser":
            for result in results.values():
                ovs.until_link(result["interfaces"][0]["name"])
        count(sender, receiver)
        rate(sender, receiver)

    for name in CONTAINERS:
        call("CHECK", name, network | {"prevResult": results[name]})
        call("DEL", name, network)
    print("CHECK and DEL of both: done")


def count(sender: Testpmd, receiver: Testpmd) -> None:
    """Send a known number of packets, all of which must arrive."""
    say(f"{ROUNDS} times {BURSTS} bursts of 32 packets from {sender.queues} queue(s)")
    receiver.command("start")
    expected = 0
    for _ in range(ROUNDS):
        sender.send(BURSTS)
        expected += 32 * BURSTS * sender.queues
        wanted = expected
        poll(lambda: receiver.received >= wanted, f"{wanted} packets")  # noqa: B023  called now
        sender.command("stop")
    print(f"sent {sender.sent}, received {receiver.received}")
    if (sender.sent, receiver.received) != (expected, expected):
        raise SystemExit("packets were lost, or came out of nowhere")


def rate(sender: Testpmd, receiver: Testpmd) -> None:
    """Send at full speed for some seconds, and print the rate."""
    say(f"As fast as it goes for {SECONDS} s, 64 bytes each")
    sender.command("set fwd txonly")
    before, start = receiver.received, time.monotonic()
    sender.command("start")
    time.sleep(SECONDS)
    after, end = receiver.received, time.monotonic()
    sender.command("stop")
    print(f"received {(after - before) / (end - start) / 1e6:.2f} million packets per second")


if __name__ == "__main__":
    main()
