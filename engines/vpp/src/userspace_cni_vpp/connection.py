"""Client of VPP's binary API: a stream of messages over a Unix socket.

Each message begins with a header of 16 bytes, of which only the length is used, and the message's
number. VPP assigns the numbers when it starts, and sends a table of names, CRCs and numbers when a
client connects.
"""

from __future__ import annotations

import atexit
import os
import secrets
import select
import socket
import struct
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from attrs import define, field

from userspace_cni.api import DataplaneError, DataplaneUnavailable
from userspace_cni_vpp import definitions, retvals
from userspace_cni_vpp.definitions import PLUGINS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from userspace_cni_vpp.definitions import Request

_CLIENT = b"userspace-cni"
# A client needs these messages to get the table, so they have fixed numbers or a fixed name.
_SOCKCLNT_CREATE = 15
_SOCKCLNT_CREATE_REPLY = 16
_SOCKCLNT_DELETE = "sockclnt_delete_8ac76db6"

_HEADER = struct.Struct(">QII")
_CREATE = struct.Struct(">HI64s")
_CREATED = struct.Struct(">HIIiIH")
_ENTRY = struct.Struct(">H64s")
_DELETE = struct.Struct(">HIII")
_NUMBER_AND_CONTEXT = struct.Struct(">HI")
_RETVAL = struct.Struct(">i")
_MESSAGE_MAX = 64 << 20  # bytes; a longer message means that the stream is corrupt
_CHUNK = 1 << 16  # bytes per read; a list consists of many small messages
#: How long to wait for VPP when a connection is closed, in seconds.
_FAREWELL = 1.0


class Refused(DataplaneError):
    """VPP answered a request with an error."""

    def __init__(self, request: str, retval: int, subject: str = "") -> None:
        about = f" of {subject}" if subject else ""
        super().__init__(
            f"VPP refuses {request}{about}: {retvals.describe(retval)}",
            "see VPP's log for details: vppctl show logging",
        )
        self.retval = retval


