"""Delegation to IPAM plugins (CNI SPEC, section 4)."""

from __future__ import annotations

import errno
import json
import os
import selectors
import signal
import stat
import subprocess
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from attrs import frozen

from userspace_cni.cni import result
from userspace_cni.cni.errors import CniError, Code
from userspace_cni.cni.result import Result
from userspace_cni.log import logger

# A plugin that is being replaced answers "text file busy" for a moment; libcni waits as long.
_BUSY_TRIES = 5
_BUSY_PAUSE = 1.0  # seconds
_PR_SET_PDEATHSIG = 1  # prctl(2)

_OUT_MAX = 1 << 20  # bytes; a result has a few hundred
_ERR_MAX = 1 << 16  # bytes


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
    #: A plugin that runs ends when the thread ends that started it. Of a process that may be killed
    #: with its request: else a plugin that hangs would keep the attachment locked.
    ends_with_us: bool = False

    def add(self, lock: int | None = None) -> Allocation:
        """Start to allocate addresses: see :class:`Allocation`.

        The plugin inherits the file descriptor *lock*: if we die, the attachment stays locked until
        the plugin has ended, and no DEL runs before that.

        Raises:
            NotStarted: when the plugin cannot be executed.

        """
        return Allocation(self, self.launch("ADD", lock))

    def delete(self) -> None:
        """Free what :meth:`add` allocated.

        Raises:
            CniError: the plugin's own error, or 105 when it does not behave as one.

        """
        self._run("DEL")

    def deletion(self) -> Deletion:
        """Start to free what :meth:`add` allocated; see :class:`Deletion`."""
        return Deletion(self)

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

    @property
    def stdin(self) -> bytes:
        """What the plugin is given on standard input."""
        return json.dumps(self.config).encode()

    def _run(self, command: str) -> None:
        self.finish(command, self.launch(command), self.stdin)

    def launch(self, command: str, lock: int | None = None) -> subprocess.Popen[bytes]:
        """Start the plugin, which waits for its configuration; raises NotStarted."""
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
                # Without preexec_fn the process is made by vfork(2), however large we are.
                return subprocess.Popen(  # noqa: S603  an absolute path, found in CNI_PATH
                    [executable],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    bufsize=0,
                    env={**self.environ, "CNI_COMMAND": command},
                    pass_fds=() if lock is None else (lock,),
                    preexec_fn=_end_with(os.getpid()) if self.ends_with_us else None,  # noqa: PLW1509
                )
            except OSError as error:
                if error.errno != errno.ETXTBSY or not remaining:
                    raise
                logger.info("%s is being replaced, waiting", executable)
                time.sleep(_BUSY_PAUSE)
        raise AssertionError  # pragma: no cover  the last try returns or raises

    def finish(self, command: str, process: subprocess.Popen[bytes], stdin: bytes = b"") -> bytes:
        """Give a plugin that was started the rest of its *stdin*, and return what it prints.

        Raises as :meth:`delete` does.
        """
        with process:
            try:
                out, err = _exchanged(process, stdin, time.monotonic() + self.timeout)
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


def _end_with(parent: int) -> Callable[[], None]:
    """Return what a child does first, so that it ends when we are killed."""
    import ctypes

    prctl = ctypes.CDLL(None).prctl

    def child() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)

    return child


class Deletion:
    """An IPAM plugin that is told what to free, by its configuration, when all else is removed.

    Until then it has started, which takes it longer than to free an address. A context manager,
    which ends a plugin that was not told.
    """

    def __init__(self, ipam: Ipam) -> None:
        """Start the plugin of *ipam*; that it cannot be started is told later."""
        self._ipam = ipam
        self._process: subprocess.Popen[bytes] | None = None
        self._problem: CniError | None = None
        try:
            self._process = ipam.launch("DEL")
        except CniError as error:
            self._problem = error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            with self._process as process:
                process.kill()

    def carry_out(self) -> None:
        """Free the addresses; raises as :meth:`Ipam.delete` does."""
        process, self._process = self._process, None
        if process is not None:
            self._ipam.finish("DEL", process, self._ipam.stdin)
        elif self._problem is not None:
            raise self._problem


