"""The executable under test, installed as an operator does it, and the calls a runtime makes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrs import field, frozen

from userspace_cni.install import install

if TYPE_CHECKING:
    from lab.node import Node

REFERENCE_PLUGINS = Path("/usr/lib/cni")

#: What the caller's own environment must not bring into a request.
_CNI_VARIABLES = ("CNI_", "USERSPACE_CNI_", "PYTHON")


@frozen(kw_only=True)
class Outcome:
    """How one call ended."""

    status: int
    out: str
    err: str

    @property
    def body(self) -> dict[str, Any]:
        """The one JSON object on standard output."""
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
        """The code of a call that must have failed, with an error object that is whole."""
        assert self.status != 0, (self.out, self.err)
        assert self.body.keys() - {"details"} == {"cniVersion", "code", "msg"}, self.body
        assert "Traceback" not in self.out
        return int(self.body["code"])

    @property
    def text(self) -> str:
        """Message and details of an error."""
        return f"{self.body['msg']} {self.body.get('details', '')}"

    def succeeded(self) -> None:
        """Assert success of a command that prints nothing."""
        assert (self.status, self.out) == (0, ""), (self.out, self.err)


@frozen(kw_only=True)
class Plugin:
    """An installed executable with settings, state and locks of its own."""

    bin_dir: Path
    state_dir: Path
    run_dir: Path
    #: For whoever executes the plugin.
    env: Mapping[str, str] = field(factory=dict)

    @property
    def executable(self) -> Path:
        return self.bin_dir / "userspace"

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
        """Execute the plugin, on *node* where one is given. *config* is JSON, or the raw bytes."""
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
        """Execute the plugin with exactly these CNI variables."""
        command = [str(self.executable)]
        done = subprocess.run(
            node.command(command) if node else command,
            input=config if isinstance(config, bytes) else json.dumps(config).encode(),
            env={**clean_environ(), **self.env, **variables},
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
    """Return our environment without what would reach into the plugin."""
    return {key: value for key, value in os.environ.items() if not key.startswith(_CNI_VARIABLES)}


def make(directory: Path) -> Plugin:
    """Install the plugin below *directory*, next to Debian's reference plugins."""
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


def attachments(plugin: Plugin) -> list[dict[str, Any]]:
    """Return what the people's command says is attached."""
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
    """Make *directory* immutable to root too, by a read-only mount over itself."""
    directory.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "--bind", directory, directory], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", directory], check=True)
        yield
    finally:
        subprocess.run(["umount", directory], check=True)