class Connection:
    """A connection to VPP. It is thread-safe; requests are serialized."""

    def __init__(self, path: str, timeout: float, api_dir: str) -> None:
        """Connect.

        Args:
            path: the API socket.
            timeout: how many seconds each answer may take.
            api_dir: directory with the API files of this VPP, which are read only for messages
                whose CRC differs from ours.

        Raises:
            DataplaneUnavailable: if VPP does not answer.

        """
        self.path = path
        #: Identifies this connection and so this run of VPP: a restart closes all connections.
        self.id = secrets.token_hex(8)
        self._timeout = timeout
        self._received = bytearray()
        self._lock = threading.RLock()
        self._context = 0
        self._socket: socket.socket | None = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(timeout)
        self._pid = os.getpid()
        try:
            self._socket.connect(path)
            self._client, self._table = self._introduce()
            self._offered = frozenset(key.rpartition("_")[0] for key in self._table)
        except BaseException as error:
            self._drop()
            if isinstance(error, OSError):
                raise self._unreachable(error) from error
            raise
        self._requests, self._unusable = self._agree(api_dir)

    @property
    def usable(self) -> bool:
        """Whether the connection is open and was opened by this process."""
        if self._pid != os.getpid():
            self._drop()  # closes only this process's copy of the descriptor
            return False
        with self._lock:
            try:
                while self._socket is not None and self._readable():
                    self._receive(time.monotonic() + self._timeout)  # such as a keepalive
            except OSError:
                self._drop()
            return self._socket is not None

    def duplicate(self) -> int:
        """Return a duplicate of the socket's descriptor, which hangs up when the connection ends.

        Raises:
            DataplaneUnavailable: if the connection has ended.

        """
        with self._lock:
            if self._socket is None:
                raise self._gone("the last request")
            return os.dup(self._socket.fileno())

    def has(self, request: str) -> bool:
        """Return whether the running VPP offers *request*, even if its definition is unusable.

        If the request's plugin is not loaded, none of the plugin's objects exist either.
        """
        return request in self._offered

    def require(self, *requests: str) -> None:
        """Raise DataplaneError for the first of *requests* that cannot be used with this VPP."""
        for request in requests:
            if request not in self._requests:
                raise DataplaneError(*self._unusable[request])

    def call(self, request: str, *, subject: str = "", **fields: Any) -> Any:
        """Send a request and return VPP's reply.

        Args:
            request: name of the message.
            subject: the object concerned, for error messages.
            fields: fields of the message.

        Raises:
            Refused: if the reply's ``retval`` is an error.
            DataplaneUnavailable: if VPP does not answer in time or closes the connection.

        """
        found = self._request(request)
        with self._lock:
            expected = self._number(found.reply), self._send(found, fields)
            deadline = time.monotonic() + self._timeout
            while True:
                number, context, data = self._next(request, deadline)
                if (number, context) == expected:
                    break
        reply = found.reply.unpack(data)
        if reply.retval < 0:
            raise Refused(request, reply.retval, subject)
        return reply

    def dump(
        self, request: str, *, containing: Sequence[bytes] | None = None, **fields: Any
    ) -> list[Any]:
        """Send a request for a list and return VPP's replies.

        Args:
            request: name of the message.
            containing: if given, replies without any of these byte strings are dropped undecoded,
                because decoding costs more than receiving.
            fields: fields of the message.

        Raises:
            DataplaneUnavailable: if VPP does not answer in time or closes the connection.

        """
        found = self._request(request)
        ping = self._requests["control_ping"]
        answers = []
        with self._lock:
            expected = self._number(found.reply), self._send(found, fields)
            end = self._number(ping.reply), self._send(ping, {})
            deadline = time.monotonic() + self._timeout
            while True:
                number, context, data = self._next(request, deadline)
                if (number, context) == end:
                    break
                if (number, context) == expected and (
                    containing is None or any(part in data for part in containing)
                ):
                    answers.append(data)
        return [found.reply.unpack(answer) for answer in answers]

    def close(self) -> None:
        """Deregister the client and close the connection.

        VPP can hang forever if sixteen clients disconnect at the same time without a
        ``sockclnt_delete`` (VPP 26.10-rc0, vlib_file_poll).
        """
        with self._lock:
            if self._socket is not None and self._pid == os.getpid():
                try:
                    number = self._table[_SOCKCLNT_DELETE]
                    self._write(_DELETE.pack(number, self._client, 0, self._client), _FAREWELL)
                    # Any message or error means that VPP has read the request or has ended.
                    self._receive(time.monotonic() + _FAREWELL)
                except (OSError, KeyError, DataplaneUnavailable):
                    pass
            self._drop()

    # -- handshake

    def _introduce(self) -> tuple[int, Mapping[str, int]]:
        """Register; return the client index and VPP's table of message numbers."""
        self._write(_CREATE.pack(_SOCKCLNT_CREATE, 1, _CLIENT))
        data = self._receive(time.monotonic() + self._timeout)
        number, _, _, response, client, count = _CREATED.unpack_from(data)
        if number != _SOCKCLNT_CREATE_REPLY or response < 0:
            raise DataplaneUnavailable(
                f"VPP at {self.path} accepts no client", "is it another program's socket?"
            )
        table = _ENTRY.iter_unpack(data[_CREATED.size : _CREATED.size + count * _ENTRY.size])
        return client, {name.rstrip(b"\0").decode(): number for number, name in table}

    def _agree(self, api_dir: str) -> tuple[dict[str, Request], dict[str, tuple[str, str]]]:
        """Return the usable requests, and an error text for each of the others."""
        usable = {n: r for n, r in definitions.own().items() if self._has(r)}
        others = [r for n, r in definitions.own().items() if n not in usable]
        changed = [r for r in others if r.message.name in self._offered]
        failure = "they do not contain it"
        if changed:
            try:
                theirs = definitions.of_running(api_dir, changed)
                usable |= {n: r for n, r in theirs.items() if self._has(r)}
            except (OSError, ValueError, KeyError) as error:
                failure = str(error)
        reasons = {}
        for request in others:
            name = request.message.name
            if request in changed:
                reasons[name] = (
                    f"the running VPP has another definition of {name} than this engine",
                    (
                        f"its API files could not be used from {api_dir}: {failure}; set "
                        "api_dir in [engines.vpp] of the node's settings"
                    ),
                )
            elif request.module in PLUGINS:
                reasons[name] = (
                    f"the running VPP has no {name}: {PLUGINS[request.module]} is not loaded",
                    (
                        "add this line to the plugins section of VPP's startup.conf, and restart "
                        f"VPP: plugin {PLUGINS[request.module]} {{ enable }}"
                    ),
                )
            else:
                reasons[name] = (
                    f"the running VPP has no {name}",
                    "it is older than VPP 23.06; upgrade it",
                )
        return usable, reasons

    def _has(self, request: Request) -> bool:
        return all(message.key in self._table for message in request.messages)

    # -- messages

    def _request(self, name: str) -> Request:
        self.require(name)
        return self._requests[name]

    def _number(self, message: definitions.Message) -> int:
        return self._table[message.key]

    def _send(self, request: Request, fields: Mapping[str, Any]) -> int:
        """Send *request* and return its context, which VPP's replies contain."""
        self._context = self._context % 0xFFFFFFFF + 1
        head = {
            "_vl_msg_id": self._number(request.message),
            "client_index": self._client,
            "context": self._context,
        }
        data = request.message.pack({**fields, **head})
        try:
            self._write(data)
        except OSError as error:
            self._drop()
            raise self._gone(request.message.name) from error
        return self._context

    def _next(self, request: str, deadline: float) -> tuple[int, int, bytes]:
        try:
            data = self._receive(deadline)
        except TimeoutError as error:
            self.close()
            raise DataplaneUnavailable(
                f"VPP at {self.path} has not answered {request} within {self._timeout:g} s",
                "it hangs or is very busy: see vppctl show runtime; restart VPP if that hangs too",
            ) from error
        except OSError as error:
            self._drop()
            raise self._gone(request) from error
        except BaseException:
            # The stream is at an unknown position: within a message or within a list.
            self.close()
            raise
        number, context = _NUMBER_AND_CONTEXT.unpack_from(data)
        return number, context, data

    def _write(self, data: bytes, timeout: float | None = None) -> None:
        if self._socket is None:
            raise BrokenPipeError
        self._socket.settimeout(timeout or self._timeout)
        self._socket.sendall(_HEADER.pack(0, len(data), 0) + data)

    def _readable(self) -> bool:
        # poll(2), because select(2) is limited to descriptors below 1024.
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)  # type: ignore[arg-type]
        return bool(self._received or poll.poll(0))

    def _receive(self, deadline: float) -> bytes:
        self._fill(_HEADER.size, deadline)
        _, length, _ = _HEADER.unpack_from(self._received)
        if not _NUMBER_AND_CONTEXT.size <= length <= _MESSAGE_MAX:
            raise ConnectionError(f"a message of {length} bytes")
        end = _HEADER.size + length
        self._fill(end, deadline)
        data = bytes(self._received[_HEADER.size : end])
        del self._received[:end]
        return data

    def _fill(self, length: int, deadline: float) -> None:
        """Read until the buffer has *length* bytes."""
        while len(self._received) < length:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError
            if self._socket is None:
                raise BrokenPipeError
            self._socket.settimeout(left)
            part = self._socket.recv(_CHUNK)
            if not part:
                raise ConnectionResetError
            self._received += part

    def _drop(self) -> None:
        if self._socket is not None:
            if self._pid == os.getpid():
                with suppress(OSError):  # VPP may have closed the connection already
                    self._socket.shutdown(socket.SHUT_RDWR)  # also affects duplicates
            self._socket.close()
            self._socket = None

    def _unreachable(self, error: OSError) -> DataplaneUnavailable:
        words = "it does not answer" if isinstance(error, TimeoutError) else error.strerror
        return DataplaneUnavailable(
            f"cannot connect to VPP at {self.path}: {words or 'it closed the connection'}",
            "is VPP running (systemctl status vpp), with that socket in the socksvr section of its "
            "startup.conf? Another path is set by api_socket in [engines.vpp] of the node's "
            "settings",
        )

    def _gone(self, request: str) -> DataplaneUnavailable:
        return DataplaneUnavailable(
            f"VPP at {self.path} closed the connection during {request}",
            "it has been restarted, or has crashed: see systemctl status vpp",
        )


