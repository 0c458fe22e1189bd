"""Server of the daemon's Unix socket: one request per connection, only from root."""

from __future__ import annotations

import fcntl
import os
import resource
import select
import selectors
import signal
import socket
import stat
import struct
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from math import inf
from pathlib import Path
from threading import BoundedSemaphore

from attrs import define, field

from userspace_cni import files, frames
from userspace_cni.cni.answer import failure
from userspace_cni.cni.errors import CniError, Code, internal_error
from userspace_cni.daemon.pool import Job, Pool
from userspace_cni.frames import BadFrame, Reply
from userspace_cni.log import logger

#: How long a caller may take to send its request or to read the answer.
_PATIENCE = 5.0  # seconds
_BACKLOG = 4096
#: Requests that are processed at once. More threads would compete for the interpreter's lock at
#: every system call and serve fewer requests in total. Another request begins only if the running
#: ones use less processor time than the fraction _BUSY of an interval _LOOK, which means that they
#: are waiting for a plugin, a switch or the kernel.
_AT_ONCE = 2
_BUSY = 0.8
_LOOK = 0.002  # seconds
_LOOKS_MAX = 10
_WAIT_MAX = 3600.0  # seconds; epoll does not accept infinity
_CHUNK = 1 << 16  # bytes; nearly always a whole request
_CREDENTIALS = struct.Struct("3i")  # pid, uid, gid: unix(7), SO_PEERCRED

#: Serves a request. The arguments are the environment, the standard input, a function that returns
#: whether the caller still waits, and the time of arrival on the monotonic clock.
Serve = Callable[[Mapping[str, str], bytes, Callable[[], bool], float], Reply]


@contextmanager
def sole(path: Path) -> Iterator[None]:
    """Hold the lock file beside the socket *path*, which ensures that there is only one daemon.

    Raises:
        CniError: 5 if another daemon holds the lock, or the file cannot be created.

    """
    lock = path.with_name(f"{path.name}.lock")
    try:
        files.make(path.parent)
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise CniError(Code.IO_FAILURE, f"{lock} cannot be made", error.strerror or "") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.read(descriptor, 32).decode(errors="replace").strip()
            raise CniError(
                Code.IO_FAILURE,
                f"another daemon, process {owner}, owns {path}",
                "stop it first, or give this one a socket of its own (daemon.socket)",
            ) from None
        os.truncate(descriptor, 0)
        os.write(descriptor, b"%d\n" % os.getpid())
        yield
    finally:
        os.close(descriptor)


@define(eq=False)
class _Caller:
    """A connection whose request has not been received completely."""

    connection: socket.socket
    #: When it was accepted, on the monotonic clock.
    since: float
    received: bytearray = field(factory=bytearray)


