"""The node's settings, ``/etc/userspace-cni/config.toml``: one file for all networks of a node."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from attrs import Attribute, evolve, field, frozen

from userspace_cni.api.sections import SECONDS_MAX, seconds, within
from userspace_cni.cni.errors import CniError, Code

#: The environment variable that names another file.
VARIABLE = "USERSPACE_CNI_CONFIG"
DEFAULT_PATH = Path("/etc/userspace-cni/config.toml")
LogLevel = Literal["debug", "info", "warning", "error"]
LOG_LEVELS: tuple[str, ...] = get_args(LogLevel)

_T = TypeVar("_T")

_WORKERS_MAX = 1024
#: An IPv6 address is in brackets.
_ENDPOINT = re.compile(r"(\[[0-9a-fA-F:.]+\]|[^:\[\]\s]+):([0-9]{1,5})")


def _seconds_or_never(_: Any, __: Attribute[Any], value: float) -> None:
    if not 0 <= value <= SECONDS_MAX:
        raise ValueError(f"expected a number of seconds from 0 to {SECONDS_MAX}, got {value:g}")


def _endpoint(_: Any, __: Attribute[Any], value: str) -> None:
    if value and not _ENDPOINT.fullmatch(value):
        raise ValueError(f"expected ADDRESS:PORT, such as 127.0.0.1:9455, got {value!r}")


def _tables(_: Any, __: Attribute[Any], value: Mapping[str, Any]) -> None:
    for name, table in value.items():
        if not isinstance(table, dict):
            raise ValueError(f"expected tables [engines.NAME], got {table!r} for {name}")


@frozen(kw_only=True)
class DaemonSettings:
    """The table ``[daemon]``: settings of the daemon and the shim. Times are in seconds."""

    #: The unix socket that the shim connects to; None means ``daemon.sock`` in the run directory.
    socket: Path | None = None
    #: ``ADDRESS:PORT`` for health and metrics; empty to disable them.
    http: str = field(default="", validator=_endpoint)
    #: How many requests of one network are served at the same time; further ones wait.
    workers: int = field(default=32, validator=within(1, _WORKERS_MAX))
    #: How long the shim waits for an answer.
    deadline: float = field(default=120.0, validator=seconds)
    #: How often each switch is queried for a restart.
    watch_interval: float = field(default=5.0, validator=seconds)
    #: How often every attachment is compared with its switch; 0: never.
    reconcile_interval: float = field(default=300.0, validator=_seconds_or_never)
    #: How long a network namespace must be missing before its attachments are removed.
    grace: float = field(default=60.0, validator=_seconds_or_never)
    #: The directory of CNI's configurations; the daemon watches the switches of these networks.
    networks: Path = Path("/etc/cni/net.d")


@frozen(kw_only=True)
class IpamSettings:
    """The table ``[ipam]``: how addresses are allocated."""

    #: The values of ``ipam.type`` that the daemon serves by an engine of its own, if one is
    #: installed; all others are executables.
    in_process: tuple[str, ...] = ("host-local", "static")


@frozen(kw_only=True)
class Settings:
    """The settings of the node; defaults apply if the file or a key is missing."""

    #: The directory of the store of attachments; must survive a reboot.
    state_dir: Path = Path("/var/lib/cni/userspace")
    #: The directory of locks, sockets and shared directories; need not survive a reboot.
    run_dir: Path = Path("/run/userspace-cni")
    #: The kubelet's ``--root-dir``, which contains the volumes of pods.
    kubelet_dir: Path = Path("/var/lib/kubelet")
    log_file: Path | None = None
    log_level: LogLevel = "warning"
    #: The time limit, in seconds, for everything that a request waits for: locks, IPAM plugins,
    #: the API server.
    timeout: float = field(default=60.0, validator=seconds)
    #: Let switches follow the links that containers create: for kernels before Linux 5.14, and for
    #: a switch that does not see mounts below ``run_dir``.
    follow_links: bool = False
    #: The tables ``[engines.NAME]``; see :meth:`of_engine`.
    engines: Mapping[str, Any] = field(factory=dict, validator=_tables)
    ipam: IpamSettings = field(factory=IpamSettings)
    daemon: DaemonSettings = field(factory=DaemonSettings)
    #: The path of the settings file.
    file: Path = field(default=DEFAULT_PATH, eq=False, metadata={"written": False})

    @property
    def socket(self) -> Path:
        """The path of the daemon's socket."""
        return self.daemon.socket or self.run_dir / "daemon.sock"

    @property
    def budget(self) -> float:
        """The time limit for a request, in seconds; its undo steps may take half as long again.

        The shim waits longer than that, so that it gets the answer.
        """
        return min(self.timeout, self.daemon.deadline / 2)

    def of_engine(self, name: str, kind: type[_T] | None) -> _T | None:
        """Return the table ``[engines.NAME]`` as *kind*, the engine's class for it.

        Raises:
            CniError: 7, with file, key and value; 101 when *kind* cannot be used.

        """
        table = self.engines.get(name, {})
        if kind is None:
            if table:
                problem = f"engines.{name}: the engine {name!r} has no settings"
                raise _error(self.file, f"{problem}; remove the table")
            return None
        return _structure(self.file, table, kind, f"engines.{name}") if table else kind()

    @property
    def queue(self) -> Path:
        """The directory in which the shim stores DELs that no daemon accepted."""
        return self.state_dir / "queue"


def load(environ: Mapping[str, str] = os.environ) -> Settings:
    """Read the settings file that *environ* names, or the default one if it exists.

    Raises:
        CniError: code 7, with file, key and value.

    """
    named = environ.get(VARIABLE)
    path = Path(named) if named else DEFAULT_PATH
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        if named:
            raise _error(path, f"no such file; {VARIABLE} names it") from None
        return Settings()
    except (OSError, UnicodeDecodeError) as error:
        raise _error(path, f"cannot be read: {error}") from error
    import tomllib  # only needed if the file exists

    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise _error(path, f"is not TOML: {error}") from error
    return evolve(_structure(path, raw, Settings), file=path)


def _structure(path: Path, raw: object, kind: type[_T], key: str = "") -> _T:
    from userspace_cni.config import decoding  # most nodes have nothing to decode

    try:
        return decoding.structure(raw, kind, key, decoding.TOML)
    except CniError as error:
        if error.code == Code.ENGINE_BROKEN:
            raise
        raise _error(path, error.msg) from error


def _error(path: Path, problem: str) -> CniError:
    return CniError(Code.INVALID_NETWORK_CONFIG, f"node settings {path}: {problem}")
