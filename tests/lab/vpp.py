"""A private VPP without hugepages and DPDK, which writes only to its own directory.

The program is found in PATH or below the directory VPP_PREFIX.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Self

from userspace_cni_vpp.connection import Connection

if TYPE_CHECKING:
    from lab.netns import Namespace

_PLUGINS = ("af_packet", "arping", "memif", "ping", "tap", "vhost")
_CONF = """
unix {{ nodaemon nosyslog log {dir}/log cli-listen {dir}/cli.sock runtime-dir {dir}
 poll-sleep-usec 100 pidfile {dir}/pid }}
socksvr {{ socket-name {dir}/api.sock }}
statseg {{ socket-name {dir}/stats.sock size 16M page-size 4k }}
memory {{ main-heap-size 192M main-heap-page-size 4k }}
buffers {{ buffers-per-numa {buffers} page-size 4k }}
plugins {{ path {plugin_path} plugin default {{ disable }} {plugins} }}
"""


def program() -> str | None:
    """Return the path of the program ``vpp``, or None if it is not installed."""
    prefix = os.environ.get("VPP_PREFIX")
    if prefix:
        return f"{prefix}/bin/vpp"
    return shutil.which("vpp")


def api_dir() -> str:
    """Return the directory of the installed VPP's API files."""
    return str(Path(program() or "/usr/bin/vpp").parents[1] / "share/vpp/api")


class RealVpp:
    """A VPP in a network namespace; a context manager."""

    def __init__(
        self,
        directory: Path,
        netns: Namespace | None = None,
        *,
        without: tuple[str, ...] = (),
        buffers: int = 8192,
    ) -> None:
        """Prepare a VPP in *directory*, whose path must be short, without the given plugins."""
        found = program()
        assert found is not None, "there is no vpp"
        self._program = Path(found)
        self._netns = netns
        self.dir = directory
        self.path = directory / "api.sock"
        library = next((self._program.parents[1] / "lib").glob("**/vpp_plugins"))
        self._env = {**os.environ, "LD_LIBRARY_PATH": str(library.parent)}
        directory.mkdir(exist_ok=True, parents=True)
        enabled = (f"plugin {p}_plugin.so {{ enable }}" for p in _PLUGINS if p not in without)
        (directory / "conf").write_text(
            _CONF.format(
                dir=directory, plugin_path=library, plugins=" ".join(enabled), buffers=buffers
            )
        )
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def start(self) -> None:
        """Start VPP and wait until it answers."""
        self.path.unlink(missing_ok=True)
        enter = ["nsenter", f"--net={self._netns.path}"] if self._netns else []
        command = enter
        with (self.dir / "out").open("ab") as out:
            self._process = subprocess.Popen(
                [*command, str(self._program), "-c", str(self.dir / "conf")],
                env=self._env,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        deadline = time.monotonic() + 20
        while True:
            assert self._process.poll() is None, (self.dir / "out").read_text()
            try:
                Connection(str(self.path), 5, api_dir()).close()
            except Exception:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.02)
            else:
                return

    def kill(self) -> None:
        """Kill VPP: its state is lost, its files stay."""
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
            self._process = None

    def restart(self) -> None:
        """Kill VPP and start it again."""
        self.kill()
        self.start()

    def hang(self) -> None:
        """Stop answering until :meth:`resume`."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def ctl(self, *words: str) -> str:
        """Run a command of VPP's CLI and return its output."""
        vppctl = self._program.with_name("vppctl")
        return subprocess.run(
            [vppctl, "-s", self.dir / "cli.sock", *words],
            env=self._env,
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        ).stdout

    def ping(self, address: str, *options: str, tries: int = 6) -> bool:
        """Return whether *address* answers; retry, as address resolution drops first packets."""
        for _ in range(tries):
            shown = self.ctl("ping", address, "repeat", "3", "interval", "0.1", *options)
            if "bytes from" in shown:
                return True
        return False
