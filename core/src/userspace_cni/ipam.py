"""Delegation to IPAM plugins (CNI SPEC, section 4)."""

from __future__ import annotations

import errno
import json
import os
import selectors
import stat
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
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

_OUT_MAX = 1 << 20  # bytes; a result has a few hundred
_ERR_MAX = 1 << 16  # bytes
_LOOK = 0.05  # seconds between looks whether a plugin has ended that prints nothing


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

    def add(self, lock: int | None = None) -> Allocation:
        """Start to allocate addresses; what is done until they are needed costs no time.

        The plugin inherits the file descriptor *lock*: if we die, the attachment stays locked until
        the plugin has ended, and no DEL runs before that.

        Raises:
            NotStarted: when the plugin cannot be executed.

        """
        return Allocation(self, self._start("ADD", lock))

    def delete(self) -> None:
        """Free what :meth:`add` allocated.

        Raises:
            CniError: the plugin's own error, or 105 when it does not behave as one.

        """
        self._run("DEL")

    def check(self) -> None:
        """Verify that the addresses are still ours; raises as :meth:`delete` does."""
        self._run("CHECK")

    def status(self) -> None:
        """Ask whether addresses can be had; raises as :meth:`delete` does."""
        self._run("STATUS")

    def gc(self) -> None:
        """Free what belongs to none of the valid attachments; raises as :meth:`delete` does."""
        self._run("GC")

    def allocated(self, output: bytes) -> Result:
        """Return the addresses in the *output* of an ADD; raises as :meth:`delete` does."""
        try:
            raw = json.loads(output)
        except (ValueError, RecursionError):
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

    def _run(self, command: str) -> bytes:
        return self.finish(command, self._start(command))

    def _start(self, command: str, lock: int | None = None) -> subprocess.Popen[bytes]:
        executable = self._find()
        try:
            return self._execute(executable, command, lock)
        except OSError as error:
            raise NotStarted(
                Code.IPAM, f"IPAM plugin {executable} cannot be executed", error.strerror or ""
            ) from error

    def _execute(self, executable: Path, command: str, lock: int | None) -> subprocess.Popen[bytes]:
        for remaining in reversed(range(_BUSY_TRIES)):
            try:
                # No preexec_fn: without one the process is made by vfork(2), however large we are.
                with _as_file(json.dumps(self.config).encode()) as config:
                    return subprocess.Popen(  # noqa: S603  an absolute path, found in CNI_PATH
                        [executable],
                        stdin=config,
                        stdout=subprocess.PIPE,
                        stderr=subprocess.PIPE,
                        env={**self.environ, "CNI_COMMAND": command},
                        pass_fds=() if lock is None else (lock,),
                    )
            except OSError as error:
                if error.errno != errno.ETXTBSY or not remaining:
                    raise
                logger.info("%s is being replaced, waiting", executable)
                time.sleep(_BUSY_PAUSE)
        raise AssertionError  # pragma: no cover  the last try returns or raises

    def finish(self, command: str, process: subprocess.Popen[bytes]) -> bytes:
        """Wait for a call that was started, and return what it printed; raises as delete does."""
        with process:
            try:
                out, err = _printed(process, time.monotonic() + self.timeout)
            except subprocess.TimeoutExpired:
                process.kill()
                raise CniError(
                    Code.TRY_AGAIN_LATER,
                    f"IPAM plugin {self.type} did not answer {command} within {self.timeout:g} s",
                    "see what keeps it, or raise timeout in the node's settings",
                ) from None
            except BaseException:
                process.kill()
                raise
        if err:
            told = err[:_ERR_MAX].decode(errors="replace").rstrip()
            logger.warning("ipam %s says: %s", self.type, told)
        if len(out) > _OUT_MAX:
            raise self._misbehaved(f"{command} printed more than {_OUT_MAX} bytes")
        if process.returncode == 0:
            return out
        raise self._error(command, process.returncode, out)

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

    def _error(self, command: str, status: int, out: bytes) -> CniError:
        """Return the error that the plugin printed, under its own code."""
        try:
            raw = json.loads(out)
            code, msg = int(raw["code"]), str(raw["msg"])
        except (ValueError, OverflowError, RecursionError, KeyError, TypeError):
            ending = f"was killed by signal {-status}" if status < 0 else f"exited with {status}"
            return self._misbehaved(f"{command} {ending} and printed no error as JSON")
        return CniError(code or Code.IPAM, f"ipam {self.type}: {msg}", str(raw.get("details", "")))

    def _misbehaved(self, how: str) -> CniError:
        return CniError(Code.IPAM, f"ipam {self.type}: {how}", "see its messages on stderr")


class Allocation:
    """The addresses that an IPAM plugin is allocating, for one thread to wait for."""

    def __init__(self, ipam: Ipam, process: subprocess.Popen[bytes]) -> None:
        """Stand for the ADD of *ipam* that *process* carries out."""
        self._ipam = ipam
        self._process = process
        self._outcome: Result | CniError | None = None

    def result(self) -> Result:
        """Wait for the addresses and return them.

        Raises:
            CniError: the plugin's own error, or 105 when it does not behave as one.

        """
        if self._outcome is None:
            try:
                self._outcome = self._ipam.allocated(self._ipam.finish("ADD", self._process))
            except CniError as error:
                self._outcome = error
        if isinstance(self._outcome, CniError):
            raise self._outcome
        return self._outcome

    def undo(self) -> None:
        """Free what was allocated; raises as :meth:`Ipam.delete` does."""
        try:
            self.result()
        except CniError:
            # It may have allocated something all the same (SPEC, section 4). That this cannot be
            # undone by a plugin which does not work anyway is no reason to remember the attachment:
            # the runtime's own DEL calls it again.
            try:
                self._ipam.delete()
            except CniError as error:
                logger.warning("IPAM DEL after a failed IPAM ADD: %s", error)
        else:
            self._ipam.delete()


def _printed(process: subprocess.Popen[bytes], deadline: float) -> tuple[bytes, bytes]:
    """Return what *process* prints until it ends; of too much only the beginning.

    Until it ends, not until its pipes do: what it has started and left running may hold them open.

    Raises:
        subprocess.TimeoutExpired: it has not ended at *deadline*, of the monotonic clock.

    """
    out, err = bytearray(), bytearray()
    with selectors.DefaultSelector() as selector:
        for stream, kept, limit in (
            (process.stdout, out, _OUT_MAX),
            (process.stderr, err, _ERR_MAX),
        ):
            assert stream is not None
            selector.register(stream, selectors.EVENT_READ, (kept, limit))
        while selector.get_map():
            ended = process.poll() is not None  # asked first: all that it printed is there then
            ready = selector.select(0 if ended else _LOOK)
            if ended and not ready:
                break
            for key, _ in ready:
                chunk = os.read(key.fd, 1 << 16)
                kept, limit = key.data
                if not chunk:
                    selector.unregister(key.fileobj)
                elif len(kept) <= limit:
                    kept += chunk
            if time.monotonic() >= deadline:
                raise subprocess.TimeoutExpired(process.args, 0)
    process.wait(max(deadline - time.monotonic(), 0))
    return bytes(out), bytes(err)


@contextmanager
def _as_file(content: bytes) -> Iterator[int]:
    """Hold *content* in a file: unlike a pipe's, its writer never waits for the reader."""
    descriptor = os.memfd_create("stdin", os.MFD_CLOEXEC)
    try:
        with open(descriptor, "wb", closefd=False) as file:
            file.write(content)
        os.lseek(descriptor, 0, os.SEEK_SET)
        yield descriptor
    finally:
        os.close(descriptor)
