"""The reference CNI library as a client: builds the program in libcni/ and runs it."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from lab import debian
from lab.node import Node

if TYPE_CHECKING:
    from collections.abc import Iterable


_SOURCE = Path(__file__).parent / "libcni" / "main.go"
_BUILD = Path(__file__).parents[2] / ".build"
# Only sid has a version of the library with GC and STATUS; it needs a newer Go than Debian 12 has.
_SUITES = ("trixie", "sid")
_GO = "1.24"
_PACKAGES = ("golang-github-appc-cni-dev", f"golang-{_GO}-go", f"golang-{_GO}-src")


def build() -> Path:
    """Return the client's executable, which is built at first use and kept in .build/."""
    _BUILD.mkdir(exist_ok=True)
    inputs = _SOURCE.read_bytes() + "\0".join((*_SUITES, *_PACKAGES)).encode()
    binary = _BUILD / f"libcni-{hashlib.sha256(inputs).hexdigest()[:12]}"
    with (_BUILD / "libcni.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # only one of several test processes builds
        if not binary.exists():
            _compile(binary)
    return binary


def _compile(binary: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="libcni-", dir=_BUILD) as name:
        root = Path(name)
        debian.unpack(_PACKAGES, _SUITES, root)
        goroot = root / "usr/lib" / f"go-{_GO}"
        built = root / "libcni"
        subprocess.run(
            [goroot / "bin/go", "build", "-trimpath", "-o", built, _SOURCE],
            check=True,
            env={
                "PATH": os.environ["PATH"],
                "CGO_ENABLED": "0",
                "GO111MODULE": "off",
                "GOCACHE": str(root / "cache"),
                "GOPATH": str(root / "usr/share/gocode"),
                "GOPROXY": "off",
                "GOROOT": str(goroot),
                "GOTOOLCHAIN": "local",
                "HOME": name,
            },
        )
        shutil.move(built, binary)


class CniError(Exception):
    """A plugin's error as the library reports it; code 0 if the plugin gave none."""

    def __init__(self, code: int, msg: str, details: str, text: str) -> None:
        """Keep the fields of the plugin's error, and the library's whole text."""
        super().__init__(f"{text} ({details})" if details else text)
        self.code = code
        self.msg = msg
        self.details = details
        self.text = text


@attrs.frozen
class Libcni:
    """Calls plugins through libcni in a lab node; methods raise CniError."""

    node: Node
    binary: Path
    cni_path: Path
    conf_dir: Path
    env: Mapping[str, str]
    cache_dir: str = "/var/lib/cni"

    def add(self, network: str, netns: str, **env: str) -> dict[str, Any]:
        """ADD; `env` holds CNI_CONTAINERID, CNI_IFNAME, CNI_ARGS, CAP_ARGS, CNI_TIMEOUT."""
        result: dict[str, Any] = json.loads(self._call("add", network, netns, env))
        return result

    def check(self, network: str, netns: str, **env: str) -> None:
        """CHECK."""
        self._call("check", network, netns, env)

    def delete(self, network: str, netns: str, **env: str) -> None:
        """DEL; netns is empty if the namespace is gone."""
        self._call("del", network, netns, env)

    def status(self, network: str) -> None:
        """STATUS."""
        self._call("status", network, "", {})

    def gc(self, network: str, valid: Iterable[tuple[str, str]] | None) -> None:
        """GC; with None the list of valid attachments is omitted, as cnitool does."""
        env = {}
        if valid is not None:
            listed = [{"containerID": cid, "ifname": ifname} for cid, ifname in valid]
            env["GC_VALID"] = json.dumps(listed)
        self._call("gc", network, "", env)

    def _call(self, command: str, network: str, netns: str, env: Mapping[str, str]) -> str:
        done = self.node.run(
            [str(self.binary), command, network, netns],
            env={
                **self.env,
                "CNI_PATH": str(self.cni_path),
                "NETCONFPATH": str(self.conf_dir),
                "CNI_CACHE_DIR": self.cache_dir,
                **env,
            },
            check=False,
        )
        if done.returncode == 0:
            return done.stdout
        try:
            error = json.loads(done.stdout)
        except ValueError:  # cnitool prints plain text
            raise CniError(0, "", "", done.stderr or done.stdout) from None
        raise CniError(error["code"], error["msg"], error["details"], error["text"])
