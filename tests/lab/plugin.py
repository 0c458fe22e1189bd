"""The plugin under test, installed as by an operator and called as by a runtime."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, Literal

from attrs import evolve, field, frozen

from lab.daemon import Daemon
from lab.direct import Direct
from userspace_cni.config.settings import DaemonSettings, Settings
from userspace_cni.handover import mounts
from userspace_cni.install import NAME, executables, find_shim, install

if TYPE_CHECKING:
    from lab.node import Node

#: Where requests are served: in this process, in a process per request, or in the daemon.
Mode = Literal["direct", "process", "daemon"]

REFERENCE_PLUGINS = Path("/usr/lib/cni")

#: Prefixes of environment variables that must not be passed on to a request.
_CNI_VARIABLES = ("CNI_", "USERSPACE_CNI_", "PYTHON")


_NEEDS_A_PROCESS = "this test needs a process for its requests: give it the marker own_process"

#: Tests make calls from several threads.
_settling = Lock()


@frozen(kw_only=True)
class Outcome:
    """The outcome of a call."""

    status: int
    out: str
    err: str

    @property
    def body(self) -> dict[str, Any]:
        """The JSON object on standard output, which must contain nothing else."""
        parsed = json.loads(self.out)
        assert isinstance(parsed, dict), self.out
        return parsed

    @property
    def result(self) -> dict[str, Any]:
        """The result of a call that must have succeeded."""
        assert self.status == 0, (self.out, self.err)
        return self.body

    @property
    def code(self) -> int:
        """The error code of a call that must have failed with a complete error object."""
        assert self.status != 0, (self.out, self.err)
        assert self.body.keys() - {"details"} == {"cniVersion", "code", "msg"}, self.body
        assert "Traceback" not in self.out
        return int(self.body["code"])

    @property
    def text(self) -> str:
        """The message and details of the error."""
        return f"{self.body['msg']} {self.body.get('details', '')}"

    def succeeded(self) -> None:
        """Assert that the call succeeded and printed nothing."""
        assert (self.status, self.out) == (0, ""), (self.out, self.err)


@frozen(kw_only=True)
class Plugin:
    """An installed executable with private settings, state and locks."""

    bin_dir: Path
    state_dir: Path
    run_dir: Path
    #: Environment variables for executing the plugin.
    env: Mapping[str, str] = field(factory=dict)
    #: Set in mode "direct".
    direct: Direct | None = None
    #: Set in mode "daemon"; the daemon is started when it is needed.
    daemon: Daemon | None = None

    @property
    def executable(self) -> Path:
        """The executable's path; in mode "daemon" the daemon is running when it is returned."""
        assert self.direct is None, _NEEDS_A_PROCESS
        self.serve(self.daemon.node if self.daemon else None)
        return self.bin_dir / NAME

    def serve(self, node: Node | None) -> None:
        """Serve requests on *node*, or on the machine if it is None."""
        if self.daemon is not None:
            settings = Path(self.env["USERSPACE_CNI_CONFIG"])
            with _settling:
                if "[daemon]" not in settings.read_text():
                    # By default the daemon must not restore or remove anything during a test.
                    own = f'socket = "{self.daemon.socket}"\nwatch_interval = 3600\n'
                    self.settings(f"[daemon]\n{own}")
            self.daemon.ensure(node)

    def interpreted_by(self, interpreter: Path) -> None:
        """Run the plugin with another *interpreter*."""
        if self.direct is not None:
            self.direct.use(interpreter)
        elif self.daemon is None:
            install(self.bin_dir, executables(self.bin_dir, str(interpreter)))
        else:
            self.daemon.interpreter = str(interpreter)

    def call(
        self,
        command: str,
        config: object,
        *,
        container: str = "c1",
        netns: str = "",
        ifname: str = "eth0",
        args: str = "",
        environ: Mapping[str, str] | None = None,
        node: Node | None = None,
        timeout: float = 60,
    ) -> Outcome:
        """Call the plugin, on *node* if given; *config* is an object or raw bytes."""
        variables = {
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": container,
            "CNI_NETNS": netns,
            "CNI_IFNAME": ifname,
            "CNI_ARGS": args,
            "CNI_PATH": str(self.bin_dir),
        }
        return self.execute(config, variables | dict(environ or {}), node=node, timeout=timeout)

    def execute(
        self,
        config: object,
        variables: Mapping[str, str],
        *,
        node: Node | None = None,
        timeout: float = 60,
    ) -> Outcome:
        """Call the plugin with exactly these CNI variables."""
        stdin = config if isinstance(config, bytes) else json.dumps(config).encode()
        environ = {**clean_environ(), **self.env, **variables}
        if self.direct is not None:
            assert node is None, _NEEDS_A_PROCESS
            answer, err = self.direct.serve(environ, stdin)
            return Outcome(status=answer.status, out=answer.out, err=err)
        self.serve(node)
        command = [str(self.bin_dir / NAME)]
        done = subprocess.run(
            node.command(command) if node else command,
            input=stdin,
            env=environ,
            capture_output=True,
            check=False,
            timeout=timeout,
        )
        return Outcome(status=done.returncode, out=done.stdout.decode(), err=done.stderr.decode())

    def settings(self, text: str) -> None:
        """Append *text* to the node's settings file."""
        with Path(self.env["USERSPACE_CNI_CONFIG"]).open("a") as file:
            file.write(text)


