"""Store of attachments in an SQLite database.

A request records its intent before it changes anything, and its outcome afterwards. The tags in the
dataplane are the truth about what exists; the store adds the configuration that ADD was called
with. It survives a crash at any point: :meth:`Store.begin` returns once the intent is on disk.

A damaged row does not prevent others from being read. A damaged file is renamed, and a new one is
created.
"""

from __future__ import annotations

import json
import os
import sqlite3
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from threading import RLock
from typing import Any, Literal, TypeVar, get_args

from attrs import asdict, field, fields, frozen

from userspace_cni import files
from userspace_cni.api import CustomPort, HostPort, Kernel, Memif, Port, VhostUser, attachment_id
from userspace_cni.cni import result as cni_result
from userspace_cni.cni.errors import CniError, Code
from userspace_cni.cni.request import Target
from userspace_cni.cni.result import Result
from userspace_cni.cni.versions import SUPPORTED
from userspace_cni.config import RecordedConf
from userspace_cni.log import logger

#: ``adding``: set before an ADD changes anything. ``attached``: the ADD is complete. ``deleting``:
#: set before anything is removed, and never left again. ``unknown``: a DEL arrived without a
#: recorded ADD and could not be executed yet. ``damaged``: the row cannot be read; never stored.
State = Literal["adding", "attached", "deleting", "unknown", "damaged"]