@define(eq=False)
class _Endpoint:
    """The connection to one VPP, and the lock that must be held to open it."""

    lock: threading.Lock = field(factory=threading.Lock)
    connection: Connection | None = None


_endpoints: dict[tuple[str, str], _Endpoint] = {}


def connect(path: str, timeout: float, api_dir: str) -> Connection:
    """Return this process's connection to the VPP at *path*; open one if there is none.

    The arguments are those of :class:`Connection`.

    Raises:
        DataplaneUnavailable: if VPP does not answer within *timeout* seconds.

    """
    # setdefault() is atomic.
    endpoint = _endpoints.setdefault((path, api_dir), _Endpoint())
    # The timeout keeps threads from waiting one after the other for a VPP that hangs.
    if not endpoint.lock.acquire(timeout=timeout):
        raise DataplaneUnavailable(
            f"VPP at {path} has not answered within {timeout:g} s",
            "other requests are waiting for it to accept a connection: see vppctl show runtime",
        )
    try:
        if endpoint.connection is None or not endpoint.connection.usable:
            endpoint.connection = None
            endpoint.connection = Connection(path, timeout, api_dir)
        return endpoint.connection
    finally:
        endpoint.lock.release()


def disconnect() -> None:
    """Close all connections of this process; the next request opens new ones."""
    for endpoint in list(_endpoints.values()):
        with endpoint.lock:
            if endpoint.connection is not None:
                endpoint.connection.close()
            endpoint.connection = None


atexit.register(disconnect)