def clean_environ() -> dict[str, str]:
    """Return the environment without variables that would affect the plugin."""
    return {key: value for key, value in os.environ.items() if not key.startswith(_CNI_VARIABLES)}


def make(directory: Path) -> Plugin:
    """Install the plugin below *directory*, beside Debian's reference plugins."""
    bin_dir = directory / "bin"
    bin_dir.mkdir()
    install(bin_dir)
    for reference in REFERENCE_PLUGINS.iterdir():
        (bin_dir / reference.name).symlink_to(reference)
    settings = directory / "config.toml"
    plugin = Plugin(
        bin_dir=bin_dir,
        state_dir=directory / "state",
        run_dir=directory / "run",
        env={"USERSPACE_CNI_CONFIG": str(settings)},
    )
    settings.write_text(f'state_dir = "{plugin.state_dir}"\nrun_dir = "{plugin.run_dir}"\n')
    return plugin


@contextmanager
def installed(directory: Path, mode: Mode) -> Iterator[Plugin]:
    """Install the plugin below *directory* as :func:`make` does, to be served in *mode*."""
    plugin = make(directory)
    if mode != "daemon":
        direct = Direct() if mode == "direct" else None
        try:
            yield evolve(plugin, direct=direct)
        finally:
            if direct is not None:
                direct.close()
            remove_views(plugin.run_dir)
        return
    # A test's directory may have too long a path for a socket.
    with tempfile.TemporaryDirectory(prefix="ucni-") as short:
        daemon = Daemon(
            env=plugin.env, socket=Path(short, "daemon.sock"), log=directory / "daemon.log"
        )
        settings = Settings(state_dir=plugin.state_dir, daemon=DaemonSettings(socket=daemon.socket))
        program = find_shim()
        assert program is not None
        install(
            plugin.bin_dir,
            executables(plugin.bin_dir, program=program, settings=settings, fallback=False),
        )
        try:
            yield evolve(plugin, daemon=daemon)
        finally:
            daemon.stop()
            remove_views(plugin.run_dir)


def remove_views(run_dir: Path) -> None:
    """Unmount what attachments that were never removed have left on the machine."""
    for view in (run_dir / "s").glob("*"):
        mounts.remove(str(view))


def attachments(plugin: Plugin) -> list[dict[str, Any]]:
    """Return the attachments listed by ``userspace-cni show``."""
    done = subprocess.run(
        [Path(sys.executable).with_name("userspace-cni"), "show", "--json"],
        env={**clean_environ(), **plugin.env},
        capture_output=True,
        check=True,
    )
    listed = json.loads(done.stdout)
    assert isinstance(listed, list)
    return listed


@contextmanager
def read_only(directory: Path) -> Iterator[None]:
    """Make *directory* read-only, even for root, by a read-only mount over itself."""
    directory.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "--bind", directory, directory], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", directory], check=True)
        yield
    finally:
        subprocess.run(["umount", directory], check=True)
