"""The directory that a container shares with the node: ``<base>/<container id>/``, or a volume.

The base belongs to the operator. The container can change everything below it, so it is opened by
directory descriptors that follow no symbolic link, and its content is not trusted.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import contextmanager, suppress
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Any

from userspace_cni import files
from userspace_cni.api import SharedDirectory, attachment_id
from userspace_cni.cni.errors import CheckFailed, CniError, Code, InvalidConfig
from userspace_cni.cni.request import is_ifname, is_name
from userspace_cni.handover import legacy, mounts, sockets
from userspace_cni.handover.removing import remove_tree
from userspace_cni.log import logger

_SUFFIX = ".json"
#: How many entries of a directory are read if its content is unknown. A container may create more,
#: and must not be able to occupy the node with reading them.
_ENTRIES_MAX = 4096
_INTERFACES_MAX = 256
#: The maximum size of a hand-over file in bytes.
_DOCUMENT_MAX = 1 << 16
#: sockaddr_un.sun_path is 108 bytes, the final NUL included (unix(7)).
_SOCKET_PATH_MAX = 107
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class ContainerDirectory(SharedDirectory):
    """The shared directory of one container; it may not exist yet."""

    def __init__(
        self,
        base: Path,
        container_id: str,
        views: Path | None,
        *,
        follow_links: bool = False,
        volume: str = "",
        container_dir: str = "",
        missing: str = "",
    ) -> None:
        """Represent ``<base>/<container id>``.

        Args:
            base: The directory that contains the directories of all containers.
            container_id: The container's id.
            views: The directory of the mounts through which switches see the directory without
                following links; None if there are none.
            follow_links: Give switches the path of the directory itself, in which they follow links
                that a container made. A mount that was made before is removed as usual.
            volume: Represent ``<base>/<volume>`` instead, a volume of the container's pod. Kubelet
                creates it, sets its owner and mode, and removes it.
            container_dir: The path at which the container mounts it; empty if unknown.
            missing: The name of the volume that the pod needs for sockets, if it does not have it.

        """
        self._base = base
        #: The container's id.
        self.container_id = container_id
        self._name = volume or container_id
        self._is_volume = bool(volume)
        self._views = views
        self._follow_links = follow_links
        self._container_dir = container_dir
        self._missing = missing

    # -- for engines

    @property
    def path(self) -> str:
        """See :attr:`.SharedDirectory.path`."""
        return str(self._base / self._name)

    def provide(self, *, user: str = "", group: str = "", sockets: bool = True) -> None:
        """See :meth:`.SharedDirectory.provide`; a volume must exist and is not changed."""
        uid, gid = _user(user), _group(group)
        with self._reported("use" if self._is_volume else "make"):
            if not self._is_volume:
                files.make(self._base)
                with self._opened_base() as base, suppress(FileExistsError):
                    os.mkdir(self._name, 0o750, dir_fd=base)
            with self._opened() as directory:
                if not self._is_volume:
                    _give(directory, uid, gid)
        if sockets:
            self.provide_view()

    def socket(self, name: str) -> str:
        """See :meth:`.SharedDirectory.socket`."""
        if self._missing:
            raise InvalidConfig(
                "sharedVolume",
                f"the pod has no volume {self._missing!r}, and would not find the socket {name}",
                f"give the pod an emptyDir called {self._missing}, mounted by its container; or "
                'say by "containerDir" where each container has its directory otherwise',
            )
        path = f"{self._view or self.path}/{name}"
        _require_address(path, "choose a shorter run_dir in the node's settings, or socketfile")
        if self._container_dir:
            _require_address(
                f"{self._container_dir}/{name}",
                "the container has it there: mount the directory at a shorter path (containerDir, "
                "or the mountPath of the pod's volume)",
            )
        return path

    def take(self, source: str, name: str) -> None:
        """See :meth:`.SharedDirectory.take`."""
        with self._reported(f"put the socket {source} as {name} into"), self._opened() as directory:
            try:
                # Unlike rename(2), this replaces nothing.
                os.link(source, name, dst_dir_fd=directory, follow_symlinks=False)
            except FileExistsError:
                # Both may be the same file, if an earlier call was interrupted here.
                there = os.stat(name, dir_fd=directory, follow_symlinks=False)
                if not os.path.samestat(os.lstat(source), there):
                    raise
            except OSError as error:
                if error.errno != errno.EXDEV:
                    raise
                raise CniError(
                    Code.IO_FAILURE,
                    f"the socket {source} and the shared directory {self.path} are on different "
                    "file systems, so that the socket cannot be shared",
                    "set sharedDir to a directory on the file system of the socket",
                ) from error
            os.unlink(source)

    def grant(self, name: str, *, user: str = "", group: str = "") -> None:
        """See :meth:`.SharedDirectory.grant`."""
        uid, gid = _user(user), _group(group)
        with (
            self._reported(f"give access to {name} in"),
            self._opened() as directory,
            _socket_inode(directory, name) as opened,
        ):
            os.chown(opened, -1 if uid is None else uid, -1 if gid is None else gid)
            os.chmod(opened, 0o660)

    def is_served(self, name: str) -> bool:
        """See :meth:`.SharedDirectory.is_served`."""
        try:
            with self._opened() as directory:
                return sockets.is_served(directory, name)
        except OSError:
            return False

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
        """Write the hand-over file of *ifname* atomically, readable by the directory's group.

        Raises:
            CniError: 103 when another attachment of the container has the same file, interface name
                or socket; 5 when the file cannot be written.

        """
        name = ifname + _SUFFIX
        with self._reported(f"write {name} into"), self._opened() as directory:
            for other in sorted({*_ifnames(directory), ifname}):
                there = _read(directory, other + _SUFFIX)
                if there is not None and there.get("id") != document["id"]:
                    self._require_other(other, there, ifname, document)
            _write(directory, name, document)

    def publish_legacy(self, ifname: str, document: Mapping[str, Any]) -> None:
        """Write *document* as the first plugin's file for *ifname*, see :mod:`.legacy`.

        Raises:
            CniError: 5 when it cannot be written.

        """
        name = legacy.file_name(self.container_id, ifname)
        with self._reported(f"write {name} into"), self._opened() as directory:
            _write(directory, name, document)

    def holds(self, ifname: str, id_: str) -> bool:
        """Return whether the hand-over file of *ifname* exists and belongs to attachment *id_*."""
        try:
            with self._opened() as directory:
                there = _read(directory, ifname + _SUFFIX)
        except OSError:
            return False
        return there is not None and there.get("id") == id_

    def require(self, ifname: str, document: Mapping[str, Any]) -> None:
        """Raise CheckFailed unless the hand-over file of *ifname* exists and has *document*."""
        if not self.holds(ifname, document["id"]):
            raise CheckFailed(
                f"the hand-over file {self.path}/{ifname}{_SUFFIX} is gone, or is no longer ours",
                "the container cannot find its port any more; DEL it and ADD it again",
            )

    def withdraw(self, ifname: str, id_: str, *more: str) -> None:
        """Remove the files and the socket of *ifname*, sockets *more*, and the directory if empty.

        Files of other attachments than *id_* stay, and so do files that the container created.

        Raises:
            CniError: 5 when something cannot be removed.

        """
        name = ifname + _SUFFIX
        # The directory does not exist, or something else has its name.
        with suppress(FileNotFoundError, NotADirectoryError), self._reported("clean up"):
            with self._opened() as directory:
                there = _read(directory, name)
                if there is not None and there.get("id") != id_:
                    return
                for own in (name, legacy.file_name(self.container_id, ifname)):
                    with suppress(FileNotFoundError, IsADirectoryError):
                        os.unlink(own, dir_fd=directory)
                for other in {f"{ifname}.sock", *more} - {""}:
                    _remove_socket(directory, other)
            if self._is_volume:
                return
            with self._opened_base() as base:
                try:
                    os.rmdir(self._name, dir_fd=base)
                except OSError as error:
                    if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.EBUSY):
                        raise
                    return
        self._remove_view()

    def _require_other(
        self, other: str, there: Mapping[str, Any], ifname: str, document: Mapping[str, Any]
    ) -> None:
        """Raise 103 if the attachment *there*, by *other*, conflicts with *document*."""
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

    def is_left(self) -> bool:
        """Return whether :meth:`discard` would remove anything."""
        return os.path.lexists(self.path) or (bool(self._mount) and os.path.lexists(self._mount))

    def is_told_of(self) -> bool:
        """Return whether any hand-over file exists."""
        try:
            with self._opened() as directory:
                return any(_read(directory, name + _SUFFIX) for name in _ifnames(directory))
        except OSError:
            return False

    def discard(self) -> None:
        """Remove the directory with everything that the container left in it; keep a volume.

        Called when the container has no more attachments. What cannot be removed is logged and does
        not fail a DEL, because the container may have caused it.
        """
        self._remove_view()
        if self._is_volume:
            return
        try:
            with self._opened_base() as base:
                remove_tree(base, self._name)
        except (FileNotFoundError, NotADirectoryError):
            return  # it does not exist, or another DEL removes it
        except OSError as error:
            logger.warning(
                "what the container left in %s cannot be removed: %s; remove it by hand",
                self.path,
                error.strerror or error,
            )

    # -- for switches

    def provide_view(self) -> None:
        """Mount the directory for switches, at the path that :meth:`socket` uses.

        Raises:
            CniError: 5 when it cannot be mounted.

        """
        if not self._view or self._views is None:
            return
        with self._reported("open"), self._opened() as directory:
            try:
                files.make(self._views)
                mounts.provide(directory, self._view)
            except OSError as error:
                raise CniError(
                    Code.IO_FAILURE,
                    f"cannot mount the shared directory {self.path} at {self._view} so that no "
                    f"link is followed: {error.strerror}",
                    "it takes Linux 5.14 and the right to mount (CAP_SYS_ADMIN). Where every "
                    "container is trusted, follow_links = true in the node's settings does without",
                ) from error

    def require_view(self) -> None:
        """Raise CheckFailed unless the directory is mounted for switches."""
        if not self._view:
            return
        with suppress(OSError), self._opened() as directory:
            if mounts.shows(directory, self._view):
                return
        raise CheckFailed(
            f"the shared directory {self.path} is not mounted at {self._view}",
            "the switch cannot find the socket any more; the daemon mounts it again, and so "
            "do DEL and ADD",
        )

    def _remove_view(self) -> None:
        if self._mount:
            with self._reported("clean up"):
                mounts.remove(self._mount)

    @property
    def _view(self) -> str:
        """The path of the directory for switches; empty if it is the directory's own path."""
        return "" if self._follow_links else self._mount

    @property
    def _mount(self) -> str:
        """The path of the mount for switches."""
        if self._views is None:
            return ""
        return f"{self._views}/{sha256(os.fsencode(self.path)).hexdigest()[:16]}"

    @contextmanager
    def _opened_base(self) -> Iterator[int]:
        # The path of the base may contain links, because it belongs to the operator.
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


