"""Debian's IPAM plugins and ours, called with the same requests."""

from __future__ import annotations

import json
import os
import re
import stat
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs

from userspace_cni.cni import result
from userspace_cni.cni.errors import CniError
from userspace_cni.cni.result import Result
from userspace_cni.ipam import Chooser, Executable
from userspace_cni.ipam.in_process import InProcess

BIN = Path("/usr/lib/cni")
TYPE = "host-local"
NETWORK = "twins"

#: Messages of both implementations by their meaning.
_MEANINGS = {
    "exhausted": r"no IP addresses available in|no address is left in",
    "duplicate": r"duplicate allocation|already has the address",
    "taken": r"is not available in range set|the requested address .* is taken",
    "gateway": r"is subnet's gateway|is the subnet's gateway",
    "not given": r"failed to allocate all requested|cannot allocate the requested addresses",
    "not found": r"Failed to find address|has no address for",
}


def meaning(message: str) -> str:
    """Return the meaning of an error message; "configuration" for all configuration errors."""
    found = (name for name, words in _MEANINGS.items() if re.search(words, message))
    return next(found, "configuration")


#: The newest version that both support.
VERSION = "1.0.0"


@attrs.frozen
class Call:
    """A call of either implementation."""

    command: str
    container: str = "c1"
    ifname: str = "eth0"
    #: CNI_ARGS.
    args: str = ""
    #: Further keys of the network's configuration.
    keys: Mapping[str, Any] = attrs.field(factory=dict)

    def environ(self) -> dict[str, str]:
        """Return the environment that the runtime passes."""
        return {
            "CNI_COMMAND": self.command,
            "CNI_CONTAINERID": self.container,
            "CNI_IFNAME": self.ifname,
            "CNI_NETNS": "/run/netns/none",
            "CNI_PATH": str(BIN),
            "CNI_ARGS": self.args,
        }


def network(ipam: Mapping[str, Any], data_dir: Path, version: str = VERSION) -> dict[str, Any]:
    """Return the configuration of a network with the section *ipam*."""
    section = {"type": TYPE, "dataDir": str(data_dir), **ipam}
    return {"cniVersion": version, "name": NETWORK, "type": "userspace", "ipam": section}


def by_executable(conf: dict[str, Any], call: Call) -> Result | str | None:
    """Call Debian's host-local; return its result, or the meaning of its error."""
    done = subprocess.run(
        [BIN / conf["ipam"]["type"]],
        input=json.dumps({**conf, **call.keys}).encode(),
        env=call.environ(),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        check=False,
        close_fds=False,
    )
    if done.returncode:
        return meaning(json.loads(done.stdout)["msg"])
    if not done.stdout:
        return None
    answer = json.loads(done.stdout)
    found = result.load(answer, answer["cniVersion"])
    # The runtime refuses a result without an address.
    return found if found.ips else "configuration"


def by_engine(chooser: Chooser, conf: dict[str, Any], call: Call) -> Result | str | None:
    """Call our engine; return its result, or the meaning of its error."""
    try:
        return _by_engine(chooser, conf, call)
    except CniError as error:
        return meaning(error.msg)


def _by_engine(chooser: Chooser, conf: dict[str, Any], call: Call) -> Result | None:
    ipam = engine(chooser, conf, call)
    assert ipam is not None
    match call.command:
        case "ADD":
            version = conf["cniVersion"]
            # Drop what an older version cannot express, as the executable has done.
            return result.load(result.dump(ipam.allocate(), version), version)
        case "DEL":
            ipam.delete()
        case "CHECK":
            ipam.check()
    return None


def engine(chooser: Chooser, conf: dict[str, Any], call: Call) -> InProcess | None:
    """Return our engine for the network *conf*; None if it is left to the executable."""
    chosen = chooser.choose(
        Executable(
            type=conf["ipam"]["type"],
            config={**conf, **call.keys},
            cni_version=conf["cniVersion"],
            path=(str(BIN),),
            environ=call.environ(),
            timeout=30,
        )
    )
    return chosen if isinstance(chosen, InProcess) else None


def contents(directory: Path) -> dict[str, bytes | str]:
    """Return the entries below *directory*: contents of files, kinds of other entries."""
    found: dict[str, bytes | str] = {}
    for root, directories, files in os.walk(directory):
        for name in (*directories, *files):
            path = Path(root, name)
            mode = path.lstat().st_mode
            key = str(path.relative_to(directory))
            found[key] = path.read_bytes() if stat.S_ISREG(mode) else stat.filemode(mode)[0]
    return found
