"""``userspace-cni run``: run a command in its own network namespace, attached to networks.

It does what a container runtime does for a container: CNI SPEC 1.1.0, section 3, "Lifecycle &
Ordering" and "Attachment Operations".
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from attrs import define, field, frozen

from userspace_cni import netns
from userspace_cni.cni.errors import CniError, Code
from userspace_cni.cni.request import is_name
from userspace_cni.cni.versions import SUPPORTED, UNSTATED, at_least
from userspace_cni.config import settings

_SIGNALS = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM)
#: The exit status that a shell returns for a command that cannot be found, cannot be executed, or
#: was ended by signal N (plus N).
_NOT_FOUND, _NOT_EXECUTABLE, _SIGNALLED = 127, 126, 128


@frozen(kw_only=True)
class Network:
    """A network configuration list."""

    name: str
    cni_version: str
    plugins: tuple[Mapping[str, Any], ...]


@define(kw_only=True)
class _Attachment:
    """One interface of the command's namespace."""

    network: Network
    environ: Mapping[str, str]
    bin_dirs: tuple[str, ...]
    result: dict[str, Any] | None = field(default=None)

    def add(self) -> None:
        """Execute the plugins in order, each with the result of the previous one."""
        for plugin in self.network.plugins:
            self.result = self._execute("ADD", plugin)

    def delete(self) -> None:
        """Execute the plugins in reverse order; report failures and continue."""
        for plugin in reversed(self.network.plugins):
            try:
                self._execute("DEL", plugin)
            except CniError as error:
                sys.stderr.write(f"userspace-cni: {error}\n")

    def _execute(self, command: str, plugin: Mapping[str, Any]) -> dict[str, Any] | None:
        version = self.network.cni_version
        config = {**plugin, "cniVersion": version, "name": self.network.name}
        if self.result is not None and (command == "ADD" or at_least(version, "0.4.0")):
            config["prevResult"] = self.result
        what = f"{command} of network {self.network.name} by plugin {plugin['type']}"
        executable = shutil.which(plugin["type"], path=os.pathsep.join(self.bin_dirs))
        if executable is None:
            raise CniError(
                Code.INVALID_ENVIRONMENT,
                f"{what}: it is in none of {', '.join(self.bin_dirs)}",
                "install it there, or name its directory by --cni-bin-dir",
            )
        done = subprocess.run(  # noqa: S603  what the operator has put there
            [executable],
            input=json.dumps(config).encode(),
            stdout=subprocess.PIPE,
            env={**self.environ, "CNI_COMMAND": command},
            check=False,
        )
        try:
            answer = json.loads(done.stdout) if done.stdout.strip() else None
        except ValueError:
            raise CniError(
                Code.DECODING_FAILURE,
                f"{what}: it printed no JSON",
                "see what it says on standard error; is it a CNI plugin?",
            ) from None
        if done.returncode:
            told = answer if isinstance(answer, dict) else {}
            reason = " ".join(filter(None, (told.get("msg"), told.get("details"))))
            raise CniError(
                Code.INTERNAL, f"{what} failed: {reason or f'exit status {done.returncode}'}"
            )
        return answer if isinstance(answer, dict) else None


def run(
    command: Sequence[str],
    networks: Sequence[str],
    *,
    conf_dir: Path,
    bin_dirs: Sequence[str],
    container_id: str = "",
) -> int:
    """Run *command* attached to *networks* as eth0, eth1 and so on; return its exit status.

    The command gets the directories with its hand-over files in USERSPACE_CNI_DIRECTORY, and the
    path of its network namespace in USERSPACE_CNI_NETNS. Signals are passed on to it.

    Raises:
        CniError: a network does not exist or cannot be attached; nothing stays attached.

    """
    container_id = container_id or f"run-{secrets.token_hex(6)}"
    if not is_name(container_id):
        raise CniError(
            Code.INVALID_ENVIRONMENT,
            f"--name: {container_id!r} is no container id",
            "use letters, digits, '_', '.' and '-', and begin with a letter or a digit",
        )
    found = [find(name, conf_dir) for name in networks]
    with ExitStack() as stack:
        signals = stack.enter_context(_signals())
        namespace = stack.enter_context(netns.created())
        for number, network in enumerate(found):
            attachment = _Attachment(
                network=network,
                bin_dirs=tuple(bin_dirs),
                environ={
                    **os.environ,
                    "CNI_CONTAINERID": container_id,
                    "CNI_NETNS": namespace,
                    "CNI_IFNAME": f"eth{number}",
                    "CNI_PATH": os.pathsep.join(bin_dirs),
                },
            )
            # DEL also follows a failed ADD.
            stack.callback(attachment.delete)
            attachment.add()
        environ = {**os.environ, "USERSPACE_CNI_NETNS": namespace}
        if directories := _directories(found, container_id):
            environ["USERSPACE_CNI_DIRECTORY"] = os.pathsep.join(directories)
        stack.callback(signals.hold)
        return _wait(command, environ, namespace, signals)


