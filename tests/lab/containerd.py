"""A private containerd in a lab node, for its CRI service and for `ctr`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Self

from lab.cri import Cri
from lab.images import BUSYBOX, PAUSE
from lab.node import poll, tool

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Mapping, Sequence
    from pathlib import Path
    from types import TracebackType

    from google.protobuf.descriptor import ServiceDescriptor

    from lab.images import Images
    from lab.node import Node

ADDRESS = "/run/lab-containerd.sock"


class Containerd:
    """A containerd that runs while the context lasts. Plugins inherit its environment."""

    def __init__(self, node: Node, bin_dir: Path, conf_dir: Path, env: Mapping[str, str]) -> None:
        """Use the plugins in `bin_dir` and the configurations in `conf_dir`."""
        self._node = node
        self._bin_dir = bin_dir
        self._conf_dir = conf_dir
        self._env = dict(env)
        self._process: subprocess.Popen[bytes] | None = None
        self.log = node.dir / "containerd.log"
        self._root = node.dir / "containerd"

    def _config(self) -> str:
        text = json.dumps  # JSON strings are TOML strings
        cri = 'plugins."io.containerd.grpc.v1.cri"'
        return f"""\
version = 2
root = {text(str(self._root / "root"))}
state = {text(str(self._root / "state"))}
[grpc]
address = {text(ADDRESS)}
[ttrpc]
address = {text(ADDRESS + ".ttrpc")}
[plugins."io.containerd.internal.v1.opt"]
path = {text(str(self._root / "opt"))}
[{cri}]
sandbox_image = {text(PAUSE)}
# without CAP_SYS_RESOURCE a process cannot lower its oom score, and no sandbox would start
restrict_oom_score_adj = true
disable_apparmor = true
stream_server_address = "127.0.0.1"
stream_server_port = "0"
# a long path, as other runtimes have them
netns_mounts_under_state_dir = true
[{cri}.cni]
bin_dir = {text(str(self._bin_dir))}
conf_dir = {text(str(self._conf_dir))}
"""

    def __enter__(self) -> Self:
        """Start containerd and wait until it answers."""
        daemon = tool("containerd", "containerd")
        tool("runc", "runc")
        self._root.mkdir()
        config = self._root / "config.toml"
        config.write_text(self._config())
        self._process = self._node.popen([daemon, "-c", str(config)], log=self.log, env=self._env)
        try:
            poll(self._answers, "containerd's first answer")
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def _answers(self) -> bool:
        if self._process is None or self._process.poll() is not None:
            message = f"containerd ended:\n{self.log.read_text()}"
            raise RuntimeError(message)
        return self._node.run(["ctr", "-a", ADDRESS, "version"], check=False).returncode == 0

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop containerd; its shims and containers end with the node."""
        if self._process is not None:
            self._node.stop(self._process)
            self._process = None

    def load(self, images: Images) -> None:
        """Import the images for the CRI and for ctr."""
        for namespace in ("k8s.io", "default"):
            for image in (images.busybox, images.pause):
                self.ctr("-n", namespace, "images", "import", str(image))

    def cri(self, service: ServiceDescriptor) -> Cri:
        """Return a CRI client."""
        return Cri(self._node.path(ADDRESS), service, self._node.cgroup)

    def ctr(self, *argv: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run ctr with our directories mounted over those from which it executes plugins."""
        script = (
            f"mount --bind '{self._bin_dir}' /opt/cni/bin && "
            f"mount --bind '{self._conf_dir}' /etc/cni/net.d && exec \"$@\""
        )
        return self._node.run(
            ["unshare", "--mount", "--propagation", "slave", "sh", "-c", script, "sh",
             "ctr", "-a", ADDRESS, *argv],
            env=self._env,
            check=check,
        )  # fmt: skip

    def ctr_run(
        self, name: str, command: Sequence[str], *options: str, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run a busybox container on the first network of the configuration directory."""
        cgroup = f"{self._node.cgroup}/{name}"
        return self.ctr(
            "run", "--cni", "--cgroup", cgroup, *options, BUSYBOX, name, *command, check=check
        )

    def tasks(self) -> list[str]:
        """Return the names of ctr's containers that have a task."""
        lines = self.ctr("task", "ls").stdout.splitlines()[1:]
        return [line.split()[0] for line in lines]
