"""Lab for tests of CNI clients: a node, the plugin, a network, and a search for leftovers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from lab import conf
from lab.libcni import Libcni
from lab.node import Node, poll
from lab.plugin import Plugin, attachments
from lab.spy import Spy

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


SUBNET = "10.77.0.0/24"
GATEWAY = conf.gateway(SUBNET)
NETWORK = "lab"


@attrs.frozen
class ClientLab:
    """A node with the plugin under test, without a client."""

    node: Node
    plugin: Plugin
    spy: Spy
    libcni_binary: Path

    @property
    def conf_dir(self) -> Path:
        """The directory in which clients find network configurations."""
        return self.node.dir / "net.d"

    @property
    def leases(self) -> list[str]:
        """The addresses that IPAM has allocated."""
        return conf.leases(self.node.dir / "leases")

    def network(
        self,
        *,
        name: str = NETWORK,
        version: str = "1.0.0",
        subnet: str = SUBNET,
        chained: Sequence[Mapping[str, Any]] = (),
        ipam: Mapping[str, Any] | None = None,
        capabilities: Mapping[str, bool] | None = None,
        default_route: bool = True,
        **keys: Any,
    ) -> None:
        """Configure a network; a second one needs its own name and subnet, and no default route."""
        network = conf.bridge_network(
            name,
            version,
            subnet,
            self.node.dir / "leases",
            chained=chained,
            ipam=ipam,
            capabilities=capabilities,
            default_route=default_route,
        )
        network["plugins"][0].update(keys)
        conf.write(network, self.conf_dir)

    def spy_ipam(self, **keys: Any) -> dict[str, Any]:
        """Return the spy's configuration as IPAM of the usual subnet."""
        return self.spy.ipam(SUBNET, self.node.dir / "leases", **keys)

    def libcni(self, binary: Path | None = None) -> Libcni:
        """Return the library client."""
        return Libcni(
            node=self.node,
            binary=binary or self.libcni_binary,
            cni_path=self.plugin.bin_dir,
            conf_dir=self.conf_dir,
            env=self.plugin.env,
        )

    def remains(self) -> dict[str, list[str]]:
        """Return what containers have left behind; all values are empty if there is nothing."""
        return {
            "leases": self.leases,
            "veth": self.node.veths(),
            "attachments": [str(attachment) for attachment in attachments(self.plugin)],
        }

    def assert_clean(self) -> None:
        """Fail if a container left something; wait, because clients may detach asynchronously."""
        poll(lambda: not any(self.remains().values()), f"nothing remains of {self.remains()}")