class Server:
    """A server that listens from :meth:`open` on and serves in :meth:`run` until :meth:`stop`.

    A single thread accepts connections and reads requests, so a silent caller only costs a
    descriptor and does not delay others.
    """

    def __init__(self, path: Path, workers: int, patience: float, serve: Serve) -> None:
        """Set up the server.

        Args:
            path: the socket.
            workers: how many requests of one network are served at the same time.
            patience: how many seconds further requests wait before they are refused.
            serve: serves a request.

        """
        self._path = path
        self._patience = patience
        self._serve = serve
        self._pool = Pool(workers)
        self._turns = BoundedSemaphore(_AT_ONCE)
        self._stopping = False
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        self._woken, self._waker = socket.socketpair()
        for end in (self._woken, self._waker):
            end.setblocking(False)
        self._selector = selectors.DefaultSelector()
        #: Callers whose requests are incomplete, in the order of their arrival.
        self._callers: dict[int, _Caller] = {}
        self._ready: deque[Job] = deque()
        # The other half of the descriptors is for logs, plugins' pipes and switches.
        self._callers_max = max(resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2, 1)

    def open(self) -> None:
        """Listen on the socket; replace the socket of a dead daemon.

        The caller holds the lock of :func:`sole`, so an existing socket is not in use.

        Raises:
            CniError: 5 if the socket cannot be created.

        """
        try:
            with suppress(FileNotFoundError):
                if stat.S_ISSOCK(self._path.lstat().st_mode):
                    self._path.unlink()
            self._listener.bind(str(self._path))
            self._path.chmod(0o600)  # nobody can connect before listen()
            self._listener.listen(_BACKLOG)
        except OSError as error:
            raise CniError(
                Code.IO_FAILURE, f"cannot listen at {self._path}", error.strerror or str(error)
            ) from error

    def stop(self) -> None:
        """Make :meth:`run` return after pending requests; may be called by a signal handler."""
        self._stopping = True
        with suppress(BlockingIOError):
            self._waker.send(b"x")

    def run(self) -> None:
        """Serve until :meth:`stop`, then finish running requests and those not accepted yet."""
        self._selector.register(self._woken, selectors.EVENT_READ)
        with self._woken_by_signals():
            while not self._stopping:
                self._go_on(accepting=True)
            # New callers find no daemon, but those that have connected already get an answer.
            self._path.unlink(missing_ok=True)
            while self._accept():
                pass
            self._listen(wanted=False)
            self._listener.close()
            while self._callers or self._ready:
                self._go_on(accepting=False)
            self._pool.drain()

    def close(self) -> None:
        """Close the sockets."""
        self._selector.close()
        for end in (self._listener, self._woken, self._waker):
            end.close()

    @contextmanager
    def _woken_by_signals(self) -> Iterator[None]:
        # Otherwise a signal just before the wait would take effect only at the next connection.
        before = signal.set_wakeup_fd(self._waker.fileno(), warn_on_full_buffer=False)
        try:
            yield
        finally:
            signal.set_wakeup_fd(before)

    def _go_on(self, *, accepting: bool) -> None:
        """Handle pending events, or wait for the next one."""
        if accepting:
            self._listen(wanted=len(self._callers) < self._callers_max)
        now = time.monotonic()
        until = min(self._pool.refuse_late(now), self._refuse_slow(now))
        wait = 0 if self._ready else min(until - now, _WAIT_MAX)
        for key, _ in self._selector.select(max(wait, 0)):
            if key.fileobj is self._woken:
                with suppress(BlockingIOError):
                    self._woken.recv(64)
            elif key.fileobj is self._listener:
                self._accept()
            else:
                self._read(self._callers[key.fd])
        if self._ready:
            self._begin(self._ready.popleft())

    def _listen(self, *, wanted: bool) -> None:
        registered = self._listener.fileno() in self._selector.get_map()
        if wanted and not registered:
            self._selector.register(self._listener, selectors.EVENT_READ)
        elif registered and not wanted:
            self._selector.unregister(self._listener)

    def _accept(self) -> bool:
        try:
            connection, _ = self._listener.accept()
        except OSError as error:
            if not isinstance(error, BlockingIOError):
                logger.error("cannot accept a connection: %s", error)
                time.sleep(0.1)  # too many open files: some will be closed
            return False
        connection.setblocking(False)
        caller = _Caller(connection, time.monotonic())
        try:
            _require_root(connection)
        except CniError as error:
            _refuse(connection, error)
            return True
        self._callers[connection.fileno()] = caller
        self._selector.register(connection, selectors.EVENT_READ)
        self._read(caller)  # the request has often arrived already
        return True

    def _read(self, caller: _Caller) -> None:
        """Read available data of a request; queue the request if it is complete."""
        try:
            chunk = caller.connection.recv(_CHUNK)
        except BlockingIOError:
            return
        except OSError as error:
            self._let_go(caller, BadFrame(f"it is incomplete: {error}"))
            return
        caller.received += chunk
        try:
            environ, stdin = frames.read_request(_reader(caller.received))
        except _Incomplete:
            if not chunk:
                self._let_go(caller, BadFrame("it ends early"))
            return
        except CniError as error:
            self._let_go(caller, error)
            return
        self._let_go(caller)
        network = frames.network_of(stdin)
        until = caller.since + self._patience
        connection = caller.connection
        connection.setblocking(True)
        self._ready.append(
            Job(
                network,
                until,
                partial(self._converse, connection, environ, stdin, caller.since),
                partial(_refuse, connection),
            )
        )

    def _let_go(self, caller: _Caller, problem: CniError | None = None) -> None:
        """Stop reading from *caller*; answer with the *problem*, if there is one."""
        self._selector.unregister(caller.connection)
        del self._callers[caller.connection.fileno()]
        if problem is not None:
            _refuse(caller.connection, problem)

    def _refuse_slow(self, now: float) -> float:
        """Refuse callers that are too slow; return when to call this again."""
        for caller in tuple(self._callers.values()):
            if (until := caller.since + _PATIENCE) > now:
                return until
            self._let_go(caller, BadFrame(f"it is still incomplete after {_PATIENCE:g} s"))
        return inf

    def _begin(self, job: Job) -> None:
        has_turn = not self._pool.is_full(job.network) and self._turn()
        if has_turn:
            job.run = partial(_in_turn, job.run, self._turns)
        try:
            self._pool.submit(job)
        except RuntimeError as error:
            if has_turn:
                self._turns.release()
            job.refuse(internal_error(error))

    def _turn(self) -> bool:
        """Wait until another request may begin; return whether it occupies a turn."""
        for _ in range(_LOOKS_MAX):
            before = time.process_time()
            if self._turns.acquire(timeout=_LOOK):
                return True
            if time.process_time() - before < _LOOK * _BUSY:
                break
        return False

    def _converse(
        self, connection: socket.socket, environ: Mapping[str, str], stdin: bytes, since: float
    ) -> None:
        try:
            with connection:
                reply = self._serve(environ, stdin, partial(_waits, connection), since)
                connection.settimeout(_PATIENCE)
                connection.sendall(frames.dump_reply(reply))
        except OSError as error:
            logger.warning("a caller did not take its answer: %s", error)
        except Exception:  # noqa: BLE001  it would not be reported otherwise
            logger.exception("internal error")


def _in_turn(run: Callable[[], None], turns: BoundedSemaphore) -> None:
    try:
        run()
    finally:
        turns.release()


def _refuse(connection: socket.socket, error: CniError) -> None:
    """Answer with *error*, which always fits into the socket's buffer, and close."""
    logger.warning("refused a request: %s", error)
    answer = failure(error)
    with connection, suppress(OSError):
        connection.setblocking(False)
        connection.sendall(frames.dump_reply(Reply(answer.status, answer.out.encode(), b"")))


def _waits(connection: socket.socket) -> bool:
    """Return whether the caller still waits; it closes the connection when it ends."""
    poll = select.poll()
    poll.register(connection, 0)  # POLLHUP is always reported
    return not poll.poll(0)


def _require_root(connection: socket.socket) -> None:
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, _ = _CREDENTIALS.unpack(raw)
    if uid != 0:
        raise CniError(
            Code.INVALID_ENVIRONMENT,
            f"process {pid} of user {uid} may not call the daemon",
            "only root may",
        )


class _Incomplete(Exception):
    """The request has not been received completely."""


def _reader(received: bytearray) -> frames.Reader:
    """Return a function that reads from the beginning of *received*.

    The function raises :class:`_Incomplete` at the end of the data.
    """
    position = 0

    def read(length: int) -> bytes:
        nonlocal position
        position += length
        if position > len(received):
            raise _Incomplete
        return bytes(received[position - length : position])

    return read
