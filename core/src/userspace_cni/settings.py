"""The node's settings: ``/etc/userspace-cni/config.toml``, one file for all networks of a node."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from attrs import field, frozen

from userspace_cni.cni.errors import CniError, Code

#: The environment variable that names another file.
VARIABLE = "USERSPACE_CNI_CONFIG"
DEFAULT_PATH = Path("/etc/userspace-cni/config.toml")
LOG_LEVELS = ("debug", "info", "warning", "error")

_TIMEOUT_MAX = 3600  # seconds
_PATHS = ("state_dir", "run_dir", "log_file")


@frozen(kw_only=True)
class Settings:
    """What holds for the whole node. Where the file or a key is absent, the defaults."""

    #: Holds the store of attachments; must survive a reboot.
    state_dir: Path = Path("/var/lib/cni/userspace")
    #: Holds locks; may be gone after a reboot.
    run_dir: Path = Path("/run/userspace-cni")
    log_file: Path | None = None
    log_level: str = "warning"
    #: How long, in seconds, an IPAM plugin may take, and a lock may be held by others.
    timeout: float = 60.0
    #: The tables ``[engines.NAME]``: each engine knows its own keys.
    engines: Mapping[str, Mapping[str, Any]] = field(factory=dict)


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
    values = dict(raw)
    unknown = values.keys() - {
        "state_dir",
        "run_dir",
        "log_file",
        "log_level",
        "timeout",
        "engines",
    }
    if unknown:
        raise _error(path, f"unknown keys {', '.join(sorted(unknown))}")
    for key in _PATHS:
        if key in values:
            value = values[key]
            if not isinstance(value, str) or not value.startswith("/") or "\0" in value:
                raise _error(path, f"{key}: expected an absolute path, got {value!r}")
            values[key] = Path(value)
    if values.get("log_level", "info") not in LOG_LEVELS:
        raise _error(
            path,
            f"log_level: expected one of {', '.join(LOG_LEVELS)}, got {values['log_level']!r}",
        )
    timeout = values.get("timeout", 60.0)
    number = isinstance(timeout, int | float) and not isinstance(timeout, bool)
    if not number or not 0 < timeout <= _TIMEOUT_MAX:
        raise _error(
            path,
            f"timeout: expected a number of seconds above 0, up to {_TIMEOUT_MAX}, got {timeout!r}",
        )
    engines = values.get("engines", {})
    if not isinstance(engines, dict) or not all(isinstance(e, dict) for e in engines.values()):
        raise _error(path, f"engines: expected tables [engines.NAME], got {engines!r}")
    return Settings(**values)


def _error(path: Path, problem: str) -> CniError:
    return CniError(Code.INVALID_NETWORK_CONFIG, f"node settings {path}: {problem}")
