"""The daemon's socket: one request a connection, root's alone, served by a pool of threads."""

from __future__ import annotations

import fcntl
import os
import select
import signal
import socket
import stat
import struct
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from threading import BoundedSemaphore

from userspace_cni import exchange
from userspace_cni.cni.errors import CniError, Code
from userspace_cni.log import logger
from userspace_cni.node import protocol
from userspace_cni.node.protocol import BadFrame, Reply

#: A shim writes its request, and reads the answer, at once.
_PATIENCE = 5.0  # seconds
_BACKLOG = 4096
#: Threads that work at once take the interpreter's lock from each other at every system call, and
#: serve fewer requests together than two. One more begins when those two take less processor time
#: than this part of a look: they wait for a plugin, a switch or the kernel.
_AT_ONCE = 2
_BUSY = 0.8
_LOOK = 0.002  # seconds
_LOOKS_MAX = 10
_CHUNK = 1 << 16  # bytes; a request as a whole, nearly always
_CREDENTIALS = struct.Struct("3i")  # pid, uid, gid: unix(7), SO_PEERCRED

#: Given the environment, standard input, and what tells whether the caller still waits.
Serve = Callable[[Mapping[str, str], bytes, Callable[[], bool]], Reply]


@contextmanager
def sole(path: Path) -> Iterator[None]:
    """Be the only daemon that owns the socket *path*; a lock beside it tells, and by whom.

    Raises:
        CniError: 5 when another lives, or the lock cannot be made.

    """
    lock = path.with_name(f"{path.name}.lock")
    try:
        path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
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
                "stop it first, or give this one a socket of its own (node.socket)",
            ) from None
        os.truncate(descriptor, 0)
        os.write(descriptor, b"%d\n" % os.getpid())
        yield
    finally:
        os.close(descriptor)


class Server:
    """Listens from :meth:`open` on; :meth:`run` serves until :meth:`stop`."""

    def __init__(self, path: Path, workers: int, serve: Serve) -> None:
        """Serve at most *workers* requests at once; further connections wait in the kernel."""
        self._path = path
        self._workers = workers
        self._serve = serve
        self._free = BoundedSemaphore(workers)
        self._turns = BoundedSemaphore(_AT_ONCE)
        self._stopping = False
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        self._woken, self._waker = socket.socketpair()
        for end in (self._woken, self._waker):
            end.setblocking(False)

    def open(self) -> None:
        """Listen. What lies at the path is a dead daemon's: see :func:`sole`.

        Raises:
            CniError: 5 when the socket cannot be made.

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
        """Let :meth:`run` return once what has come is served; may be called by a signal."""
        self._stopping = True
        with suppress(BlockingIOError):
            self._waker.send(b"x")

    def run(self) -> None:
        """Serve until :meth:`stop`, then finish what runs, and what still waits to be accepted."""
        with ThreadPoolExecutor(self._workers, "request") as pool, self._woken_by_signals():
            while not self._stopping:
                select.select((self._listener, self._woken), (), ())
                with suppress(BlockingIOError):
                    self._woken.recv(64)
                self._accept(pool)
            # Whoever comes now finds no daemon; whoever has come before gets an answer.
            self._path.unlink(missing_ok=True)
            while self._accept(pool):
                pass
            self._listener.close()

    def close(self) -> None:
        """Close what is open."""
        for end in (self._listener, self._woken, self._waker):
            end.close()

    @contextmanager
    def _woken_by_signals(self) -> Iterator[None]:
        # One that comes just before select(2) would wait for the next connection otherwise.
        before = signal.set_wakeup_fd(self._waker.fileno(), warn_on_full_buffer=False)
        try:
            yield
        finally:
            signal.set_wakeup_fd(before)

    def _accept(self, pool: ThreadPoolExecutor) -> bool:
        self._free.acquire()
        try:
            connection, _ = self._listener.accept()
        except OSError as error:
            self._free.release()
            if not isinstance(error, BlockingIOError):
                logger.error("cannot accept a connection: %s", error)
                time.sleep(0.1)  # too many open files: some will be closed
            return False
        pool.submit(self._converse, connection, self._turn())
        return True

    def _turn(self) -> bool:
        """Wait until one more request can begin; tell whether it has one of the turns."""
        for _ in range(_LOOKS_MAX):
            before = time.process_time()
            if self._turns.acquire(timeout=_LOOK):
                return True
            if time.process_time() - before < _LOOK * _BUSY:
                break
        return False

    def _converse(self, connection: socket.socket, has_turn: bool) -> None:
        try:
            with connection:
                reply = self._reply(connection)
                connection.settimeout(_PATIENCE)
                connection.sendall(protocol.dump_reply(reply))
        except OSError as error:
            logger.warning("a caller did not take its answer: %s", error)
        except Exception:  # noqa: BLE001  nobody else would tell of it
            logger.exception("internal error")
        finally:
            if has_turn:
                self._turns.release()
            self._free.release()

    def _reply(self, connection: socket.socket) -> Reply:
        try:
            _require_root(connection)
            environ, stdin = protocol.read_request(_reader(connection))
        except CniError as error:
            logger.warning("refused a request: %s", error)
            answer = exchange.failure(error)
            return Reply(answer.status, answer.out.encode(), b"")
        return self._serve(environ, stdin, partial(_waits, connection))


def _waits(connection: socket.socket) -> bool:
    """Tell whether the caller is there: it closes its end when it has the answer, or dies."""
    poll = select.poll()
    poll.register(connection, 0)  # POLLHUP is told unasked: both directions are closed
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


def _reader(connection: socket.socket) -> protocol.Reader:
    """Return what reads from *connection*, within :data:`_PATIENCE` from now on in all."""
    deadline = time.monotonic() + _PATIENCE
    received = bytearray()

    def read(length: int) -> bytes:
        while len(received) < length:
            connection.settimeout(max(deadline - time.monotonic(), 0.001))
            try:
                chunk = connection.recv(max(length - len(received), _CHUNK))
            except OSError as error:
                raise BadFrame(f"it stopped half way: {error}") from None
            if not chunk:
                raise BadFrame("it ends early")
            received.extend(chunk)
        wanted = bytes(received[:length])
        del received[:length]
        return wanted

    return read
