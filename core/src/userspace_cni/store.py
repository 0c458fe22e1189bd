"""Attachments on disk, in SQLite: what was asked for before it is made, what was made afterwards.

The tags in the dataplane are the truth about what exists. The store adds the configuration that
ADD was called with, and survives a crash at any point: :meth:`Store.begin` returns when the intent
is on the disk.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from threading import RLock
from typing import Any, Literal

from attrs import asdict, field, fields, frozen

from userspace_cni.cni import result as cni_result
from userspace_cni.cni.errors import CniError, Code
from userspace_cni.cni.result import Result
from userspace_cni.cni.versions import SUPPORTED
from userspace_cni.engine import HostPort, Memif, VhostUser, attachment_id

State = Literal["adding", "attached", "deleting"]

_SCHEMA = """
CREATE TABLE IF NOT EXISTS attachment (
    id TEXT PRIMARY KEY,
    network TEXT NOT NULL,
    container_id TEXT NOT NULL,
    ifname TEXT NOT NULL,
    netns TEXT NOT NULL,
    namespace TEXT NOT NULL,
    engine TEXT NOT NULL,
    state TEXT NOT NULL,
    config TEXT NOT NULL,
    args TEXT NOT NULL,
    path TEXT NOT NULL,
    port TEXT,
    result TEXT,
    directory TEXT NOT NULL DEFAULT '',
    container_dir TEXT NOT NULL DEFAULT ''
) STRICT;
CREATE INDEX IF NOT EXISTS attachment_by_network ON attachment (network);
CREATE INDEX IF NOT EXISTS attachment_by_state ON attachment (state) WHERE state != 'attached';
PRAGMA user_version = 2;
"""
#: From format 1.
_UPGRADE = (
    "ALTER TABLE attachment ADD COLUMN directory TEXT NOT NULL DEFAULT ''",
    "ALTER TABLE attachment ADD COLUMN container_dir TEXT NOT NULL DEFAULT ''",
    "PRAGMA user_version = 2",
)
_VERSION = 2
_RESULT_VERSION = SUPPORTED[-1]
#: The members of a HostPort that are classes of their own.
_SOCKETS = {"memif": Memif, "vhost_user": VhostUser}


@frozen(kw_only=True)
class Record:
    """One attachment, and how far it got."""

    network: str
    container_id: str
    ifname: str
    netns: str
    #: See :func:`.netns.identity`; empty where it is not known.
    namespace: str = ""
    #: The host engine's name.
    engine: str
    #: ``adding`` from before anything is touched, ``attached`` once ADD is done, ``deleting`` when
    #: something could not be removed yet.
    state: State = "adding"
    #: The network configuration of the ADD.
    config: dict[str, Any]
    #: The CNI_ARGS of the ADD.
    args: Mapping[str, str] = field(factory=dict)
    #: The directories of its CNI_PATH: who removes the attachment unasked finds IPAM plugins there.
    path: tuple[str, ...] = ()
    port: HostPort | None = None
    #: What ADD answered, in the newest version.
    result: dict[str, Any] = field(factory=dict)
    #: Path of the pod's volume that is the shared directory, empty where another one is.
    directory: str = ""
    #: Where the container has the shared directory, empty where nobody says.
    container_dir: str = ""

    @property
    def id(self) -> str:
        """The attachment's id."""
        return attachment_id(self.network, self.container_id, self.ifname)


@frozen(kw_only=True)
class Outline:
    """What there is to know of an attachment without reading its configuration."""

    id: str
    network: str
    engine: str
    state: State
    netns: str
    namespace: str
    #: The ``host`` part of its configuration, as JSON text.
    host: str


