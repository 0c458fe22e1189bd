"""The node's settings: ``/etc/userspace-cni/config.toml``, one file for all networks of a node."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from attrs import field, fields, frozen

from userspace_cni.cni.errors import CniError, Code, Problems, did_you_mean

#: The environment variable that names another file.
VARIABLE = "USERSPACE_CNI_CONFIG"
DEFAULT_PATH = Path("/etc/userspace-cni/config.toml")
LOG_LEVELS = ("debug", "info", "warning", "error")

_TIMEOUT_MAX = 3600  # seconds
_WORKERS_MAX = 1024
#: An IPv6 address stands in brackets.
_ENDPOINT = re.compile(r"(\[[0-9a-fA-F:.]+\]|[^:\[\]\s]+):([0-9]{1,5})")
_PATHS = ("state_dir", "run_dir", "kubelet_dir", "log_file")


@frozen(kw_only=True)
class DaemonSettings:
    """The table ``[daemon]``: what the daemon and the shim do. Times are in seconds."""

    #: Of the unix socket that the shim calls; None is ``daemon.sock`` in the run directory.
    socket: Path | None = None
    #: ``ADDRESS:PORT`` that health and metrics are served at; empty for none.
    http: str = ""
    #: How many requests of one network are served at once; further ones of it wait.
    workers: int = 32
    #: How long the shim waits for an answer.
    deadline: float = 120.0
    #: How often each switch is asked whether it has restarted.
    watch_interval: float = 5.0
    #: How often every attachment is compared with its switch; 0 for never.
    reconcile_interval: float = 300.0
    #: How long a network namespace must be gone before its attachments are removed.
    grace: float = 60.0
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
    log_level: str = "warning"
    #: How long, in seconds, a request may wait in all: for locks, IPAM plugins, the API server.
    timeout: float = 60.0
    #: Let switches follow the links that containers make: for kernels before Linux 5.14, and for
    #: a switch that does not see what is mounted below ``run_dir``.
    follow_links: bool = False
    #: The tables ``[engines.NAME]``: each engine knows its own keys.
    engines: Mapping[str, Mapping[str, Any]] = field(factory=dict)
    daemon: DaemonSettings = field(factory=DaemonSettings)

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
    return _structure(path, raw)


def _structure(path: Path, raw: dict[str, Any]) -> Settings:
    problems = Problems()
    values = _known(path, raw, Settings, problems)
    for key in _PATHS:
        if key in values:
            with problems:
                values[key] = _absolute(path, key, values[key])
    if values.get("log_level", "info") not in LOG_LEVELS:
        problems.add(
            _error(
                path,
                f"log_level: expected one of {', '.join(LOG_LEVELS)}, got {values['log_level']!r}",
            )
        )
    if "timeout" in values:
        with problems:
            _require_seconds(path, "timeout", values["timeout"])
    if not isinstance(values.get("follow_links", False), bool):
        problems.add(
            _error(path, f"follow_links: expected true or false, got {values['follow_links']!r}")
        )
    engines = values.get("engines", {})
    if not isinstance(engines, dict) or not all(isinstance(e, dict) for e in engines.values()):
        problems.add(_error(path, f"engines: expected tables [engines.NAME], got {engines!r}"))
    if "daemon" in values:
        values["daemon"] = _structure_daemon(path, values["daemon"], problems)
    problems.settle()
    return Settings(**values)


def _structure_daemon(path: Path, raw: object, problems: Problems) -> DaemonSettings:
    if not isinstance(raw, dict):
        problems.add(_error(path, f"daemon: expected a table [daemon], got {raw!r}"))
        return DaemonSettings()
    values = _known(path, raw, DaemonSettings, problems, "daemon.")
    for key in ("socket", "networks"):
        if key in values:
            with problems:
                values[key] = _absolute(path, f"daemon.{key}", values[key])
    for key in ("deadline", "watch_interval"):
        if key in values:
            with problems:
                _require_seconds(path, f"daemon.{key}", values[key])
    for key in ("reconcile_interval", "grace"):
        if key in values and values[key] != 0:
            with problems:
                _require_seconds(path, f"daemon.{key}", values[key])
    workers = values.get("workers", 1)
    if not isinstance(workers, int) or isinstance(workers, bool) or not 0 < workers <= _WORKERS_MAX:
        problems.add(
            _error(
                path, f"daemon.workers: expected a number from 1 to {_WORKERS_MAX}, got {workers!r}"
            )
        )
    http = values.get("http", "")
    if not isinstance(http, str) or (http and not _ENDPOINT.fullmatch(http)):
        problems.add(
            _error(
                path, f"daemon.http: expected ADDRESS:PORT, such as 127.0.0.1:9455, got {http!r}"
            )
        )
    return DaemonSettings(**values)


def _known(
    path: Path, raw: dict[str, Any], kind: type, problems: Problems, table: str = ""
) -> dict[str, Any]:
    """Return what *raw* has of the keys of *kind*; all others are noted."""
    known = [attribute.name for attribute in fields(kind)]
    for key in sorted(raw.keys() - {*known}):
        problems.add(
            _error(
                path,
                f"{table}{key}: unknown key with value {raw[key]!r} "
                f"({did_you_mean(key, known)}known: {', '.join(known)})",
            )
        )
    return {key: value for key, value in raw.items() if key in known}


def _absolute(path: Path, key: str, value: object) -> Path:
    if not isinstance(value, str) or not value.startswith("/") or "\0" in value:
        raise _error(path, f"{key}: expected an absolute path, got {value!r}")
    return Path(value)


def _require_seconds(path: Path, key: str, value: object) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not 0 < value <= _TIMEOUT_MAX:  # type: ignore[operator]
        raise _error(
            path,
            f"{key}: expected a number of seconds above 0, up to {_TIMEOUT_MAX}, got {value!r}",
        )


def _error(path: Path, problem: str) -> CniError:
    return CniError(Code.INVALID_NETWORK_CONFIG, f"node settings {path}: {problem}")
