"""OVSDB (RFC 7047) over the ``ovs`` library's JSON-RPC: transactions, and nothing else.

No copy of the database is kept: opening one costs many times what a transaction does, and grows
with the number of ports.
"""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeAlias

from userspace_cni.api import (
    CniError,
    DataplaneError,
    DataplaneUnavailable,
    InvalidConfig,
)
from userspace_cni_ovs.settings import OvsSettings

Json: TypeAlias = Any
Operation: TypeAlias = dict[str, Json]
Row: TypeAlias = dict[str, Json]

_DATABASE = "Open_vSwitch"
_EOF = -1  # ovs.jsonrpc.EOF
_IDLE_MAX = 4  # connections that are kept; more are for a rush


class Refused(DataplaneError):
    """The database refused a transaction; :attr:`error` is its word for it (RFC 7047, 3.1)."""

    def __init__(self, action: str, error: str, details: str) -> None:
        super().__init__(f"cannot {action}", f"ovsdb-server says: {details or error} ({error})")
        self.error = error


class Ovsdb:
    """One connection to a database server, of one thread at a time."""

    def __init__(self, endpoint: str, settings: OvsSettings) -> None:
        """Connect.

        Args:
            endpoint: ``unix:PATH``, ``tcp:HOST:PORT`` or ``ssl:HOST:PORT``; a bare path is a
                socket's.
            settings: How long to wait for the server, now and at each transaction, and the files
                for ``ssl:``.

        Raises:
            DataplaneUnavailable: when the server cannot be reached.
            InvalidConfig: when a file is missing.

        """
        # Slow to import; most calls of the program never come here.
        from ovs.jsonrpc import Connection
        from ovs.stream import Stream

        self._endpoint = endpoint if not endpoint.startswith("/") else f"unix:{endpoint}"
        self.timeout = settings.timeout
        if self._endpoint.startswith("ssl:"):
            _use_tls(Stream, settings)
        error, stream = Stream.open_block(Stream.open(self._endpoint), int(self.timeout * 1000))
        if error:
            raise DataplaneUnavailable(
                f"the Open vSwitch database {self._endpoint} cannot be reached",
                f"{os.strerror(error)}; is ovsdb-server running, and is this its address? It comes "
                "from host.ovs.db in the network, or db in [engines.ovs] of the node's settings",
            )
        self._connection: Any = Connection(stream)

    def close(self) -> None:
        """Close it."""
        self._connection.close()

    @property
    def usable(self) -> bool:
        """Whether the server is still at the other end; answers what it has asked meanwhile."""
        while True:
            self._connection.run()
            error, message = self._connection.recv()
            if not error and message is not None:
                error = self._answer(message)
            if error:
                return bool(error == errno.EAGAIN)

    def transact(
        self, action: str, *operations: Operation, timeout: float | None = None
    ) -> list[Row]:
        """Carry *operations* out as one transaction and return the result of each.

        Args:
            action: What it is for, for error messages: "cannot <action>".
            operations: See :func:`select` and its neighbours.
            timeout: Seconds, in place of the connection's.

        Raises:
            Refused: when the server refuses; then nothing has changed.
            DataplaneUnavailable: when no answer comes.

        """
        from ovs.jsonrpc import Message

        request = Message.create_request("transact", [_DATABASE, *operations])
        reply = self._exchange(request, self.timeout if timeout is None else timeout)
        if reply.type == Message.T_ERROR:
            raise Refused(action, "error", str(reply.error))
        for outcome in reply.result:
            if outcome and outcome.get("error"):
                raise Refused(action, outcome["error"], outcome.get("details", ""))
        return list(reply.result)

    def _exchange(self, request: Any, timeout: float) -> Any:
        from ovs.jsonrpc import Message
        from ovs.poller import Poller

        deadline = time.monotonic() + timeout
        error = self._connection.send(request)
        while not error:
            self._connection.run()
            error, message = self._connection.recv()
            if error == errno.EAGAIN:
                remaining = deadline - time.monotonic()
                if remaining <= 0:
                    error = errno.ETIMEDOUT
                    break
                poller = Poller()
                self._connection.wait(poller)
                self._connection.recv_wait(poller)
                poller.timer_wait(int(remaining * 1000) + 1)
                poller.block()
                error = 0
            elif message is not None:
                if message.type in (Message.T_REPLY, Message.T_ERROR) and message.id == request.id:
                    return message
                error = self._answer(message)
        raise DataplaneUnavailable(
            f"the Open vSwitch database {self._endpoint} does not answer",
            "it closed the connection" if error == _EOF else os.strerror(error),
        )

    def _answer(self, message: Any) -> int:
        """Answer the server's question whether we live; let all else pass."""
        from ovs.jsonrpc import Message

        if message.type != Message.T_REQUEST:
            return 0
        return int(self._connection.send(Message.create_reply(message.params, message.id)))


