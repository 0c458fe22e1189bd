"""The plugin with the example engine, whose switch is a directory, and injected failures."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import sysconfig
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrs import evolve, frozen

from lab.conf import host_local, leases
from lab.direct import site_packages
from lab.node import poll
from lab.plugin import Outcome, Plugin
from lab.spy import Spy
from userspace_cni.cni.versions import SUPPORTED
from userspace_cni.store import Record, Store

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

SUBNET = "10.66.0.0/24"

#: An engine that fails if its switch has a file such as `fail-add` with an exception to raise.
TROUBLE = """
import time
from attrs import evolve
from example_engine import ExampleContainerEngine, ExampleHostEngine, Note

def trouble(engine, step):
    file = engine._switch() / f"fail-{step}"
    if file.exists():
        raise eval(file.read_text())

def hang(engine, step):
    while (engine._switch() / f"hang-{step}").exists():
        (engine._switch() / f"hanging-{step}").touch()
        time.sleep(0.01)

class Host(ExampleHostEngine):
    info = evolve(ExampleHostEngine.info, name="trouble")

    def add(self, attachment, conf, undo):
        port = super().add(attachment, conf, undo)
        undo.callback(trouble, self, "undo")
        trouble(self, "add")
        hang(self, "add")
        return port

    def close(self):
        trouble(self, "close")

    def delete(self, attachment_id, conf, netns):
        trouble(self, "delete")
        super().delete(attachment_id, conf, netns)

    def check(self, attachment, conf, port):
        trouble(self, "check")
        super().check(attachment, conf, port)

    def switch_key(self, conf):
        trouble(self, "key")
        return conf.section(Note).text.partition("-")[0]

    def generation(self, conf):
        if (self._switch() / "asked").exists():
            with (self._switch() / "asked").open("a") as file:
                print(self.switch_key(conf), file=file)
        trouble(self, "generation")
        hang(self, "generation")
        return super().generation(conf)

    def restore(self, attachment, conf, port, undo):
        with (self._switch() / "restores").open("a") as file:
            file.write(".")
        trouble(self, "restore")
        hang(self, "restore")
        return super().restore(attachment, conf, port, undo)

    def status(self, conf):
        trouble(self, "status")

    def attachments(self, network, conf):
        trouble(self, "attachments")
        return super().attachments(network, conf)

class Container(ExampleContainerEngine):
    info = Host.info

    def prepare(self, attachment, conf, port):
        if "trouble" in attachment.container_id:
            raise LookupError("no way to prepare")
        return super().prepare(attachment, conf, port)

    def add(self, handoff):
        if handoff.interface == "trouble0":
            raise SystemExit("the container's engine wants out")