def published(base: Path, network: str, known: Container[str]) -> Iterator[tuple[str, str]]:
    """Yield container id and interface name of each hand-over file of *network* below *base*.

    Files of the attachments *known* are skipped without reading them. A file only counts if its id
    is the right one for its path, so a container that forges one can only refer to itself. Only
    some files are read if a container creates many.
    """
    try:
        containers = sorted(os.listdir(base))
    except OSError:
        return
    for container_id in filter(is_name, containers):
        for ifname in _ifnames_at(base / container_id):
            id_ = attachment_id(network, container_id, ifname)
            if id_ not in known and ContainerDirectory(base, container_id, None).holds(ifname, id_):
                yield container_id, ifname


def _ifnames_at(path: Path) -> list[str]:
    try:
        directory = os.open(path, _DIRECTORY)
    except OSError:
        return []
    try:
        return _ifnames(directory)
    finally:
        os.close(directory)


def _ifnames(directory: int) -> list[str]:
    """Return the names of the interfaces that have a hand-over file."""
    with os.scandir(directory) as entries:
        names = [entry.name for entry in islice(entries, _ENTRIES_MAX)]
    ifnames = [name.removesuffix(_SUFFIX) for name in names if name.endswith(_SUFFIX)]
    return sorted(filter(is_ifname, ifnames))[:_INTERFACES_MAX]