def find(name: str, conf_dir: Path) -> Network:
    """Return the network *name* from the first file in *conf_dir* that configures it.

    Raises:
        CniError: no file does, or the configuration is invalid.

    """
    known = []
    for path in sorted(conf_dir.glob("*")):
        if path.suffix not in (".conflist", ".conf", ".json"):
            continue
        raw = _read(path)
        if raw.get("name") != name:
            known.append(str(raw.get("name")))
            continue
        plugins = raw.get("plugins") if path.suffix == ".conflist" else [raw]
        version = raw.get("cniVersion") or UNSTATED
        if not isinstance(plugins, list) or not plugins:
            raise _unusable(path, "plugins: expected a list of plugins")
        for plugin in plugins:
            kind = plugin.get("type") if isinstance(plugin, dict) else None
            if not isinstance(kind, str) or kind != os.path.basename(kind) or not kind:
                raise _unusable(path, f"type: expected the bare name of a plugin, got {kind!r}")
        if version not in SUPPORTED:
            raise _unusable(path, f"cniVersion: expected one of {', '.join(SUPPORTED)}")
        return Network(name=name, cni_version=version, plugins=tuple(plugins))
    raise CniError(
        Code.INVALID_NETWORK_CONFIG,
        f"there is no network {name!r} in {conf_dir}",
        f"networks there: {', '.join(known) or 'none'}; another directory by --cni-conf-dir",
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise _unusable(path, f"is not JSON: {error}") from None
    if not isinstance(raw, dict):
        raise _unusable(path, "expected a JSON object")
    return raw


def _unusable(path: Path, problem: str) -> CniError:
    return CniError(Code.INVALID_NETWORK_CONFIG, f"{path}: {problem}")


def _directories(networks: Sequence[Network], container_id: str) -> list[str]:
    """Return the directories in which our plugin has published hand-over files."""
    usual = settings.load().run_dir / "shared"
    found = {}
    for network in networks:
        for plugin in network.plugins:
            if plugin["type"] == "userspace":
                path = os.path.join(plugin.get("sharedDir") or usual, container_id)
                found[path] = os.path.isdir(path)
    return [path for path, exists in found.items() if exists]


def _wait(
    command: Sequence[str], environ: Mapping[str, str], namespace: str, signals: _Signals
) -> int:
    signals.defer()
    try:
        # A process starts in the network namespace of the thread that creates it.
        child = netns.call(namespace, subprocess.Popen[bytes], command, env=environ)
    except OSError as error:
        sys.stderr.write(f"userspace-cni: {command[0]}: {error.strerror}\n")
        return _NOT_FOUND if isinstance(error, FileNotFoundError) else _NOT_EXECUTABLE
    with child:
        signals.to(child.send_signal)
        status = child.wait()
    return status if status >= 0 else _SIGNALLED - status


class _Signals:
    """The action for a signal: end, pass it on, or finish first."""

    def __init__(self) -> None:
        self._target: Callable[[int], None] = self._end
        self._pending: list[int] = []

    @staticmethod
    def _end(number: int) -> None:
        raise SystemExit(_SIGNALLED + number)

    def defer(self) -> None:
        """Keep signals until :meth:`to` sets a target."""
        self._target = self._pending.append

    def to(self, target: Callable[[int], None]) -> None:
        """Pass signals on to *target*."""
        self._target = target
        for number in self._pending:
            target(number)

    def hold(self) -> None:
        """Ignore signals, because the clean-up is short and must be completed."""
        self._target = lambda _: None

    def handle(self, number: int, _: object) -> None:
        """Handle a signal."""
        target = self._target
        if target == self._end:
            self.hold()  # during the clean-up
        target(number)


@contextmanager
def _signals() -> Iterator[_Signals]:
    signals = _Signals()
    before = {number: signal.signal(number, signals.handle) for number in _SIGNALS}
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
