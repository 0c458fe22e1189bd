"""The device-info file of the Network Plumbing Working Group, which the meta-plugin reads.

Multus names the file in ``runtimeConfig.CNIDeviceInfoFile`` and copies it to the pod's annotation
``k8s.v1.cni.cncf.io/network-status``. Source: "Device Information Specification", version 1.1.0.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from userspace_cni import files
from userspace_cni.api import CustomPort, Handoff, Memif, Port, VhostUser
from userspace_cni.cni.errors import CniError, Code, InvalidConfig

VERSION = "1.1.0"
#: The key in ``runtimeConfig``, in lower case.
KEY = "cnideviceinfofile"
#: The specification's names for the container's role at a memif.
ROLES = {"server": "master", "client": "slave"}

_REMEDY = (
    "the runtime chose it: correct it there, or remove the capability CNIDeviceInfoFile from the "
    "network"
)
_NAME_MAX, _PATH_MAX = 255, 4095  # bytes: <linux/limits.h>, less the final NUL
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


def describe(handoff: Handoff, socket: str) -> dict[str, Any] | None:
    """Return the device-info of a port with that *socket* in the container; None if it has none."""
    match handoff.port:
        case Memif(role=role, mode=mode):
            told = {"role": ROLES[role], "path": socket, "mode": mode}
            return {"type": "memif", "version": VERSION, "memif": told}
        case VhostUser(mode=mode):
            told = {"mode": mode, "path": socket}
            return {"type": "vhost-user", "version": VERSION, "vhost-user": told}
        case CustomPort(device_info=info) if info:
            return {"type": info["type"], "version": VERSION, **info}
        case _:
            return None


def path_of(runtime_config: Mapping[str, Any]) -> str:
    """Return the path of the file that the runtime requests, or an empty text.

    Raises:
        InvalidConfig: no file can be written to this path.

    """
    for key, value in runtime_config.items():
        if key.lower() == KEY and value:
            if (
                not isinstance(value, str)
                or not value.startswith("/")
                or value.endswith("/")
                or not value.isprintable()
                or {".", ".."} & {*value.split("/")}
            ):
                raise InvalidConfig(
                    f"runtimeConfig.{key}",
                    f"expected the absolute path of a file, got {value!r}",
                    _REMEDY,
                )
            require_possible(f"runtimeConfig.{key}", value, _REMEDY)
            return value
    return ""


def require_possible(key: str, path: str, remedy: str = "choose a shorter path") -> None:
    """Raise InvalidConfig if *path*, the value of *key*, is too long for a file."""
    longest = max(len(os.fsencode(name)) for name in path.split("/"))
    if longest > _NAME_MAX or len(os.fsencode(path)) > _PATH_MAX:
        raise InvalidConfig(
            key,
            f"expected a path of at most {_PATH_MAX} bytes whose names have at most {_NAME_MAX}, "
            f"got {path!r}",
            remedy,
        )


def write(path: str, info: Mapping[str, Any]) -> dict[str, Any] | None:
    """Write *info* to the file *path*, merged with what a device plugin may have written there.

    Return the earlier content, for :func:`restore`.

    Raises:
        CniError: 5 when it cannot be written.

    """
    with _reported(path):
        files.make(os.path.dirname(path), 0o755)
        with _opened(path) as (directory, name):
            before = _read(directory, name)
            _write(directory, name, _merged(before or {}, info))
    return before


def restore(path: str, before: Mapping[str, Any] | None, port: Port) -> None:
    """Restore the content *before* that :func:`write` replaced for *port*; raise as it does."""
    if before is None:
        remove(path, port)
        return
    with _reported(path), _opened(path) as (directory, name):
        _write(directory, name, before)


def remove(path: str, port: Port) -> None:
    """Remove the file if it describes a port such as *port*; raise as :func:`write` does."""
    types: set[object] = {Memif.kind, VhostUser.kind}
    if isinstance(port, CustomPort):
        types |= {port.device_info.get("type")}
    with _reported(path):
        try:
            with _opened(path) as (directory, name):
                there = _read(directory, name)
                if there is not None and there.get("type") in types:
                    os.unlink(name, dir_fd=directory)
        except OSError as error:
            # The path does not exist.
            if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP):
                raise


def _merged(before: Mapping[str, Any], info: Mapping[str, Any]) -> dict[str, Any]:
    """Return *info* with the other keys of *before*; a device of another type is replaced."""
    other = before.get("type")
    kept = {key: value for key, value in before.items() if key != other or key == info["type"]}
    section = info["type"]
    old = kept.get(section)
    ours = {**old, **info[section]} if isinstance(old, dict) else info[section]
    return {**kept, **info, section: ours}


def _write(directory: int, name: str, content: Mapping[str, Any]) -> None:
    files.replace(directory, name, json.dumps(content).encode(), 0o644)


def _read(directory: int, name: str) -> dict[str, Any] | None:
    try:
        return files.read_object(name, directory)
    except (OSError, ValueError):
        return None


@contextmanager
def _opened(path: str) -> Iterator[tuple[int, str]]:
    parent, name = os.path.split(path)
    directory = os.open(parent, _DIRECTORY)
    try:
        yield directory, name
    finally:
        os.close(directory)


@contextmanager
def _reported(path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise CniError(
            Code.IO_FAILURE,
            f"the device-info file {path} cannot be written or removed: {error.strerror}",
            "the runtime chose it (runtimeConfig.CNIDeviceInfoFile); check its directory",
        ) from error
