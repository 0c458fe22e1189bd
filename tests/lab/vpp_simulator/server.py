"""The API socket of the simulator: clients, message numbers and injected failures."""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import struct
import threading
from typing import TYPE_CHECKING, Any, Self

from lab.vpp_simulator.model import Model, Refusal
from userspace_cni_vpp import definitions

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from pathlib import Path

_HEADER = struct.Struct(">QII")
_CREATE = struct.Struct(">HI64s")
_CREATED = struct.Struct(">HIIiIH")
_ENTRY = struct.Struct(">H64s")
_HEAD = struct.Struct(">HII")
_FIRST = 100
"""Below it are the numbers of the API's own messages."""
_SOCKCLNT_CREATE, _SOCKCLNT_CREATE_REPLY = 15, 16
_SOCKCLNT_DELETE, _SOCKCLNT_DELETE_REPLY = 17, 18
_OWN = {
    "sockclnt_create_455fb9c4": _SOCKCLNT_CREATE,
    "sockclnt_create_reply_35166268": _SOCKCLNT_CREATE_REPLY,
    "sockclnt_delete_8ac76db6": _SOCKCLNT_DELETE,
    "sockclnt_delete_reply_8f38b1ee": _SOCKCLNT_DELETE_REPLY,
}


class Simulator:
    """A simulated VPP at the API socket *path*; a context manager."""

    def __init__(
        self, path: Path, *, without: Collection[str] = (), crcs: Mapping[str, str] | None = None
    ) -> None:
        """Prepare a VPP that lacks the modules *without* (``memif``) and has other *crcs*."""
        self.path = path
        self.model = Model()
        #: The names of all requests since the start, in order.
        self.log: list[str] = []
        #: Number of clients that disconnected without deregistering.
        self.lost_clients = 0
        self.clients = 0
        self._without = without
        self._crcs = dict(crcs or {})
        self._hanging = threading.Event()
        self._kill_at: int | None = None
        self._drop_at: int | None = None
        self._refusing = False
        self._thread: threading.Thread | None = None
        self._lock = threading.RLock()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self.path.unlink(missing_ok=True)

    # -- life cycle

    def start(self) -> None:
        """Start with an empty configuration."""
        self.model = Model()
        self.log = []
        self.clients = 0
        self.path.unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(os.fspath(self.path))
        self._listener.listen(256)
        self._wake, self._woken = socket.socketpair()
        self._sessions: dict[socket.socket, _Session] = {}
        self._numbers = self._assign()
        self._names = {number: key for key, number in self._numbers.items()}
        self._ending = False
        self._thread = threading.Thread(target=self._run, name="vpp simulator", daemon=True)
        self._thread.start()

    def kill(self) -> None:
        """End at once: connections break, the state is lost, files stay."""
        if self._thread is not None:
            with contextlib.suppress(OSError):  # it may have died already
                self._wake.send(b"x")
            if threading.current_thread() is not self._thread:
                self._thread.join()
            self._thread = None

    def restart(self) -> None:
        """Kill the VPP and start it again."""
        self.kill()
        self.start()

    # -- failures

    def hang(self) -> None:
        """Stop answering until :meth:`resume`."""
        self._hanging.set()

    def resume(self) -> None:
        self._hanging.clear()
        self._wake.send(b".")

    def refuse(self) -> None:
        """Accept connections and close them at once, until the next start."""
        self._refusing = True

    def accept(self) -> None:
        self._refusing = False

    def kill_at(self, message: int | None) -> None:
        """Die when the *message*-th request from now on arrives, before executing it."""
        with self._lock:
            self._kill_at = None if message is None else len(self.log) + message

    def drop_at(self, message: int) -> None:
        """Execute the *message*-th request from now on, but close the connection without reply."""
        with self._lock:
            self._drop_at = len(self.log) + message

    # -- the thread

    def _assign(self) -> dict[str, int]:
        keys: list[str] = []
        for request in definitions.own().values():
            if request.module not in self._without:
                for message in request.messages:
                    crc = self._crcs.get(message.name, message.crc)
                    keys.append(f"{message.name}_{crc}")
        return {**_OWN, **{key: _FIRST + i for i, key in enumerate(dict.fromkeys(keys))}}

    def _run(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._listener, selectors.EVENT_READ)
            selector.register(self._woken, selectors.EVENT_READ)
            while not self._ending:
                for key, _ in selector.select():
                    ready = key.fileobj
                    assert isinstance(ready, socket.socket)
                    if ready is self._woken:
                        self._ending = self._ending or b"x" in self._woken.recv(16)
                    elif self._hanging.is_set():
                        self._hold(selector)
                    elif ready is self._listener:
                        self._accept(selector)
                    elif ready in self._sessions:
                        self._serve(ready, selector)
                    if self._ending:
                        break
        for client in self._sessions:
            client.close()
        self._sessions.clear()
        self._listener.close()
        self._woken.close()
        self._wake.close()
        self.model.close()

    def _hold(self, selector: selectors.BaseSelector) -> None:
        """Wait until we are woken."""
        del selector
        woken = self._woken.recv(16)
        self._ending = self._ending or b"x" in woken

    def _accept(self, selector: selectors.BaseSelector) -> None:
        client, _ = self._listener.accept()
        if self._refusing:
            client.close()
            return
        self._sessions[client] = _Session()
        selector.register(client, selectors.EVENT_READ)

    def _serve(self, client: socket.socket, selector: selectors.BaseSelector) -> None:
        session = self._sessions[client]
        try:
            data = client.recv(1 << 16)
        except OSError:
            data = b""
        session.received += data
        keep = bool(data)
        while keep and len(session.received) >= _HEADER.size:
            _, length, _ = _HEADER.unpack_from(session.received)
            end = _HEADER.size + length
            if len(session.received) < end:
                return
            message = bytes(session.received[_HEADER.size : end])
            del session.received[:end]
            keep = self._handle(client, session, message)
            if self._ending:
                return
        if not keep:
            if session.introduced and not session.said_goodbye:
                self.lost_clients += 1
            self.clients -= session.introduced
            selector.unregister(client)
            del self._sessions[client]
            client.close()

    def _handle(self, client: socket.socket, session: _Session, data: bytes) -> bool:
        """Answer one message; return whether the connection stays open."""
        number, _, context = _HEAD.unpack_from(data)
        if number == _SOCKCLNT_CREATE:
            session.introduced = True
            self.clients += 1
            table = b"".join(_ENTRY.pack(n, key.encode()) for key, n in self._numbers.items())
            (_, context, _) = _CREATE.unpack_from(data)
            head = _CREATED.pack(_SOCKCLNT_CREATE_REPLY, 0, context, 0, 7, len(self._numbers))
            _reply(client, head + table)
            return True
        if number == _SOCKCLNT_DELETE:
            session.said_goodbye = True
            _reply(client, struct.pack(">HIi", _SOCKCLNT_DELETE_REPLY, context, 0))
            return True
        key = self._names.get(number)
        if key is None:
            return False
        request = definitions.own()[key.rpartition("_")[0]]
        with self._lock:
            self.log.append(request.message.name)
            count = len(self.log)
            if self._kill_at is not None and count >= self._kill_at:
                self._kill_at = None
                self._ending = True
                return False
            drop = self._drop_at is not None and count >= self._drop_at
        answers = self._answers(request, data, context)
        if drop:
            self._drop_at = None
            return False
        for answer in answers:
            _reply(client, answer)
        return True

    def _answers(self, request: definitions.Request, data: bytes, context: int) -> list[bytes]:
        number = self._numbers[
            f"{request.reply.name}_{self._crcs.get(request.reply.name, request.reply.crc)}"
        ]
        handler: Any = getattr(self.model, request.message.name)
        bodies: list[dict[str, Any]]
        try:
            outcome = handler(request.message.unpack(data))
        except Refusal as refusal:
            bodies = [{"retval": refusal.retval, "sw_if_index": 0xFFFFFFFF}]
        else:
            bodies = outcome if request.stream else [{"retval": 0, **outcome}]
        head = {"_vl_msg_id": number, "context": context}
        return [request.reply.pack({**body, **head}) for body in bodies]


class _Session:
    def __init__(self) -> None:
        self.received = bytearray()
        self.introduced = False
        self.said_goodbye = False


def _reply(client: socket.socket, data: bytes) -> None:
    with contextlib.suppress(OSError):
        client.sendall(_HEADER.pack(0, len(data), 0) + data)