def _socket_of(document: Mapping[str, Any]) -> str | None:
    """Return the name of the socket in a hand-over file, whose content is not trusted."""
    port = document.get("memif") or document.get("vhostUser") or document.get("port")
    name = port.get("socket") if isinstance(port, Mapping) else None
    return name if isinstance(name, str) else None


def _read(directory: int, name: str) -> dict[str, Any] | None:
    """Return the JSON object in the file *name*, or None."""
    try:
        return files.read_object(name, directory, limit=_DOCUMENT_MAX)
    except (OSError, ValueError):
        return None


def _write(directory: int, name: str, document: Mapping[str, Any]) -> None:
    content = json.dumps(document, indent=1).encode()
    files.replace(directory, name, content, 0o640, group=os.fstat(directory).st_gid)


@contextmanager
def _socket_inode(directory: int, name: str) -> Iterator[str]:
    """Yield a path that leads to the socket *name* even if something else gets the name meanwhile.

    A descriptor of a socket's inode cannot be used with fchmod(2) or connect(2), but its path can,
    and it is short.

    Raises:
        OSError: it does not exist, or is not a socket.

    """
    file = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
    try:
        if not stat.S_ISSOCK(os.fstat(file).st_mode):
            raise OSError(errno.ENOTSOCK, os.strerror(errno.ENOTSOCK))
        yield f"/proc/self/fd/{file}"
    finally:
        os.close(file)


def _remove_socket(directory: int, name: str) -> None:
    if sockets.is_socket(directory, name):
        with suppress(FileNotFoundError):
            os.unlink(name, dir_fd=directory)


def _give(directory: int, uid: int | None, gid: int | None) -> None:
    """Make *uid* the owner of the open *directory*, and let *gid* write to it."""
    if os.fstat(directory).st_uid not in (os.geteuid(), uid):
        raise PermissionError(errno.EPERM, "it belongs to somebody else")
    if uid is not None or gid is not None:
        os.fchown(directory, -1 if uid is None else uid, -1 if gid is None else gid)
    # The umask applied when the directory was created.
    os.fchmod(directory, 0o750 if gid is None else 0o770)


def _require_address(path: str, remedy: str) -> None:
    """Raise CniError 7 if *path* does not fit into the address of a socket."""
    if (length := len(os.fsencode(path))) > _SOCKET_PATH_MAX:
        raise CniError(
            Code.INVALID_NETWORK_CONFIG,
            f"the path of the socket {path} has {length} bytes, and a socket's address takes "
            f"{_SOCKET_PATH_MAX}",
            remedy,
        )


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
