"""Attach two containers to a Linux bridge with the executable that a container runtime calls."""

from __future__ import annotations

import json
from typing import Any

from node import Node, say

CONTAINERS = ("web", "database")


def main() -> None:
    """Attach, use, check, detach."""
    with Node(ipam="host-local") as node:
        leases = node.directory / "leases"
        network: dict[str, Any] = {
            "cniVersion": "1.0.0",
            "name": "demo",
            "type": "userspace",
            "host": {
                "engine": "linux",
                "iftype": "veth",
                "netType": "bridge",
                "bridge": {"bridgeName": "demo0", "gateway": True, "defaultRoute": True},
            },
            "ipam": {
                "type": "host-local",
                "dataDir": str(leases),
                "ranges": [
                    [{"subnet": "10.77.0.0/24"}],
                    [{"subnet": "fd77::/64"}],
                ],
            },
        }
        say("The network's configuration, as it stands in /etc/cni/net.d")
        print(json.dumps(network, indent=2))

        namespaces = {name: node.container(name) for name in CONTAINERS}
        results: dict[str, Any] = {}
        for name, netns in namespaces.items():
            say(f"ADD container {name}: the runtime executes {node.cni_bin_dir}/userspace")
            results[name] = json.loads(node.cni("ADD", network, name, netns))
            print(json.dumps(results[name], indent=2))

        say("What is attached to what: userspace-cni show")
        print(node.command("userspace-cni", "show"), end="")

        database = [ip["address"].split("/")[0] for ip in results["database"]["ips"]]
        gateway = results["web"]["ips"][0]["gateway"]
        for target, address in (
            *(("database", address) for address in database),
            ("the gateway", gateway),
        ):
            say(f"ping from web to {target}, {address}")
            print(node.inside(namespaces["web"], "ping", "-c", "2", "-i", "0.2", address), end="")

        say("CHECK both")
        for name, netns in namespaces.items():
            node.cni("CHECK", network | {"prevResult": results[name]}, name, netns)
            print(f"{name}: as ADD left it")

        say("DEL both, one of them twice")
        for name in (*CONTAINERS, CONTAINERS[0]):
            node.cni("DEL", network, name, namespaces[name])
            print(f"{name}: detached")

        say("What is left")
        links = [
            link["ifname"]
            for link in json.loads(node.outside("ip", "-json", "link"))
            if link["ifname"] != "lo"
        ]
        left = [path.name for path in leases.glob("demo/*") if path.name[0].isdigit()]
        print(f"attachments: {node.command('userspace-cni', 'show').strip()}")
        print(f"network interfaces on the node: {', '.join(links) or 'none'}")
        print(f"address leases: {', '.join(left) or 'none'}")
        if links or left:
            raise SystemExit("something was left behind")


if __name__ == "__main__":
    main()
