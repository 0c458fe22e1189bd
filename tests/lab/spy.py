"""A CNI plugin for tests, used in a chain or as IPAM, that records its calls.

Its configuration keys are `log` (a file with one JSON object per call), `fail` (commands that fail
after recording), `sleep` (seconds by command) and, as IPAM, `store` (a directory with one file per
lease) and `subnet`. Unlike Debian's IPAM plugins it supports CNI 1.1.0, STATUS and GC.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import attrs

TYPE = "lab-spy"

_PROGRAM = r"""
import fcntl, ipaddress, json, os, sys, time

VERSIONS = ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"]
command = os.environ["CNI_COMMAND"]
conf = json.load(sys.stdin)

def answer(**values):
    json.dump({"cniVersion": conf.get("cniVersion", "0.1.0"), **values}, sys.stdout)

def fail(code, msg):
    answer(code=code, msg=msg, details="as configured")
    sys.exit(1)

if command == "VERSION":
    answer(supportedVersions=VERSIONS)
    sys.exit()

ipam = conf.get("ipam", {})
is_ipam = ipam.get("type") == "lab-spy"
mine = ipam if is_ipam else conf
record = {"command": command, "ipam": is_ipam, "conf": conf,
          "env": {k: v for k, v in os.environ.items() if k.startswith("CNI_")}}
with open(mine["log"], "a") as log:
    fcntl.flock(log, fcntl.LOCK_EX)
    log.write(json.dumps(record) + "\n")
time.sleep(mine.get("sleep", {}).get(command, 0))
if command in mine.get("fail", []):
    fail(50 if command == "STATUS" else 111, "the spy says no")
if is_ipam:
    store, net = ipam["store"], ipaddress.ip_network(ipam["subnet"])
    os.makedirs(store, exist_ok=True)
    key = os.environ.get("CNI_CONTAINERID", "") + "," + os.environ.get("CNI_IFNAME", "")
    if command == "ADD":
        for host in list(net.hosts())[1:]:
            try:
                fd = os.open(f"{store}/{host}", os.O_CREAT | os.O_EXCL | os.O_WRONLY)
            except FileExistsError:
                continue
            os.write(fd, key.encode())
            break
        else:
            fail(112, "no address left")
        answer(ips=[{"address": f"{host}/{net.prefixlen}", "gateway": str(net[1])}])
    for name in os.listdir(store):
        owner = open(f"{store}/{name}").read()
        valid = {f'{a["containerID"]},{a["ifname"]}'
                 for a in conf.get("cni.dev/valid-attachments") or []}
        if (command == "DEL" and owner == key) or (command == "GC" and owner not in valid):
            os.unlink(f"{store}/{name}")
    owners = [open(f"{store}/{name}").read() for name in os.listdir(store)]
    if command == "CHECK" and key not in owners:
        fail(113, "no lease")
elif command == "ADD":
    json.dump(conf["prevResult"], sys.stdout)
"""


@attrs.frozen
class Call:
    """A recorded call."""

    command: str
    ipam: bool
    env: dict[str, str]
    conf: dict[str, Any]

    @property
    def netns(self) -> str:
        """CNI_NETNS; empty if the namespace is gone."""
        return self.env.get("CNI_NETNS", "")


@attrs.frozen
class Spy:
    """The installed plugin and its log."""

    log: Path

    @classmethod
    def install(cls, bin_dir: Path, log: Path) -> Spy:
        """Write the executable."""
        program = bin_dir / TYPE
        program.write_text(f"#!{sys.executable} -IS\n{_PROGRAM}")
        program.chmod(0o755)
        return cls(log)

    def chained(self, **keys: Any) -> dict[str, Any]:
        """Return the configuration of the spy in a chain."""
        return {"type": TYPE, "log": str(self.log), **keys}

    def ipam(self, subnet: str, store: Path, **keys: Any) -> dict[str, Any]:
        """Return the configuration of the spy as IPAM plugin."""
        return {"subnet": subnet, "store": str(store), **self.chained(**keys)}

    def calls(self, command: str = "") -> list[Call]:
        """Return all recorded calls, or those of one command."""
        if not self.log.exists():
            return []
        found = [Call(**json.loads(line)) for line in self.log.read_text().splitlines()]
        return [call for call in found if command in ("", call.command)]
