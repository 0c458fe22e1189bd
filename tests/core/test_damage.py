"""A damaged store (a row, the schema, the file), and a store that is removed."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from lab.plugin import attachments, clean_environ
from userspace_cni.api import attachment_id

if TYPE_CHECKING:
    from core.example_lab import ExampleLab

GC = "cni.dev/valid-attachments"
ID = attachment_id("net", "c1", "eth0")
COLUMNS = {
    "config": '\'{"name": "net", "host\'',
    "config, no object": "'[1]'",
    "config, odd IPAM": "json_set(config, '$.ipam', 'x')",
    "args": "'{'",
    "port": "'{\"name\": 5}'",
    "port, no JSON": "'}'",
    "result": "'null'",
    "state": "'attachec'",
    "no UTF-8": "CAST(x'7bff' AS TEXT)",
    "network": "'neu'",
    "container_id": "'c9'",
    "id": "'0123456789abcdef'",
}


def _file(lab: ExampleLab) -> Path:
    return lab.plugin.state_dir / "attachments.db"


def _damage(lab: ExampleLab, kind: str) -> None:
    column = {"no UTF-8": "config"}.get(kind, kind.partition(",")[0])
    with closing(sqlite3.connect(_file(lab))) as db, db:
        changed = db.execute(
            f"UPDATE attachment SET {column} = {COLUMNS[kind]} WHERE container_id = 'c1'"
        )
        assert changed.rowcount == 1


def _aside(lab: ExampleLab) -> list[Path]:
    return list(lab.plugin.state_dir.glob("attachments.db.damaged-*"))


def _picture(lab: ExampleLab) -> str:
    return subprocess.run(
        [Path(sys.executable).with_name("userspace-cni"), "show"],
        env={**clean_environ(), **lab.plugin.env},
        capture_output=True,
        check=True,
        text=True,
    ).stdout


# -- one row


@pytest.mark.parametrize("kind", COLUMNS)
def test_a_damaged_row_is_shown_and_keeps_nobody_from_anything(lab: ExampleLab, kind: str) -> None:
    conf = lab.conf(ipam=lab.spy_ipam())
    for container in ("c1", "c2", "c3"):
        lab.add(conf, container=container)
    _damage(lab, kind)
    (shown,) = (one for one in attachments(lab.plugin) if "damage" in one)
    assert shown["state"] == "damaged"
    assert f"damaged: {shown['damage']}" in _picture(lab)
    lab.call("DEL", conf, container="c2").succeeded()
    assert len(lab.leases()) == 2
    if kind != "id":
        assert lab.call("ADD", conf).code == 103
        assert len(lab.leases()) == 2
    lab.call("DEL", conf).succeeded()
    assert lab.ports() == [attachment_id("net", "c3", "eth0")]
    assert lab.leases() == ["10.66.0.4"]
    lab.call("GC", conf | {GC: []}).succeeded()
    lab.call("GC", conf | {"name": "neu", GC: []}).succeeded()
    lab.assert_clean()


@pytest.mark.parametrize("kind", COLUMNS)
def test_gc_removes_what_a_damaged_row_is_about_and_all_others(lab: ExampleLab, kind: str) -> None:
    conf = lab.conf(ipam=lab.spy_ipam())
    for container in ("c1", "c2", "c3"):
        lab.add(conf, container=container)
    _damage(lab, kind)
    valid = [{"containerID": "c3", "ifname": "eth0"}]
    lab.call("GC", conf | {GC: valid}).succeeded()
    assert lab.ports() == [attachment_id("net", "c3", "eth0")]
    assert lab.leases() == ["10.66.0.4"]
    lab.call("GC", conf | {"name": "neu", GC: []}).succeeded()
    assert lab.states() == {"c3": "attached"}


# -- the whole file


def _no_database(path: Path) -> None:
    path.write_bytes(b"this is no database\n" * 400)


def _schema(path: Path, old: str, new: str) -> None:
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("PRAGMA writable_schema = ON")
        db.execute(
            "UPDATE sqlite_schema SET sql = replace(sql, ?, ?) WHERE name = 'attachment'",
            (old, new),
        )


def _wild_page(path: Path) -> None:
    content = bytearray(path.read_bytes())
    for offset in range(4096, len(content), 4096):
        content[offset : offset + 8] = os.urandom(8)
    path.write_bytes(content)


@pytest.mark.one_process("a daemon has the store open: tests below")
@pytest.mark.parametrize(
    ("damage", "first"),
    [
        *((damage, "DEL") for damage in ("no database", "column", "table", "pages")),
        *(("no database", first) for first in ("ADD", "GC", "STATUS")),
    ],
)
def test_a_damaged_file_is_kept_and_a_new_one_begun(
    lab: ExampleLab, damage: str, first: str
) -> None:
    conf = lab.conf(ipam=lab.spy_ipam())
    for container in ("c1", "c2"):
        lab.add(conf, container=container)
    match damage:
        case "no database":
            _no_database(_file(lab))
        case "column":
            _schema(_file(lab), "container_id TEXT", "container_ie TEXT")
        case "table":
            _schema(_file(lab), "CREATE TABLE", "CREATE TBBLE")
        case "pages":
            _wild_page(_file(lab))
    outcome = lab.call(
        first, conf | {GC: [{"containerID": "c1", "ifname": "eth0"}]}, container="c2"
    )
    (aside,) = _aside(lab)
    assert all(word in outcome.err for word in (str(_file(lab)), str(aside), ".recover"))
    if first == "ADD":
        # The switch has the port, so it is refused; another one is attached.
        assert outcome.status != 0
        lab.add(conf, container="c3")
        assert lab.states() == {"c3": "attached"}
        lab.call("DEL", conf, container="c3").succeeded()
    else:
        outcome.succeeded()
    for container in ("c1", "c2"):
        lab.call("DEL", conf, container=container).succeeded()
    lab.assert_clean()
    assert _aside(lab) == [aside]
