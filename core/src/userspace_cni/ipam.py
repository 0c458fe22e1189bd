"""Delegation to IPAM plugins (CNI SPEC, section 4)."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import signal
import stat
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from attrs import frozen

from userspace_cni.cni import result
from userspace_cni.cni.errors import CniError, Code
from userspace_cni.cni.result import Result
from userspace_cni.log import logger

# A plugin that is being replaced answers "text file busy" for a moment; libcni waits as long.
_BUSY_TRIES = 5
_BUSY_PAUSE = 1.0  # seconds
_PR_SET_PDEATHSIG = 1  # prctl(2)


class NotStarted(CniError):
    """The plugin has not run at all."""


@frozen(kw_only=True)
class Ipam:
    """The IPAM plugin of one network, called on behalf of one request."""

    #: The name of the executable.
    type: str
    #: The network configuration, complete and unmodified.
    config: Mapping[str, Any]
    cni_version: str
    #: Where to look for the executable, from CNI_PATH.
    path: tuple[str, ...]
    #: The environment of our own request.
    environ: Mapping[str, str]
    #: In seconds.
    timeout: float

    def add(self) -> Result:
        """Allocate addresses.

        Raises:
            CniError: the plugin's own error, or 105 when it does not behave as one.

        """
        output = self._run("ADD")
        try:
            raw = json.loads(output)
        except ValueError:
            raise self._misbehaved(f"ADD printed no JSON: {output[:200]!r}") from None
        raw = {} if raw is None else raw  # as libcni reads it
        stated = raw.get("cniVersion") if isinstance(raw, dict) else None
        version = stated if stated in result.VERSIONS else self.cni_version
        try:
            allocated = result.load(raw, version)
        except CniError as error:
            raise self._misbehaved(f"ADD printed a result that cannot be used: {error}") from error
        if not allocated.ips:
            raise self._misbehaved("ADD returned no IP address")
        return allocated

    def delete(self) -> None:
        """Free what :meth:`add` allocated; raises as it does."""
        self._run("DEL")

    def check(self) -> None:
        """Verify that the addresses are still ours; raises as :meth:`add` does."""
        self._run("CHECK")

    def status(self) -> None:
        """Ask whether addresses can be had; raises as :meth:`add` does."""
        self._run("STATUS")

    def gc(self) -> None:
        """Free what belongs to none of the valid attachments; raises as :meth:`add` does."""
        self._run("GC")

    def _run(self, command: str) -> bytes:
        executable = self._find()
        try:
            done = self._execute(executable, command)
        except subprocess.TimeoutExpired:
            raise CniError(
                Code.TRY_AGAIN_LATER,
                f"IPAM plugin {executable} did not answer {command} within {self.timeout:g} s",
            ) from None
        except OSError as error:
            raise NotStarted(
                Code.IPAM, f"IPAM plugin {executable} cannot be executed", error.strerror or ""
            ) from error
        if done.returncode == 0:
            return done.stdout
        raise self._error(command, done)

    def _execute(self, executable: Path, command: str) -> subprocess.CompletedProcess[bytes]:
        for remaining in reversed(range(_BUSY_TRIES)):
            try:
                return subprocess.run(  # noqa: S603  an absolute path, found in CNI_PATH
                    [executable],
                    input=json.dumps(self.config).encode(),
                    stdout=subprocess.PIPE,
                    env={**self.environ, "CNI_COMMAND": command},
                    timeout=self.timeout,
                    check=False,
                    preexec_fn=_die_with(os.getpid()),
                )
            except OSError as error:
                if error.errno != errno.ETXTBSY or not remaining:
                    raise
                logger.info("%s is being replaced, waiting", executable)
                time.sleep(_BUSY_PAUSE)
        raise AssertionError  # pragma: no cover  the last try returns or raises

    def _find(self) -> Path:
        if not self.path:
            raise NotStarted(
                Code.INVALID_ENVIRONMENT,
                f"CNI_PATH is needed to find the IPAM plugin {self.type!r}",
            )
        for directory in self.path:
            candidate = Path(directory, self.type)
            try:
                mode = candidate.stat().st_mode
            except OSError:
                continue
            if candidate.is_absolute() and stat.S_ISREG(mode) and os.access(candidate, os.X_OK):
                return candidate
        raise NotStarted(
            Code.IPAM,
            f"IPAM plugin {self.type!r} is in none of the directories of CNI_PATH "
            f"({':'.join(self.path)})",
            "install it there, or correct ipam.type",
        )

    def _error(self, command: str, done: subprocess.CompletedProcess[bytes]) -> CniError:
        """Return the error that the plugin printed, under its own code."""
        try:
            raw = json.loads(done.stdout)
            code, msg = int(raw["code"]), str(raw["msg"])
        except (ValueError, KeyError, TypeError):
            ending = (
                f"was killed by signal {-done.returncode}"
                if done.returncode < 0
                else f"exited with {done.returncode}"
            )
            return self._misbehaved(f"{command} {ending} and printed no error as JSON")
        return CniError(code or Code.IPAM, f"ipam {self.type}: {msg}", str(raw.get("details", "")))

    def _misbehaved(self, how: str) -> CniError:
        return CniError(Code.IPAM, f"ipam {self.type}: {how}", "see its messages on stderr")


def _die_with(parent: int) -> Callable[[], None]:
    """Return what a child does first, so that it ends when we are killed.

    A runtime that runs out of patience kills us alone, then sends DEL: a plugin that went on
    allocating after that DEL would leak what it allocates, and it would keep the runtime waiting
    for the standard error that it has from us.
    """
    prctl = ctypes.CDLL(None).prctl

    def child() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)

    return child