class Pool:
    """Connections that are kept between requests, for any number of threads.

    One that waits for the switch keeps none of the others waiting.
    """

    def __init__(self, settings: OvsSettings) -> None:
        """Keep none yet; make them as *settings* say."""
        self._settings = settings
        self._idle: list[tuple[tuple[str, int], Ovsdb]] = []
        self._lock = threading.Lock()

    @contextmanager
    def connection(self, endpoint: str) -> Iterator[Ovsdb]:
        """Lend a connection, as :class:`Ovsdb` describes it; one that fails is not kept."""
        key = endpoint, os.getpid()
        db = self._take(key) or Ovsdb(endpoint, self._settings)
        try:
            yield db
        except BaseException as error:
            # Of what else happened, the answer may still come.
            if not isinstance(error, CniError) or isinstance(error, DataplaneUnavailable):
                db.close()
                raise
            self._give_back(key, db)
            raise
        self._give_back(key, db)

    def close(self) -> None:
        """Close those that nobody uses now."""
        with self._lock:
            while self._idle:
                self._idle.pop()[1].close()

    def _take(self, key: tuple[str, int]) -> Ovsdb | None:
        while True:
            with self._lock:
                found = next((entry for entry in reversed(self._idle) if entry[0] == key), None)
                if found is None:
                    return None
                self._idle.remove(found)
            if found[1].usable:
                return found[1]
            found[1].close()

    def _give_back(self, key: tuple[str, int], db: Ovsdb) -> None:
        with self._lock:
            if len(self._idle) < _IDLE_MAX:
                self._idle.append((key, db))
                return
        db.close()


def _use_tls(stream: Any, settings: OvsSettings) -> None:
    for key, file, use in (
        ("private_key", settings.private_key, stream.ssl_set_private_key_file),
        ("certificate", settings.certificate, stream.ssl_set_certificate_file),
        ("ca_cert", settings.ca_cert, stream.ssl_set_ca_cert_file),
    ):
        if file is None:
            raise InvalidConfig(
                f"[engines.ovs] {key}",
                "missing in the node's settings; an ssl: database needs it",
                "give the path of the PEM file",
            )
        use(str(file))


# -- operations (RFC 7047, 5.2)


def select(table: str, *where: Json, columns: Iterable[str]) -> Operation:
    """Read *columns* of the rows that meet all conditions *where*."""
    return {"op": "select", "table": table, "where": list(where), "columns": list(columns)}


def insert(table: str, name: str, row: Row) -> Operation:
    """Add a row; ``named(name)`` refers to it within the transaction."""
    return {"op": "insert", "table": table, "uuid-name": name, "row": row}


def mutate(table: str, *where: Json, change: tuple[str, str, Json]) -> Operation:
    """Change one column by a mutator, such as ``("ports", "insert", ...)``."""
    return {"op": "mutate", "table": table, "where": list(where), "mutations": [list(change)]}


def update(table: str, *where: Json, row: Row) -> Operation:
    """Write the columns of *row*."""
    return {"op": "update", "table": table, "where": list(where), "row": row}


def delete(table: str, *where: Json) -> Operation:
    """Remove rows of a root table."""
    return {"op": "delete", "table": table, "where": list(where)}


def wait(
    table: str, *where: Json, column: str, until: str, value: Json, timeout: float
) -> Operation:
    """Wait, *timeout* seconds at most, until *column* is (``==``) or is no more (``!=``) *value*.

    With a timeout of 0 it makes the transaction fail at once ("timed out") if that is not so.
    """
    return {
        "op": "wait",
        "table": table,
        "where": list(where),
        "columns": [column],
        "until": until,
        "rows": [{column: value}],
        "timeout": int(timeout * 1000),
    }


# -- values (RFC 7047, 5.1)


def named(name: str) -> Json:
    """Return the reference to a row that the same transaction inserts."""
    return ["named-uuid", name]


def a_map(members: Mapping[str, str]) -> Json:
    """Write a map of strings."""
    return ["map", [list(member) for member in members.items()]]


def a_set(members: Iterable[Json]) -> Json:
    """Write a set."""
    return ["set", list(members)]


def has(column: str, members: Mapping[str, str]) -> Json:
    """Return the condition that the map *column* has all *members*."""
    return [column, "includes", a_map(members)]


def members(value: Json) -> list[Json]:
    """Read a set; one of a single member is written without a list around it."""
    if isinstance(value, list) and value and value[0] == "set":
        return list(value[1])
    return [value]


def mapping(value: Json) -> dict[str, str]:
    """Read a map of strings."""
    return dict(value[1])


def optional(value: Json) -> Json:
    """Read a column that may be empty; None if it is."""
    found = members(value)
    return found[0] if found else None