class Store:
    """The table of attachments below a directory. Opened at first use; any process may.

    Threads share one connection, in turns: SQLite lets one write at a time anyway, and waits for
    others by polling.

    Every method raises CniError 5 when the disk or the file fails.
    """

    def __init__(self, directory: Path, timeout: float) -> None:
        """Keep the store in *directory*, waiting *timeout* seconds for other processes."""
        self.path = directory / "attachments.db"
        self._timeout = timeout
        self._connection: sqlite3.Connection | None = None
        #: Device and inode of the open file.
        self._file = (0, 0)
        self._turn = RLock()

    def close(self) -> None:
        """Close the file."""
        with self._turn:
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    def begin(self, record: Record) -> None:
        """Write down that *record* is going to be made."""
        with self._transaction() as db:
            db.execute(
                "INSERT INTO attachment VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    record.id,
                    record.network,
                    record.container_id,
                    record.ifname,
                    record.netns,
                    record.namespace,
                    record.engine,
                    record.state,
                    json.dumps(record.config),
                    json.dumps(dict(record.args)),
                    ":".join(record.path),
                    None,
                    None,
                    record.directory,
                    record.container_dir,
                ),
            )

    def commit(self, id_: str, port: HostPort, result: dict[str, Any]) -> None:
        """Write down that attachment *id_* is made."""
        with self._transaction() as db:
            db.execute(
                "UPDATE attachment SET state = 'attached', port = ?, result = ? WHERE id = ?",
                (_dump_port(port), json.dumps(result), id_),
            )

    def mark_deleting(self, id_: str) -> None:
        """Write down that attachment *id_* is to be removed, and could not be yet."""
        with self._transaction() as db:
            db.execute("UPDATE attachment SET state = 'deleting' WHERE id = ?", (id_,))

    def remove(self, id_: str) -> None:
        """Forget attachment *id_*."""
        with self._transaction() as db:
            db.execute("DELETE FROM attachment WHERE id = ?", (id_,))

    def get(self, id_: str) -> Record | None:
        """Return attachment *id_*, None where there is none."""
        return next(self._select("WHERE id = ?", id_), None)

    def of_network(self, network: str) -> list[Record]:
        """Return all attachments of *network*."""
        return list(self._select("WHERE network = ?", network))

    def deleting(self, engine: str) -> list[Record]:
        """Return the attachments of *engine* whose removal has to be tried again."""
        return list(self._select("WHERE state = 'deleting' AND engine = ?", engine))

    def all(self) -> list[Record]:
        """Return every attachment, by network and container."""
        return list(self._select("ORDER BY network, container_id, ifname"))

    def revision(self) -> object:
        """Return a value that changes whenever anything is written, by whomever."""
        with self._turn, self._reported():
            if not self.path.exists():
                return None
            db = self._open()
            (foreign,) = db.execute("PRAGMA data_version").fetchone()
            return foreign, db.total_changes

    def outlines(self) -> list[Outline]:
        """Return all attachments, in short."""
        with self._turn, self._reported():
            if not self.path.exists():
                return []
            columns = [attribute.name for attribute in fields(Outline)][:-1]
            rows = self._open().execute(
                f"SELECT {', '.join(columns)}, "  # noqa: S608  constants
                "coalesce(json_extract(config, '$.host'), '{}') AS host "
                "FROM attachment ORDER BY rowid"
            )
            names = [column[0] for column in rows.description]
            return [Outline(**dict(zip(names, row, strict=True))) for row in rows.fetchall()]

    def require_writable(self) -> None:
        """Raise CniError 5 if nothing could be written now."""
        with self._transaction() as db:
            # What it is already; but a transaction that writes nothing would succeed on any disk.
            db.execute(f"PRAGMA user_version = {_VERSION}")

    def _select(self, condition: str, *values: str) -> Iterator[Record]:
        columns = (
            "network, container_id, ifname, netns, namespace, engine, state, config, args, path, "
            "port, result, directory, container_dir"
        )
        query = f"SELECT {columns} FROM attachment {condition}"  # noqa: S608  constants
        with self._turn, self._reported():
            if not self.path.exists():
                return
            rows = self._open().execute(query, values).fetchall()
        for row in rows:
            yield Record(
                network=row[0],
                container_id=row[1],
                ifname=row[2],
                netns=row[3],
                namespace=row[4],
                engine=row[5],
                state=row[6],
                config=json.loads(row[7]),
                args=json.loads(row[8]),
                path=tuple(filter(None, row[9].split(":"))),
                port=None if row[10] is None else _load_port(row[10]),
                result={} if row[11] is None else json.loads(row[11]),
                directory=row[12],
                container_dir=row[13],
            )

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._turn, self._reported():
            db = self._open()
            db.execute("BEGIN IMMEDIATE")
            try:
                yield db
                db.execute("COMMIT")
            except BaseException:
                if db.in_transaction:
                    db.execute("ROLLBACK")
                raise

    def _open(self) -> sqlite3.Connection:
        if self._connection is not None and self._file != _identity(self.path):
            self.close()  # somebody has removed or replaced it
        if self._connection is None:
            self.path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
            connection = sqlite3.connect(
                self.path, timeout=self._timeout, isolation_level=None, check_same_thread=False
            )
            try:
                self._prepare(connection)
            except BaseException:
                connection.close()
                raise
            self._connection, self._file = connection, _identity(self.path)
        return self._connection

    def _prepare(self, connection: sqlite3.Connection) -> None:
        # A transaction that returned survives a power failure, and costs one fsync(2).
        connection.execute("PRAGMA synchronous = FULL")
        with closing(connection.execute("PRAGMA user_version")) as cursor:
            (version,) = cursor.fetchone()
        if version == 0:
            self.path.chmod(0o640)
            connection.execute("PRAGMA journal_mode = WAL")
            connection.executescript("BEGIN IMMEDIATE;" + _SCHEMA + "COMMIT;")
        elif version == 1:
            _upgrade(connection)
        elif version != _VERSION:
            raise CniError(
                Code.IO_FAILURE,
                f"the store {self.path} has format {version}, this version knows {_VERSION}",
                "a newer userspace-cni wrote it: upgrade this one",
            )

    @contextmanager
    def _reported(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise CniError(
                Code.IO_FAILURE,
                f"the store {self.path} failed: {error}",
                "check that its directory is writable and that the disk is not full",
            ) from error


def _upgrade(connection: sqlite3.Connection) -> None:
    """Bring format 1 up to date, unless another process is faster."""
    connection.execute("BEGIN IMMEDIATE")
    if connection.execute("PRAGMA user_version").fetchone() == (1,):
        for statement in _UPGRADE:
            connection.execute(statement)
    connection.execute("COMMIT")


def _identity(path: Path) -> tuple[int, int]:
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return 0, 0
    return found.st_dev, found.st_ino


def _dump_port(port: HostPort) -> str:
    """Write *port*; what the CNI result knows too is written as it is there."""
    lists = Result(interfaces=port.interfaces, routes=port.routes)
    own = {
        attribute.name: getattr(port, attribute.name)
        for attribute in fields(HostPort)
        if attribute.name not in ("interfaces", "routes", *_SOCKETS)
    }
    for name in _SOCKETS:
        if (value := getattr(port, name)) is not None:
            own[name] = asdict(value)
    return json.dumps(own | {"lists": cni_result.dump(lists, _RESULT_VERSION)})


def _load_port(text: str) -> HostPort:
    raw = json.loads(text)
    lists = cni_result.load(raw.pop("lists"), _RESULT_VERSION)
    raw |= {name: kind(**raw[name]) for name, kind in _SOCKETS.items() if name in raw}
    return HostPort(**raw, interfaces=lists.interfaces, routes=lists.routes)