class Allocation:
    """The addresses that an IPAM plugin allocates, for one thread to wait for.

    The plugin has started, which takes it longer than to find an address, and does nothing before
    it is told to. A context manager, which ends a plugin that was not told.
    """

    def __init__(self, ipam: Ipam, process: subprocess.Popen[bytes]) -> None:
        """Stand for the ADD of *ipam* that *process* carries out."""
        self._ipam = ipam
        self._process = process
        self._left: bytes | None = None
        self._outcome: Result | CniError | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._left is None:
            with self._process as process:
                process.kill()

    def begin(self) -> None:
        """Tell the plugin to allocate. Only from now on there may be something to :meth:`undo`."""
        assert self._process.stdin is not None  # noqa: S101  a pipe
        os.set_blocking(self._process.stdin.fileno(), False)
        self._left = self._ipam.stdin
        with suppress(BrokenPipeError):
            # A pipe takes 64 KiB; what is more comes with the wait.
            self._left = self._left[os.write(self._process.stdin.fileno(), self._left) :]
        if not self._left:
            self._process.stdin.close()

    def result(self) -> Result:
        """Wait for the addresses and return them.

        Raises:
            CniError: the plugin's own error, or 105 when it does not behave as one.

        """
        if self._outcome is None:
            try:
                self._outcome = self._ipam.allocated(
                    self._ipam.finish("ADD", self._process, self._left or b"")
                )
            except CniError as error:
                self._outcome = error
        if isinstance(self._outcome, CniError):
            raise self._outcome
        return self._outcome

    @property
    def failed(self) -> bool:
        """Whether it is known that no address was given."""
        return isinstance(self._outcome, CniError)

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


def _exchanged(
    process: subprocess.Popen[bytes], config: bytes, deadline: float
) -> tuple[bytes, bytes]:
    """Give *config* to *process*; return what it prints until it ends, of too much the beginning.

    Until it ends, not until its pipes do: what it has started and left running may hold them open.

    Raises:
        subprocess.TimeoutExpired: it has not ended at *deadline*, of the monotonic clock.

    """
    out, err = bytearray(), bytearray()
    ending = os.pidfd_open(process.pid)
    with open(ending, "rb", buffering=0) as end, selectors.PollSelector() as selector:
        selector.register(end, selectors.EVENT_READ)
        selector.register(process.stdout, selectors.EVENT_READ, _reader(out, _OUT_MAX))  # type: ignore[arg-type]
        selector.register(process.stderr, selectors.EVENT_READ, _reader(err, _ERR_MAX))  # type: ignore[arg-type]
        if process.stdin is not None and not process.stdin.closed:
            os.set_blocking(process.stdin.fileno(), False)
            selector.register(process.stdin, selectors.EVENT_WRITE, _writer(config))
        ended = False
        while True:
            ready = selector.select(0 if ended else deadline - time.monotonic())
            if not ready:
                break
            for key, _ in ready:
                if key.fileobj is end:
                    selector.unregister(end)
                    ended = True  # all that it has printed is there now
                elif key.data(key.fd):
                    selector.unregister(key.fileobj)
                    key.fileobj.close()  # type: ignore[union-attr]
            if time.monotonic() >= deadline:
                break
    if not ended:
        raise subprocess.TimeoutExpired(process.args, 0)
    process.wait()
    return bytes(out), bytes(err)


def _reader(kept: bytearray, limit: int) -> Callable[[int], bool]:
    """Return what reads a pipe into *kept* up to *limit*, and tells whether it has ended."""

    def read(pipe: int) -> bool:
        chunk = os.read(pipe, 1 << 16)
        if len(kept) <= limit:
            kept.extend(chunk)
        return not chunk

    return read


def _writer(data: bytes) -> Callable[[int], bool]:
    """Return what writes *data* into a pipe, and tells whether nothing is left for its reader."""
    left = memoryview(data)

    def write(pipe: int) -> bool:
        nonlocal left
        try:
            left = left[os.write(pipe, left) :]
        except BrokenPipeError:
            return True
        return not left

    return write
