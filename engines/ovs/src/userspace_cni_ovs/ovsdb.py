"""OVSDB client (RFC 7047) for transactions, based on the JSON-RPC of the ``ovs`` library.

The library's replica of the database (IDL) is not used: opening it costs many times as much as a
transaction, and the cost grows with the number of ports.
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
_IDLE_MAX = 4  # idle connections that are kept


class Refused(DataplaneError):
    """The database refused a transaction; :attr:`error` is the error string (RFC 7047, 3.1)."""

    def __init__(self, action: str, error: str, details: str) -> None:
        super().__init__(f"cannot {action}", f"ovsdb-server says: {details or error} ({error})")
        self.error = error


class Ovsdb:
    """A connection to a database server; not thread-safe."""

    def __init__(self, endpoint: str, settings: OvsSettings) -> None:
        """Connect.

        Args:
            endpoint: ``unix:PATH``, ``tcp:HOST:PORT`` or ``ssl:HOST:PORT``.
            settings: supplies the timeout, which applies now and to each transaction, and the
                files for ``ssl:``.

        Raises:
            DataplaneUnavailable: if the server cannot be reached.
            InvalidConfig: if a file for ``ssl:`` is not configured.

        """
        # These modules are slow to import, and most requests do not need them.
        from ovs.jsonrpc import Connection
        from ovs.stream import Stream

        self._endpoint = endpoint
        self.timeout = settings.timeout
        if self._endpoint.startswith("ssl:"):
            _use_tls(Stream, settings)
        error, stream = Stream.open_block(Stream.open(self._endpoint), int(self.timeout * 1000))
        if error:
            raise DataplaneUnavailable(
                f"the Open vSwitch database {self._endpoint} cannot be reached",
                f"{os.strerror(error)}; is ovsdb-server running, and is this its address? It is "
                "set by host.ovs.db in the network, or db in [engines.ovs] of the node's settings",
            )
        self._connection: Any = Connection(stream)

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    @property
    def usable(self) -> bool:
        """Whether the connection is still open; also answers pending requests of the server."""
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
        """Execute *operations* as one transaction and return the result of each.

        Args:
            action: description for error messages, which put "cannot" before it.
            operations: see :func:`select` and the functions after it.
            timeout: in seconds; by default that of the connection.

        Raises:
            Refused: if the server refuses; nothing has changed.
            DataplaneUnavailable: if no answer arrives; the transaction may have been executed.

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
        """Answer an echo request of the server; ignore any other message."""
        from ovs.jsonrpc import Message

        if message.type != Message.T_REQUEST:
            return 0
        return int(self._connection.send(Message.create_reply(message.params, message.id)))


class Pool:
    """A thread-safe pool of connections that are reused between requests.

    Threads never share a connection, so a request that waits for the switch does not delay others.
    """

    def __init__(self, settings: OvsSettings) -> None:
        """Create an empty pool whose connections use *settings*."""
        self._settings = settings
        self._idle: list[tuple[tuple[str, int], Ovsdb]] = []
        self._lock = threading.Lock()

    @contextmanager
    def connection(self, endpoint: str) -> Iterator[Ovsdb]:
        """Yield a connection and keep it afterwards, unless it fails.

        The arguments and errors are those of :class:`Ovsdb`.
        """
        key = endpoint, os.getpid()
        db = self._take(key) or Ovsdb(endpoint, self._settings)
        try:
            yield db
        except BaseException as error:
            # After any other exception an answer may still be on its way.
            if not isinstance(error, CniError) or isinstance(error, DataplaneUnavailable):
                db.close()
                raise
            self._give_back(key, db)
            raise
        self._give_back(key, db)

    def close(self) -> None:
        """Close all idle connections."""
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
    """Return an operation that reads *columns* of the rows that meet all conditions *where*."""
    return {"op": "select", "table": table, "where": list(where), "columns": list(columns)}


def insert(table: str, name: str, row: Row) -> Operation:
    """Return an operation that adds a row; ``named(name)`` refers to it in the transaction."""
    return {"op": "insert", "table": table, "uuid-name": name, "row": row}


def mutate(table: str, *where: Json, change: tuple[str, str, Json]) -> Operation:
    """Return an operation that changes one column by a mutation: ``("ports", "insert", ...)``."""
    return {"op": "mutate", "table": table, "where": list(where), "mutations": [list(change)]}


def update(table: str, *where: Json, row: Row) -> Operation:
    """Return an operation that overwrites the columns in *row*."""
    return {"op": "update", "table": table, "where": list(where), "row": row}


def delete(table: str, *where: Json) -> Operation:
    """Return an operation that removes rows of a root table."""
    return {"op": "delete", "table": table, "where": list(where)}


def wait(
    table: str, *where: Json, column: str, until: str, value: Json, timeout: float
) -> Operation:
    """Return an operation that waits for a column's value.

    Args:
        table: the table.
        where: conditions that select the row.
        column: the column to wait for.
        until: ``==`` to wait until the column has *value*, ``!=`` until it differs.
        value: the value to compare with.
        timeout: in seconds. The transaction fails ("timed out") when it ends; with 0 it fails at
            once unless the condition holds.

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
    """Return a reference to a row that the same transaction inserts."""
    return ["named-uuid", name]


def a_map(members: Mapping[str, str]) -> Json:
    """Encode a map of strings."""
    return ["map", [list(member) for member in members.items()]]


def a_set(members: Iterable[Json]) -> Json:
    """Encode a set."""
    return ["set", list(members)]


def has(column: str, members: Mapping[str, str]) -> Json:
    """Return the condition that the map *column* contains all *members*."""
    return [column, "includes", a_map(members)]


def members(value: Json) -> list[Json]:
    """Decode a set; a set with one member is encoded as that member alone."""
    if isinstance(value, list) and value and value[0] == "set":
        return list(value[1])
    return [value]


def mapping(value: Json) -> dict[str, str]:
    """Decode a map of strings."""
    return dict(value[1])


def optional(value: Json) -> Json:
    """Decode an optional column; return None if it is empty."""
    found = members(value)
    return found[0] if found else None