"""


@frozen(kw_only=True)
class ExampleLab:
    """An installed plugin, its switch and a container's network namespace."""

    plugin: Plugin
    directory: Path
    #: An unused network namespace.
    netns: str
    engine: str = "example"

    @property
    def switch(self) -> Path:
        return self.directory / "switch"

    @property
    def spy(self) -> Spy:
        return Spy(self.directory / "spy.log")

    # -- configurations

    def conf(self, version: str = "1.1.0", **keys: Any) -> dict[str, Any]:
        """Return a network without IPAM, changed by *keys*."""
        return {
            "cniVersion": version,
            "name": "net",
            "type": "userspace",
            "host": {"engine": self.engine, "iftype": "note"},
            **keys,
        }

    def host_local(self, subnet: str = SUBNET) -> dict[str, Any]:
        """Return the configuration of Debian's host-local, which supports versions up to 1.0.0."""
        return host_local(subnet, self.directory / "leases")

    def spy_ipam(self, **keys: Any) -> dict[str, Any]:
        """Return the configuration of the spy as IPAM plugin."""
        return self.spy.ipam(SUBNET, self.directory / "leases", **keys)

    def script(
        self, body: str, name: str = "ipam-script", versions: Sequence[str] = SUPPORTED
    ) -> dict[str, Any]:
        """Install a shell script as IPAM plugin and return its configuration.

        It supports *versions*; *body* answers every command except VERSION.
        """
        path = self.plugin.bin_dir / name
        path.unlink(missing_ok=True)
        answer = shell(json.dumps({"cniVersion": versions[-1], "supportedVersions": versions}))
        known = f"[ $CNI_COMMAND != VERSION ] || {{ echo {answer}; exit; }}"
        path.write_text(f"#!/bin/sh\n{known}\n{body}\n")
        path.chmod(0o755)
        return {"type": name}

    # -- calls

    def call(self, command: str, config: object, **keys: Any) -> Outcome:
        """Call the plugin for container c1, unless *keys* say otherwise."""
        return self.plugin.call(command, config, **{"netns": self.netns, **keys})

    def add(self, config: object, **keys: Any) -> dict[str, Any]:
        """Execute an ADD that must succeed; return the result."""
        return self.call("ADD", config, **keys).result

    @contextmanager
    def started(self, command: str, config: bytes, **variables: str) -> Iterator[Any]:
        """Execute the plugin without waiting for its end."""
        process = subprocess.Popen(
            [self.plugin.executable],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={
                **self.plugin.env,
                "CNI_COMMAND": command,
                "CNI_CONTAINERID": "c1",
                "CNI_NETNS": self.netns,
                "CNI_IFNAME": "eth0",
                "CNI_PATH": str(self.plugin.bin_dir),
                "PATH": os.environ["PATH"],
                **variables,
            },
        )
        with process:
            assert process.stdin is not None
            process.stdin.write(config)
            process.stdin.close()
            try:
                yield process
            finally:
                process.kill()

    # -- the switch

    def switch_down(self) -> None:
        self.switch.rename(self.directory / "switch-that-is-down")

    def switch_up(self) -> None:
        (self.directory / "switch-that-is-down").rename(self.switch)

    def fail(self, step: str, exception: str = "ZeroDivisionError('by design')") -> None:
        """Make the engine "trouble" raise *exception* at *step*."""
        (self.switch / f"fail-{step}").write_text(exception)

    def mend(self) -> None:
        """Remove all injected failures."""
        for file in self.switch.glob("fail-*"):
            file.unlink()

    # -- state

    def ports(self) -> list[str]:
        """Return the ids of the attachments that the switch has."""
        return sorted(path.suffix[1:] for path in self.switch.glob("*.*"))

    def leases(self) -> list[str]:
        return leases(self.directory / "leases")

    def records(self) -> list[Record]:
        if not (self.plugin.state_dir / "attachments.db").exists():
            return []
        with closing(Store(self.plugin.state_dir, 10)) as store:
            return store.all()

    def states(self) -> dict[str, str]:
        """Return the recorded states by container id."""
        return {record.container_id: record.state for record in self.records()}

    def locks(self) -> list[Path]:
        return list((self.plugin.run_dir / "locks").glob("*"))

    def assert_clean(self) -> None:
        """Fail if anything is left of any container."""
        # The daemon may hold a lock for a moment.
        poll(lambda: not self.locks(), "no lock is held")
        found = (self.ports(), self.leases(), self.records(), self.locks())
        assert found == ([], [], [], [])


def make(plugin: Plugin, directory: Path, netns: str) -> ExampleLab:
    """Give *plugin* a running example switch in *directory*, and the spy."""
    lab = ExampleLab(plugin=plugin, directory=directory, netns=netns)
    lab.switch.mkdir()
    Spy.install(plugin.bin_dir, lab.spy.log)
    plugin.settings(
        f'[engines.example]\ndirectory = "{lab.switch}"\n'
        f'[engines.trouble]\ndirectory = "{lab.switch}"\n'
    )
    return lab


def with_trouble(lab: ExampleLab, interpreter: Path) -> ExampleLab:
    """Return *lab* with the engine "trouble" of *interpreter*."""
    lab.plugin.interpreted_by(interpreter)
    return evolve(lab, engine="trouble")


def make_venv(
    directory: Path,
    modules: Mapping[str, str],
    entry_points: Mapping[str, str],
    packages: Mapping[str, Mapping[str, str]] | None = None,
) -> Path:
    """Create a virtualenv with our packages and one more distribution; return its interpreter.

    Args:
        directory: the virtualenv's directory.
        modules: source text of modules by name.
        entry_points: lines of entry_points.txt by group.
        packages: further packages, see :func:`add_packages`.

    """
    subprocess.run(
        [sys.executable, "-m", "venv", "--without-pip", "--symlinks", directory], check=True
    )
    ours = sysconfig.get_path("purelib")
    interpreter = directory / "bin" / "python"
    extra = {
        "METADATA": "Metadata-Version: 2.1\nName: lab-extra\nVersion: 1.0\n",
        "entry_points.txt": "".join(f"[{group}]\n{rows}\n" for group, rows in entry_points.items()),
    }
    add_packages(interpreter, modules, {"lab_extra-1.0.dist-info": extra, **(packages or {})})
    path = f"import site; site.addsitedir({ours!r})\n"
    (site_packages(interpreter) / "ours.pth").write_text(path)
    return interpreter


def add_packages(
    interpreter: Path, modules: Mapping[str, str], packages: Mapping[str, Mapping[str, str]]
) -> None:
    """Install *modules*, and *packages*: files by the name of their metadata's directory."""
    theirs = site_packages(interpreter)
    for name, text in modules.items():
        (theirs / f"{name}.py").write_text(text)
    for package, files in packages.items():
        (theirs / package).mkdir()
        for name, text in files.items():
            (theirs / package / name).write_text(text)


def shell(*words: object) -> str:
    """Return *words* as a command line for sh."""
    return shlex.join(map(str, words))
