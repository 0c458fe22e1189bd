"""The node's settings: ``/etc/userspace-cni/config.toml``, one file for all networks of a node."""

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
#: An IPv6 address stands in brackets.
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
    """The table ``[daemon]``: what the daemon and the shim do. Times are in seconds."""

    #: Of the unix socket that the shim calls; None is ``daemon.sock`` in the run directory.
    socket: Path | None = None
    #: ``ADDRESS:PORT`` that health and metrics are served at; empty for none.
    http: str = field(default="", validator=_endpoint)
    #: How many requests of one network are served at once; further ones of it wait.
    workers: int = field(default=32, validator=within(1, _WORKERS_MAX))
    #: How long the shim waits for an answer.
    deadline: float = field(default=120.0, validator=seconds)
    #: How often each switch is asked whether it has restarted.
    watch_interval: float = field(default=5.0, validator=seconds)
    #: How often every attachment is compared with its switch; 0 for never.
    reconcile_interval: float = field(default=300.0, validator=_seconds_or_never)
    #: How long a network namespace must be gone before its attachments are removed.
    grace: float = field(default=60.0, validator=_seconds_or_never)
    #: Where CNI's configurations are: the daemon watches the switches of networks in there.
    networks: Path = Path("/etc/cni/net.d")


@frozen(kw_only=True)
class Settings:
    """What holds for the whole node. Where the file or a key is absent, the defaults."""

    #: Holds the store of attachments; must survive a reboot.
    state_dir: Path = Path("/var/lib/cni/userspace")
    #: Holds locks; may be gone after a reboot.
    run_dir: Path = Path("/run/userspace-cni")
    #: The kubelet's ``--root-dir``, which has the volumes of pods.
    kubelet_dir: Path = Path("/var/lib/kubelet")
    log_file: Path | None = None
    log_level: LogLevel = "warning"
    #: How long, in seconds, a request may wait in all: for locks, IPAM plugins, the API server.
    timeout: float = field(default=60.0, validator=seconds)
    #: Let switches follow the links that containers make: for kernels before Linux 5.14, and for
    #: a switch that does not see what is mounted below ``run_dir``.
    follow_links: bool = False
    #: The tables ``[engines.NAME]``; see :meth:`of_engine`.
    engines: Mapping[str, Any] = field(factory=dict, validator=_tables)
    daemon: DaemonSettings = field(factory=DaemonSettings)
    #: The file that they stand in.
    file: Path = field(default=DEFAULT_PATH, eq=False, metadata={"written": False})

    @property
    def socket(self) -> Path:
        """Path of the daemon's socket."""
        return self.daemon.socket or self.run_dir / "daemon.sock"

    @property
    def budget(self) -> float:
        """How long a request may take; to undo what failed it has half as long again.

        The shim still waits then, so that the answer finds it.
        """
        return min(self.timeout, self.daemon.deadline / 2)

    def of_engine(self, name: str, kind: type[_T] | None) -> _T | None:
        """Return the table ``[engines.NAME]`` as *kind*, the engine's class for it.

        Raises:
            CniError: 7, naming file, key and value; 101 when *kind* is of no use.

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
        """The directory where the shim leaves the DELs that no daemon took."""
        return self.state_dir / "queue"


def load(environ: Mapping[str, str] = os.environ) -> Settings:
    """Read the settings file that *environ* names, else the default one if it is there.

    Raises:
        CniError: code 7, naming file, key and value.

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
    import tomllib  # most nodes have no file

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
