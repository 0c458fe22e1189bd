"""The directory that a container shares with the node: ``<base>/<container id>/``, or a volume.

The base is the operator's. What lies below it may be the container's work: it is opened by
directory descriptors that follow no symbolic link, and nothing in it is believed.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

from userspace_cni.cni.errors import CheckFailed, CniError, Code
from userspace_cni.cni.request import is_ifname, is_name
from userspace_cni.engine import SharedDirectory, attachment_id
from userspace_cni.handover import legacy, sockets
from userspace_cni.handover.reading import read_object
from userspace_cni.handover.writing import replace

_SUFFIX = ".json"
#: sockaddr_un.sun_path is 108 bytes, the final NUL included (unix(7)).
_SOCKET_PATH_MAX = 107
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class ContainerDirectory(SharedDirectory):
    """The shared directory of one container; it need not exist."""

    def __init__(self, base: Path, container_id: str, aliases: Path, *, volume: str = "") -> None:
        """Stand for ``<base>/<container id>``; *aliases* is the directory of short names for it.

        With *volume* it is ``<base>/<volume>``, a volume of the container's pod: somebody else
        makes it, says who may write to it, and removes it.
        """
        self._base = base
        self._container_id = container_id
        self._name = volume or container_id
        self._is_volume = bool(volume)
        self._aliases = aliases

    # -- for engines

    @property
    def path(self) -> str:
        """See :attr:`.SharedDirectory.path`."""
        return str(self._base / self._name)

    def provide(self, *, user: str = "", group: str = "") -> None:
        """See :meth:`.SharedDirectory.provide`; a volume must be there, and stays as it is."""
        if self._is_volume:
            with self._reported("use"), self._opened():
                return
        uid, gid = _user(user), _group(group)
        with self._reported("make"):
            self._base.mkdir(mode=0o750, parents=True, exist_ok=True)
            with self._opened_base() as base:
                with suppress(FileExistsError):
                    os.mkdir(self._name, 0o750, dir_fd=base)
                directory = os.open(self._name, _DIRECTORY, dir_fd=base)
            try:
                if os.fstat(directory).st_uid not in (os.geteuid(), uid):
                    raise PermissionError(errno.EPERM, "it belongs to somebody else")
                if uid is not None or gid is not None:
                    os.fchown(directory, -1 if uid is None else uid, -1 if gid is None else gid)
                # By the descriptor, and whatever the umask took away.
                os.fchmod(directory, 0o750 if gid is None else 0o770)
            finally:
                os.close(directory)

    def socket(self, name: str) -> str:
        """See :meth:`.SharedDirectory.socket`."""
        direct = f"{self.path}/{name}"
        if len(os.fsencode(direct)) <= _SOCKET_PATH_MAX:
            return direct
        alias = self._alias()
        short = f"{alias}/{name}"
        if len(os.fsencode(short)) > _SOCKET_PATH_MAX:
            raise CniError(
                Code.INVALID_NETWORK_CONFIG,
                f"the path of the socket {short} is longer than {_SOCKET_PATH_MAX} bytes",
                "choose a shorter run_dir in the node's settings, or a shorter socketfile",
            )
        with self._reported("make a short name for"):
            alias.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
            with suppress(FileExistsError):
                alias.symlink_to(self.path)
        return short

    def link(self, source: str, name: str) -> None:
        """See :meth:`.SharedDirectory.link`."""
        with self._reported(f"put the socket {source} as {name} into"), self._opened() as directory:
            try:
                os.link(source, name, dst_dir_fd=directory, follow_symlinks=False)
            except OSError as error:
                if error.errno != errno.EXDEV:
                    raise
                raise CniError(
                    Code.IO_FAILURE,
                    f"the socket {source} and the shared directory {self.path} are on different "
                    "file systems, so that the socket cannot be shared",
                    "set sharedDir to a directory on the file system of the socket",
                ) from error

    def grant(self, name: str, *, user: str = "", group: str = "") -> None:
        """See :meth:`.SharedDirectory.grant`."""
        uid, gid = _user(user), _group(group)
        with self._reported(f"give access to {name} in"), self._opened() as directory:
            file = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
            try:
                if not stat.S_ISSOCK(os.fstat(file).st_mode):
                    raise OSError(errno.ENOTSOCK, os.strerror(errno.ENOTSOCK))
                # A socket has no descriptor that fchmod(2) takes; this names the inode itself.
                opened = f"/proc/self/fd/{file}"
                os.chown(opened, -1 if uid is None else uid, -1 if gid is None else gid)
                os.chmod(opened, 0o660)
            finally:
                os.close(file)

    def discard_stale(self, name: str) -> bool:
        """See :meth:`.SharedDirectory.discard_stale`."""
        try:
            with self._opened() as directory:
                return sockets.discard_stale(directory, name)
        except OSError:
            return False

    def make_way(self, name: str) -> None:
        """See :meth:`.SharedDirectory.make_way`."""
        if self.discard_stale(name):
            return
        with self._reported("use"), self._opened() as directory, suppress(FileNotFoundError):
            if stat.S_ISSOCK(os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode):
                raise CniError(
                    Code.ALREADY_ATTACHED,
                    f"{self.path}/{name} exists, and somebody listens on it",
                    "is it the socket of another attachment of this container? Give each another "
                    "socketfile",
                )
            raise CniError(
                Code.IO_FAILURE,
                f"{self.path}/{name} exists, and is no socket",
                "remove it, or choose another socketfile",
            )

    # -- for the runtime

    def publish(self, ifname: str, document: Mapping[str, Any]) -> None:
        """Write the hand-over file of *ifname*: at once, readable for the directory's group.

        Raises:
            CniError: 103 when another attachment of the container has that file, that name of the
                interface or that socket; 5 when it cannot be written.

        """
        name = ifname + _SUFFIX
        with self._reported(f"write {name} into"), self._opened() as directory:
            for other, there in _documents(directory):
                if there.get("id") != document["id"]:
                    self._require_other(other, there, ifname, document)
            _write(directory, name, document)

    def publish_legacy(self, ifname: str, document: Mapping[str, Any]) -> None:
        """Write *document* as the file of *ifname* that the first plugin had, see :mod:`.legacy`.

        Raises:
            CniError: 5 when it cannot be written.

        """
        name = legacy.file_name(self._container_id, ifname)
        with self._reported(f"write {name} into"), self._opened() as directory:
            _write(directory, name, document)

    def holds(self, ifname: str, id_: str) -> bool:
        """Tell whether the hand-over file of *ifname* is there, and attachment *id_*'s."""
        try:
            with self._opened() as directory:
                there = _read(directory, ifname + _SUFFIX)
        except OSError:
            return False
        return there is not None and there.get("id") == id_

    def require(self, ifname: str, document: Mapping[str, Any]) -> None:
        """Raise CheckFailed unless the hand-over file of *ifname* is there, and *document*'s."""
        if not self.holds(ifname, document["id"]):
            raise CheckFailed(
                f"the hand-over file {self.path}/{ifname}{_SUFFIX} is gone, or is no longer ours",
                "the container cannot find its port any more; DEL it and ADD it again",
            )

    def withdraw(self, ifname: str, id_: str, *more: str) -> None:
        """Remove the files and the socket of *ifname*, sockets *more*, and the directory if empty.

        What belongs to another attachment than *id_* stays, and so does what the container made.

        Raises:
            CniError: 5 when something that must go cannot be removed.

        """
        name = ifname + _SUFFIX
        # Gone, or something else has the directory's name: nothing of ours is there.
        with suppress(FileNotFoundError, NotADirectoryError), self._reported("clean up"):
            with self._opened() as directory:
                there = _read(directory, name)
                if there is not None and there.get("id") != id_:
                    return
                for own in (name, legacy.file_name(self._container_id, ifname)):
                    with suppress(FileNotFoundError, IsADirectoryError):
                        os.unlink(own, dir_fd=directory)
                for other in {f"{ifname}.sock", *more} - {""}:
                    _remove_socket(directory, other)
                if self._is_volume and next(_documents(directory), None) is not None:
                    return
            if not self._is_volume and not self._removed():
                return
        # Ours alone: no container sees the directory of aliases.
        with suppress(OSError):
            self._alias().unlink()

    def _require_other(
        self, other: str, there: Mapping[str, Any], ifname: str, document: Mapping[str, Any]
    ) -> None:
        """Raise 103 if the attachment *there*, by *other*, has what *document* is to have."""
        interface, port = document.get("interface"), _socket_of(document)
        if other == ifname:
            what, remedy = f"the hand-over file {ifname}{_SUFFIX}", "CNI_IFNAME"
        elif interface is not None and there.get("interface") == interface:
            what, remedy = f"an interface {interface}", "if0name"
        elif port is not None and _socket_of(there) == port:
            what, remedy = f"the socket {port}", "socketfile"
        else:
            return
        raise CniError(
            Code.ALREADY_ATTACHED,
            f"the container has {what} already, by {other} on network {there.get('network')!r}",
            f"give each attachment of one container another {remedy}; "
            f"see {self.path}/{other}{_SUFFIX}",
        )

    def _removed(self) -> bool:
        """Remove the directory if it is empty; tell whether it was."""
        with self._opened_base() as base:
            try:
                os.rmdir(self._name, dir_fd=base)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.EBUSY):
                    raise
                return False
        return True

    def _alias(self) -> Path:
        return self._aliases / sha256(os.fsencode(self.path)).hexdigest()[:16]

    @contextmanager
    def _opened_base(self) -> Iterator[int]:
        # The base itself may be reached by links: it is the operator's word.
        base = os.open(self._base, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            yield base
        finally:
            os.close(base)

    @contextmanager
    def _opened(self) -> Iterator[int]:
        with self._opened_base() as base:
            directory = os.open(self._name, _DIRECTORY, dir_fd=base)
        try:
            yield directory
        finally:
            os.close(directory)

    @contextmanager
    def _reported(self, action: str) -> Iterator[None]:
        try:
            yield
        except (FileNotFoundError, NotADirectoryError) as error:
            if action == "clean up":
                raise
            what = "it does not exist"
            if isinstance(error, NotADirectoryError):
                what = "something that is no directory has its name"
            raise self._failure(action, what) from error
        except OSError as error:
            if action == "clean up" and error.errno == errno.ENAMETOOLONG:
                raise FileNotFoundError(error.errno, error.strerror) from error
            raise self._failure(action, error.strerror or str(error)) from error

    def _failure(self, action: str, what: str) -> CniError:
        return CniError(Code.IO_FAILURE, f"cannot {action} the shared directory {self.path}", what)


def published(base: Path, network: str) -> Iterator[tuple[str, str]]:
    """Yield container id and interface name of each hand-over file of *network* below *base*.

    A file counts only if its id is the right one for its place: a container that writes one can
    point at nothing but itself.
    """
    try:
        containers = sorted(os.listdir(base))
    except OSError:
        return
    for container_id in filter(is_name, containers):
        for ifname, document in _documents_at(base / container_id):
            expected = attachment_id(network, container_id, ifname)
            if document.get("network") == network and document.get("id") == expected:
                yield container_id, ifname


def _documents_at(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        directory = os.open(path, _DIRECTORY)
    except OSError:
        return
    try:
        yield from _documents(directory)
    finally:
        os.close(directory)


def _documents(directory: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield interface name and content of all that has a hand-over file's name."""
    for name in sorted(os.listdir(directory)):
        ifname = name.removesuffix(_SUFFIX)
        if ifname != name and is_ifname(ifname):
            document = _read(directory, name)
            if document is not None:
                yield ifname, document


def _socket_of(document: Mapping[str, Any]) -> str | None:
    """Return the name of the socket in a hand-over file, which may say anything."""
    port = document.get("memif") or document.get("vhostUser")
    name = port.get("socket") if isinstance(port, Mapping) else None
    return name if isinstance(name, str) else None


def _read(directory: int, name: str) -> dict[str, Any] | None:
    """Return the JSON object in the file *name*, None if there is no such thing."""
    try:
        return read_object(name, directory)
    except (OSError, ValueError):
        return None


def _write(directory: int, name: str, document: Mapping[str, Any]) -> None:
    content = json.dumps(document, indent=1).encode()
    replace(directory, name, content, 0o640, os.fstat(directory).st_gid)


def _remove_socket(directory: int, name: str) -> None:
    if sockets.is_socket(directory, name):
        with suppress(FileNotFoundError):
            os.unlink(name, dir_fd=directory)


def _user(name: str) -> int | None:
    import pwd

    return _number(name, "user", lambda name: pwd.getpwnam(name).pw_uid)


def _group(name: str) -> int | None:
    import grp

    return _number(name, "group", lambda name: grp.getgrnam(name).gr_gid)


def _number(name: str, what: str, look_up: Callable[[str], int]) -> int | None:
    if not name:
        return None
    if name.isdecimal():
        return int(name)
    try:
        return look_up(name)
    except KeyError:
        raise CniError(
            Code.INVALID_NETWORK_CONFIG,
            f"the {what} {name!r} does not exist on this node",
            f"create it, or give the {what} by number",
        ) from None
