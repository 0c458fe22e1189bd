"""Attach two containers that run VPP to the VPP of the host by memif, and ping between them.

Needs VPP: `vpp` in PATH, or VPP_PREFIX. All three VPPs are private to the demo and use neither
hugepages nor DPDK.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

# The lab of the tests starts private VPPs.
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from lab import vpp_lab
from lab.vpp import program
from lab.vpp_lab import conf
from userspace_cni_vpp.sections import BridgeSection, MemifSection


def main() -> int:
    """Attach, ping, detach, and show that nothing is left."""
    if program() is None:
        print("There is no vpp: install VPP, or set VPP_PREFIX to where it is.", file=sys.stderr)
        return 1
    for lab in vpp_lab.make("real"):
        print(lab.vpp.ctl("show", "version").strip())
        for socket in ("path", "abstract"):
            print(f"\nmemif over {socket} sockets, bridge domain 4", flush=True)
            host = conf(
                "memif",
                "bridge",
                bridge=BridgeSection(bridge_id=4),
                memif=MemifSection(socket=socket),
            )
            attached = [lab.attach(host, f"192.168.210.{n}/24") for n in (2, 3)]
            guests = [each.guest() for each in attached]
            print(lab.vpp.ctl("show", "bridge-domain", "4", "int"))
            print(json.dumps(lab.tags(), indent=1))
            if not guests[0].vpp.ping("192.168.210.3"):
                print("no answer", file=sys.stderr)
                return 1
            print(guests[0].vpp.ctl("ping", "192.168.210.3", "repeat", "3", "interval", "0.2"))
            for each in attached:
                each.check()
                each.delete()
            lab.assert_clean()
            print("detached: nothing is left")
    return 0


if __name__ == "__main__":
    sys.exit(main())