_T = TypeVar("_T")

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
#: Statements that upgrade format 1.
_UPGRADE = (
    "ALTER TABLE attachment ADD COLUMN directory TEXT NOT NULL DEFAULT ''",
    "ALTER TABLE attachment ADD COLUMN container_dir TEXT NOT NULL DEFAULT ''",
    "PRAGMA user_version = 2",
)
_VERSION = 2
#: Private, because network configurations may contain secrets.
_MODE = 0o600
_RESULT_VERSION = SUPPORTED[-1]
#: JSON keys of the port kinds that are handed over; a kernel interface has none.
_PORTS: Mapping[str, type[Port]] = {
    "memif": Memif,
    "vhost_user": VhostUser,
    "custom": CustomPort,
}
_COLUMNS = (
    "id, network, container_id, ifname, netns, namespace, engine, state, config, args, path, port, "
    "result, directory, container_dir"
)
#: SQLite's errors for a damaged file. SQLITE_ERROR is one of them: the statements are constant, so
#: the schema must have changed.
_DAMAGE = (sqlite3.SQLITE_ERROR, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


class StoreFailed(CniError):
    """The store cannot be read or written, so the state of attachments is unknown."""

    def __init__(self, msg: str, details: str = "") -> None:
        super().__init__(Code.IO_FAILURE, msg, details)


@frozen(kw_only=True)
class Record:
    """An attachment and its state."""

    network: str
    container_id: str
    ifname: str
    netns: str
    #: See :func:`.netns.identity`; empty if it is not known.
    namespace: str = ""
    #: The host engine's name.
    engine: str
    state: State = "adding"
    #: The network configuration of the ADD; see :attr:`conf`.
    config: dict[str, Any]
    #: The CNI_ARGS of the ADD.
    args: Mapping[str, str] = field(factory=dict)
    #: The directories of its CNI_PATH, where the daemon finds the IPAM plugin to remove it.
    path: tuple[str, ...] = ()
    port: HostPort | None = None
    #: The result of the ADD in the newest version.
    result: dict[str, Any] = field(factory=dict)
    #: Path of the pod's volume if that is the shared directory, otherwise empty.
    directory: str = ""
    #: Path of the shared directory in the container; empty if it is not known.
    container_dir: str = ""
    #: Which columns cannot be read and why; empty if the row is intact.
    damage: str = ""
    _id: str = field(default="", alias="id")

    @property
    def target(self) -> Target:
        """What the ADD was about."""
        return Target(
            network=self.network,
            container_id=self.container_id,
            ifname=self.ifname,
            netns=self.netns,
            args=self.args,
            config=self.config,
        )

    @property
    def conf(self) -> RecordedConf:
        """The network configuration of the ADD, to be read."""
        return RecordedConf(self.config)

    @property
    def id(self) -> str:
        """The attachment's ID."""
        # A damaged row keeps its own ID, by which the tags in the dataplane are found.
        return self._id or attachment_id(self.network, self.container_id, self.ifname)


@frozen(kw_only=True)
class Outline:
    """A summary of an attachment that can be read without parsing its configuration."""

    id: str
    network: str
    engine: str
    state: State
    netns: str
    namespace: str
    #: The ``host`` part of its configuration as JSON text.
    host: str
    #: See :attr:`.HostPort.generation`.
    generation: str


class Store:
    """The table of attachments, in a file below a directory. Several processes may use it.

    The file is opened at first use. Threads share one connection under a lock, because SQLite
    allows only one writer anyway and polls while it waits.

    Every method raises StoreFailed if the disk or the file fails.
    """

    def __init__(self, directory: Path, timeout: float) -> None:
        """Keep the store in *directory*; wait at most *timeout* seconds for other processes."""
        self.path = directory / "attachments.db"
        self._wal = directory / "attachments.db-wal"
        self._timeout = timeout
        self._connection: sqlite3.Connection | None = None
        #: Device and inode of the open file and of its write-ahead log.
        self._file = self._log = (0, 0)
        self._turn = RLock()
        #: IDs of damaged rows that have been logged.
        self._told: set[str] = set()

    def close(self) -> None:
        """Close the file."""
        with self._turn:
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    def begin(self, record: Record) -> None:
        """Record durably that *record* is about to be added or removed, as its state says."""
        self._write(
            f"INSERT INTO attachment ({_COLUMNS}) "  # noqa: S608  constants
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
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
        )

    def commit(self, id_: str, port: HostPort, result: dict[str, Any]) -> None:
        """Record that attachment *id_* is attached, with its port and CNI result."""
        self._write(
            "UPDATE attachment SET state = 'attached', port = ?, result = ? WHERE id = ?",
            _dump_port(port),
            json.dumps(result),
            id_,
        )

    def mark(self, id_: str, state: Literal["deleting", "unknown"]) -> None:
        """Record durably that attachment *id_* is about to be removed; see :data:`State`."""
        self._write("UPDATE attachment SET state = ? WHERE id = ?", state, id_)

    def remove(self, id_: str) -> None:
        """Remove the row of attachment *id_*, which is ``deleting`` or was never attached.

        This does not wait for the disk: a row that reappears after a power failure is removed
        again.
        """
        self._write("DELETE FROM attachment WHERE id = ?", id_, durable=False)

    def get(self, id_: str) -> Record | None:
        """Return attachment *id_*, or None."""
        return next(iter(self._select("WHERE id = ?", id_)), None)

    def has_container(self, container_id: str) -> bool:
        """Return whether any attachment of container *container_id* is recorded."""
        return any(self._select("WHERE container_id = ? LIMIT 1", container_id))

    def of_network(self, network: str) -> list[Record]:
        """Return all attachments of *network*."""
        return self._select("WHERE network = ?", network)

    def deleting(self) -> list[Record]:
        """Return the attachments whose removal must be retried."""
        condition = "WHERE state != 'attached' AND state IN ('deleting', 'unknown')"
        return [record for record in self._select(condition) if record.state != "damaged"]

    def all(self) -> list[Record]:
        """Return every attachment, sorted by network and container."""
        return self._select("ORDER BY network, container_id, ifname")

    def revision(self) -> object:
        """Return a value that changes whenever any process writes to the store."""

        def read(db: sqlite3.Connection) -> object:
            (foreign,) = db.execute("PRAGMA data_version").fetchone()
            return foreign, db.total_changes

        return self._read(read, None)

    def outlines(self) -> list[Outline]:
        """Return a summary of every attachment."""
        usable = (  # a CASE, because json_type() fails on invalid JSON
            "CASE WHEN json_valid(config) "
            "THEN coalesce(json_type(config, '$.host'), 'object') = 'object' ELSE 0 END"
        )
        columns = [attribute.name for attribute in fields(Outline)][:-2]
        columns[columns.index("state")] = (
            f"CASE WHEN {usable} AND (state IN ('adding', 'deleting', 'unknown') OR "
            "state = 'attached' AND json_valid(args) AND json_valid(port) AND json_valid(result)) "
            "THEN state ELSE 'damaged' END"
        )
        query = (
            f"SELECT {', '.join(columns)}, "  # noqa: S608  constants
            f"CASE WHEN {usable} THEN coalesce(json_extract(config, '$.host'), '{{}}') "
            "ELSE '{}' END, "
            "CASE WHEN json_valid(port) THEN coalesce(json_extract(port, '$.generation'), '') "
            "ELSE '' END FROM attachment ORDER BY rowid"
        )
        names = [attribute.name for attribute in fields(Outline)]
        rows: list[Any] = self._read(lambda db: db.execute(query).fetchall(), [])
        return [Outline(**dict(zip(names, row, strict=True))) for row in rows]

    def require_writable(self) -> None:
        """Raise StoreFailed unless the store can be written to."""
        # This writes a value that is already there. A transaction without a write would succeed
        # even on a full disk.
        self._write(f"PRAGMA user_version = {_VERSION}")

    def _select(self, condition: str, *values: str) -> list[Record]:
        query = f"SELECT {_COLUMNS} FROM attachment {condition}"  # noqa: S608  constants
        rows: list[Any] = self._read(lambda db: db.execute(query, values).fetchall(), [])
        records = [_record(row) for row in rows]
        for record in records:
            if record.damage and record.id not in self._told:
                self._told.add(record.id)
                logger.error(
                    "the record of attachment %s (container %s, %s, network %s) in the store %s is "
                    "damaged: %s; it is kept until a DEL or a GC removes the attachment",
                    record.id,
                    record.container_id,
                    record.ifname,
                    record.network,
                    self.path,
                    record.damage,
                )
        return records

    def _read(self, query: Callable[[sqlite3.Connection], _T], without: _T) -> _T:
        """Return the result of *query*, or *without* if there is no file; do not create one."""

        def read(db: sqlite3.Connection | None) -> _T:
            return without if db is None else query(db)

        return self._run(read, make=False)

    def _write(self, statement: str, *values: str | None, durable: bool = True) -> None:
        def write(db: sqlite3.Connection | None) -> None:
            assert db is not None  # noqa: S101  make=True
            if durable:
                db.execute(statement, values)
                return
            db.execute("PRAGMA synchronous = NORMAL")
            try:
                db.execute(statement, values)
            finally:
                db.execute("PRAGMA synchronous = FULL")

        self._run(write, make=True)

    def _run(self, work: Callable[[sqlite3.Connection | None], _T], *, make: bool) -> _T:
        """Run *work*; if the file turns out to be damaged, run it again with a new file."""
        with self._turn, self._reported():
            try:
                return work(self._open(make=make))
            except sqlite3.DatabaseError as error:
                if not _is_damage(error):
                    raise
                self._put_aside(error)
                return work(self._open(make=make))

    def _open(self, *, make: bool) -> sqlite3.Connection | None:
        if self._connection is not None:
            self._look_after()
        if self._connection is None:
            if not make and not self.path.exists():
                return None
            files.make(self.path.parent)
            _make_private(self.path)
            connection = sqlite3.connect(
                self.path, timeout=self._timeout, isolation_level=None, check_same_thread=False
            )
            # Damaged text may not be valid UTF-8.
            connection.text_factory = lambda raw: raw.decode(errors="backslashreplace")
            self._file = _identity(self.path)
            try:
                self._prepare(connection)
            except BaseException:
                connection.close()
                raise
            self._connection = connection
            self._file, self._log = _identity(self.path), _identity(self._wal)
        return self._connection

    def _look_after(self) -> None:
        """Close the file if another program has removed or replaced it or its log."""
        assert self._connection is not None  # noqa: S101  the caller has checked it
        if self._file != _identity(self.path):
            logger.error(
                "the store %s was removed or replaced while it was in use, and its records are "
                "lost. Existing attachments keep working, and DEL and GC find them by their tags, "
                "but they are not restored after a restart of their switch. Do not touch the file",
                self.path,
            )
            self.close()
        elif self._log not in ((0, 0), _identity(self._wal)):
            # The old log is still open, so its contents can be written into the file.
            with suppress(sqlite3.Error):
                self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            self.close()
            logger.error(
                "%s was removed or replaced while the store was in use; its contents have been "
                "written into the store, unless another process has written since. Do not touch "
                "the file",
                self._wal,
            )

    def _put_aside(self, because: Exception) -> None:
        """Rename the damaged file, unless another process has done so already."""
        self.close()
        with files.locked(self.path.parent):
            if self._file != _identity(self.path):
                return
            aside = f"{self.path}.damaged-{time.strftime('%Y%m%dT%H%M%S')}-{self._file[1]}"
            for suffix in ("-wal", "-shm", ""):
                with suppress(FileNotFoundError):
                    os.rename(f"{self.path}{suffix}", f"{aside}{suffix}")
        logger.error(
            "the store %s is damaged (%s). It is kept as %s, and a new one is created without its "
            "records. Existing attachments keep working, and DEL and GC find them by their tags, "
            "but they are not restored after a restart of their switch. Check the disk; "
            "sqlite3 %s .recover shows what can be read, and the file may be removed",
            self.path,
            because,
            aside,
            aside,
        )

    def _prepare(self, connection: sqlite3.Connection) -> None:
        # A completed transaction survives a power failure; each costs one fsync(2).
        connection.execute("PRAGMA synchronous = FULL")
        with closing(connection.execute("PRAGMA user_version")) as cursor:
            (version,) = cursor.fetchone()
        if version == 0:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.executescript("BEGIN IMMEDIATE;" + _SCHEMA + "COMMIT;")
        elif version == 1:
            _upgrade(connection)
        elif version != _VERSION:
            raise StoreFailed(
                f"the store {self.path} has format {version}, but this version supports {_VERSION}",
                "a newer userspace-cni wrote it: upgrade this one",
            )

    @contextmanager
    def _reported(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise StoreFailed(
                f"the store {self.path} failed: {error}",
                "check that its directory is writable and that the disk is not full",
            ) from error


def _is_damage(error: sqlite3.DatabaseError) -> bool:
    # The lowest byte is the primary result code.
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in _DAMAGE


def _record(row: tuple[Any, ...]) -> Record:
    """Return the record in *row*; columns that cannot be read are listed in ``damage``."""
    id_, network, container_id, ifname, netns, namespace, engine, state = row[:8]
    damage: list[str] = []

    def read(column: str, text: str | None, load: Callable[[str], _T]) -> _T | None:
        if text is None:
            return None
        try:
            return load(text)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError, CniError) as error:
            damage.append(f"{column} cannot be read: {error}")
            return None

    config = read("config", row[8], _load_config) or {}
    usable = not damage
    args = read("args", row[9], _load_object) or {}
    port = read("port", row[11], _load_port)
    result = read("result", row[12], _load_object) or {}
    if id_ != attachment_id(network, container_id, ifname):
        damage.append("its id does not match its network, container and interface")
    if state not in get_args(State):
        damage.append(f"state is {state!r}")
    # A removal needs only the configuration.
    removable = usable and state in ("adding", "deleting", "unknown")
    return Record(
        network=network,
        container_id=container_id,
        ifname=ifname,
        netns=netns,
        namespace=namespace,
        engine=engine,
        state="damaged" if damage and not removable else state,
        config=config,
        args=args,
        path=tuple(filter(None, row[10].split(":"))),
        port=port,
        result=result,
        directory=row[13],
        container_dir=row[14],
        damage="; ".join(damage),
        id=id_ if damage else "",
    )


def _load_config(text: str) -> dict[str, Any]:
    config = _load_object(text)
    RecordedConf(config).require_objects()
    return config


def _load_object(text: str) -> dict[str, Any]:
    value = json.loads(text)
    if not isinstance(value, dict):
        raise TypeError(f"expected a JSON object, got {type(value).__name__}")
    return value


def _make_private(path: Path) -> None:
    """Set the file's mode before SQLite creates its log, which gets the same mode."""
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOCTTY, _MODE)
    try:
        if stat.S_IMODE(os.fstat(file).st_mode) != _MODE:
            os.fchmod(file, _MODE)
    finally:
        os.close(file)


def _upgrade(connection: sqlite3.Connection) -> None:
    """Upgrade format 1, unless another process has done so already."""
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
    """Encode *port* as JSON; interfaces and routes use the format of the CNI result."""
    lists = Result(interfaces=port.interfaces, routes=port.routes)
    own = {
        attribute.name: getattr(port, attribute.name)
        for attribute in fields(HostPort)
        if attribute.name not in ("interfaces", "routes", "port")
    }
    for key, kind in _PORTS.items():
        if isinstance(port.port, kind):
            own[key] = asdict(port.port)
    return json.dumps(own | {"lists": cni_result.dump(lists, _RESULT_VERSION)})


def _load_port(text: str) -> HostPort:
    raw = json.loads(text)
    lists = cni_result.load(raw.pop("lists"), _RESULT_VERSION)
    ports = [kind(**raw.pop(key)) for key, kind in _PORTS.items() if key in raw]
    return HostPort(
        **raw,
        port=ports[0] if ports else Kernel(),
        interfaces=lists.interfaces,
        routes=lists.routes,
    )
