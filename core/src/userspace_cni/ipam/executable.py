"""Delegation to an IPAM plugin's executable (CNI SPEC, section 4)."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from functools import cached_property
from math import inf
from pathlib import Path
from typing import Any, Self

from attrs import define

from userspace_cni import deadline
from userspace_cni.cni import result, valid
from userspace_cni.cni.errors import CniError, Code
from userspace_cni.cni.result import Result
from userspace_cni.cni.versions import SINCE, SUPPORTED, at_least
from userspace_cni.executable import ERR_MAX, OUT_MAX, Child, find
from userspace_cni.ipam.allocation import Allocation
from userspace_cni.log import logger

#: Every known plugin supports this version and older ones, so VERSION is not called for them.
_UNASKED = "1.0.0"
#: Minimum time left to start an ADD (absolute, and as a fraction of the timeout), because with less
#: the plugin would be killed half way.
_LEAST = 1.0  # seconds
_LEAST_PART = 0.1
#: Plugin-specific codes begin here (CNI SPEC, section 5 "Error"); codes are unsigned.
_OWN_CODES = 100
_CODE_MAX = 2**32 - 1

#: Returns the container IDs and interface names of other attachments that currently exist.
Others = Callable[[], Collection[tuple[str, str]]]

#: Answers to VERSION by path, each with the file's inode and time, which change if it is replaced.
_answered: dict[Path, tuple[tuple[int, int], tuple[str, ...]]] = {}


class NotStarted(CniError):
    """The plugin could not be started."""


@define(kw_only=True, slots=False)
class Executable:
    """The IPAM plugin of one network, called on behalf of one request."""

    #: The name of the executable.
    type: str
    #: The network configuration, complete and unmodified.
    config: Mapping[str, Any]
    cni_version: str
    #: Where to look for the executable, from CNI_PATH.
    path: tuple[str, ...]
    #: The environment of the current request.
    environ: Mapping[str, str]
    #: How long one call may take, in seconds, unless the request's deadline is earlier.
    timeout: float
    #: A file descriptor that holds the attachment's lock. The plugin inherits it, so that if this
    #: process dies, no other request works on the attachment until the plugin has ended.
    lock: int | None = None

    def add(self) -> Allocation:
        """Start the plugin for an ADD; see :class:`Allocation`.

        Raises:
            CniError: if the plugin cannot be executed, or too little time is left.

        """
        if deadline.left() < min(_LEAST, self.timeout * _LEAST_PART):
            raise CniError(
                Code.TRY_AGAIN_LATER,
                f"too little time is left to request an address from the IPAM plugin {self.type}",
                "the request has waited for something else; see the messages before this one",
            )
        return _Allocation(self)

    def delete(self) -> None:
        """Free the attachment's addresses.

        Raises:
            CniError: the plugin's error, or 105 if it violates the protocol.

        """
        self._run("DEL")

    def deletion(self) -> Deletion:
        """Start the plugin for a DEL; see :class:`Deletion`."""
        return Deletion(self)

    def check(self) -> None:
        """Verify that the addresses are still allocated; raise the errors of :meth:`delete`."""
        self._run_if_known("CHECK")

    def status(self) -> None:
        """Verify that addresses can be allocated; raise the errors of :meth:`delete`."""
        self._run_if_known("STATUS")

    def gc(self, others: Others) -> None:
        """Free addresses of attachments that are neither valid nor among the *others*.

        Raise the errors of :meth:`delete`.
        """
        self.config = valid.extended(self.config, others())
        self._run_if_known("GC")

    def _run(self, command: str) -> None:
        child = self.start(command)
        child.tell(self.stdin)
        self.finish(command, child)

    def _run_if_known(self, command: str) -> None:
        """Call *command*, unless the plugin supports no version that has it."""
        if at_least(self.spoken, SINCE[command]):
            self._run(command)
        else:
            logger.info(
                "ipam %s supports CNI up to %s, which has no %s: it is not called",
                self.type,
                self.spoken,
                command,
            )

    # -- output

    def allocated(self, output: bytes) -> Result:
        """Return the addresses in the *output* of an ADD; raise the errors of :meth:`delete`."""
        try:
            raw = json.loads(output)
        except (ValueError, RecursionError):
            raise self._misbehaved(f"ADD printed no JSON: {output[:200]!r}") from None
        raw = {} if raw is None else raw  # libcni reads null as an empty result
        stated = raw.get("cniVersion") if isinstance(raw, dict) else None
        version = stated if stated in result.VERSIONS else self.spoken
        try:
            allocated = result.load(raw, version)
        except CniError as error:
            raise self._misbehaved(f"ADD printed a result that cannot be used: {error}") from error
        if not allocated.ips:
            raise self._misbehaved("ADD returned no IP address")
        return allocated

    def finish(self, command: str, child: Child, until: float | None = None) -> bytes:
        """Wait for the end of *child*, which has its configuration, and return its output.

        Args:
            command: the CNI command, for error messages.
            child: the running plugin.
            until: when to kill it, on the monotonic clock; by default after the timeout.

        Raises:
            CniError: the errors of :meth:`delete`.

        """
        status = child.wait(deadline.after(self.timeout) if until is None else until)
        if status is None:
            child.kill()
            raise CniError(
                Code.TRY_AGAIN_LATER,
                f"IPAM plugin {self.type} did not answer {command} in time: "
                f"a request has {self.timeout:g} s",
                "see what the plugin waits for, or raise timeout in the node's settings",
            )
        if child.err:
            told = bytes(child.err[:ERR_MAX]).decode(errors="replace").rstrip()
            logger.warning("ipam %s says: %s", self.type, told)
        if len(child.out) > OUT_MAX:
            raise self._misbehaved(f"{command} printed more than {OUT_MAX} bytes")
        if status == 0:
            return bytes(child.out)
        raise self._error(command, status, bytes(child.out))

    def _error(self, command: str, status: int, out: bytes) -> CniError:
        """Return the error that the plugin printed; keep its code unless that is one of ours."""
        try:
            raw = json.loads(out)
            code, msg, details = raw["code"], str(raw["msg"]), str(raw.get("details", ""))
        except (ValueError, RecursionError, KeyError, TypeError):
            code = None
        if not isinstance(code, int) or isinstance(code, bool):
            ending = f"was killed by signal {-status}" if status < 0 else f"exited with {status}"
            return self._misbehaved(f"{command} {ending} and printed no error as JSON")
        if code == Code.INCOMPATIBLE_VERSION:
            return CniError(
                code,
                f"ipam {self.type} does not support CNI {self.spoken}: {msg}",
                f"install a newer one, or lower the network's cniVersion. {details}".rstrip(),
            )
        ours = code >= _OWN_CODES and code in {*map(int, Code)}
        if 0 < code <= _CODE_MAX and not ours:
            return CniError(code, f"ipam {self.type}: {msg}", details)
        return CniError(Code.IPAM, f"ipam {self.type} failed with its code {code}: {msg}", details)

    def _misbehaved(self, how: str) -> CniError:
        return CniError(Code.IPAM, f"ipam {self.type}: {how}", "see its messages on stderr")

    # -- input and version

    @cached_property
    def spoken(self) -> str:
        """The protocol version: the network's, or the newest older one that the plugin supports.

        Raises:
            CniError: 1 if the plugin supports only newer versions; otherwise the errors of
                :meth:`delete`.

        """
        if at_least(_UNASKED, self.cni_version):
            return self.cni_version
        known = self._known()
        if not known or self.cni_version in known:
            return self.cni_version
        older = SUPPORTED[: SUPPORTED.index(self.cni_version)]
        for version in reversed(older):
            if version in known:
                return version
        raise CniError(
            Code.INCOMPATIBLE_VERSION,
            f"ipam {self.type} supports CNI {', '.join(known)}, but the network has "
            f"{self.cni_version}",
            "install a plugin that supports the network's cniVersion, or change that",
        )

    def _known(self) -> tuple[str, ...]:
        """Return the versions that the plugin reports; empty if it does not report any."""
        found = self._executable.stat()
        identity = found.st_ino, found.st_mtime_ns
        answered = _answered.get(self._executable)
        if answered is not None and answered[0] == identity:
            return answered[1]
        child = self._launch("VERSION")
        child.tell(json.dumps({"cniVersion": self.cni_version}).encode())
        versions: tuple[str, ...] = ()
        try:
            listed = json.loads(self.finish("VERSION", child))["supportedVersions"]
            versions = tuple(version for version in listed if isinstance(version, str))
        except (ValueError, RecursionError, KeyError, TypeError) as error:
            logger.info("ipam %s does not report its versions: %s", self.type, error)
        except CniError as error:
            if error.code == Code.TRY_AGAIN_LATER:
                raise
            logger.info("ipam %s does not report its versions: %s", self.type, error)
        _answered[self._executable] = identity, versions
        return versions

    @property
    def stdin(self) -> bytes:
        """The plugin's standard input: the configuration in the plugin's version."""
        return json.dumps(self._in_version(self.spoken)).encode()

    def _in_version(self, version: str) -> Mapping[str, Any]:
        if version == self.cni_version:
            return self.config
        config = {**self.config, "cniVersion": version}
        if isinstance(previous := config.get("prevResult"), dict):
            stated = previous.get("cniVersion")
            own = stated if stated in result.VERSIONS else self.cni_version
            with suppress(CniError):  # a plugin that needs it will report it; DEL must not fail
                config["prevResult"] = result.dump(result.load(previous, own), version)
        return config

    # -- execution

    def start(self, command: str) -> Child:
        """Start the plugin, which waits for its configuration; raise NotStarted."""
        _ = self.spoken  # may call VERSION, which must end before the plugin is started
        return self._launch(command)

    def _launch(self, command: str) -> Child:
        try:
            environ = {**self.environ, "CNI_COMMAND": command}
            return Child(self._executable, environ, self.lock)
        except OSError as error:
            raise NotStarted(
                Code.IPAM,
                f"IPAM plugin {self._executable} cannot be executed",
                error.strerror or "",
            ) from error

    @cached_property
    def _executable(self) -> Path:
        if not self.path:
            raise NotStarted(
                Code.INVALID_ENVIRONMENT,
                f"CNI_PATH is needed to find the IPAM plugin {self.type!r}",
            )
        found = find(self.type, self.path)
        if found is None:
            raise NotStarted(
                Code.IPAM,
                f"IPAM plugin {self.type!r} is not in any directory of CNI_PATH "
                f"({':'.join(self.path)})",
                "install it there, or correct ipam.type",
            )
        return found


class Deletion:
    """A DEL of an IPAM plugin that gets its configuration only after everything else is removed.

    The plugin is started early, because starting it takes longer than freeing an address. This is a
    context manager, which kills a plugin that was not given its configuration.
    """

    def __init__(self, ipam: Executable) -> None:
        """Start the plugin of *ipam*; an error is raised by :meth:`carry_out`."""
        self._ipam = ipam
        self._child: Child | None = None
        self._problem: CniError | None = None
        try:
            self._child = ipam.start("DEL")
        except CniError as error:
            self._problem = error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._child is not None:
            self._child.kill()

    def carry_out(self) -> None:
        """Free the addresses; raise the errors of :meth:`Executable.delete`."""
        child, self._child = self._child, None
        if child is not None:
            child.tell(self._ipam.stdin)
            self._ipam.finish("DEL", child)
        elif self._problem is not None:
            raise self._problem


class _Allocation(Allocation):
    """An ADD of an IPAM plugin.

    The plugin is started early, because starting it takes longer than allocating an address. It
    waits for its configuration; if it is not given one, it is killed.
    """

    def __init__(self, ipam: Executable) -> None:
        """Start the plugin of *ipam* for an ADD; raise the errors of :meth:`Executable.add`."""
        super().__init__(ipam)
        self._ipam = ipam
        self._child = ipam.start("ADD")
        self._until = inf

    def __exit__(self, *_: object) -> None:
        if not self._begun:
            self._child.kill()

    def _begin(self) -> None:
        self._until = deadline.after(self._ipam.timeout)
        self._child.tell(self._ipam.stdin)

    def _wait(self) -> Result:
        return self._ipam.allocated(self._ipam.finish("ADD", self._child, self._until))
