"""DEL is final for the daemon as well: reconciliation never undoes one."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from lab.daemon_lab import started
from lab.disk import fill, small_disk
from lab.node import poll

if TYPE_CHECKING:
    from core.example_lab import ExampleLab

OFTEN = "watch_interval = 0.05\nreconcile_interval = 0.05\n"


def test_what_a_del_has_been_asked_for_is_not_put_back(lab: ExampleLab) -> None:
    daemon = started(lab, OFTEN)
    conf = lab.conf(ipam=lab.spy_ipam())
    with small_disk(lab.plugin) as disk:
        daemon.stop()  # it has the directory below open
        daemon.start()
        for container in ("goes", "stays"):
            lab.add(conf, container=container)
        ballast = fill(disk)
        assert lab.call("DEL", conf, container="goes").code == 11
        assert len(lab.leases()) == 2
        ballast.unlink()
        for port in lab.switch.glob("*.*"):
            port.unlink()
        poll(lambda: len(lab.ports()) == 1, "the other is put back")
        (port,) = lab.switch.glob("*.*")
        for _ in range(3):  # rounds, each of which would put both back
            port.unlink()
            poll(port.exists, "the other is put back again")
        assert len(lab.ports()) == 1
        lab.call("DEL", conf, container="goes").succeeded()
        assert lab.states() == {"stays": "attached"}
        lab.call("DEL", conf, container="stays").succeeded()
        lab.assert_clean()


def test_an_outage_leaves_nothing_when_it_is_over(lab: ExampleLab) -> None:
    started(lab, OFTEN)
    conf = lab.conf(ipam=lab.spy_ipam())
    lab.switch_down()
    for container in ("c1", "c2", "c3"):
        assert lab.call("ADD", conf, container=container).code == 11
        lab.call("DEL", conf, container=container, environ={"CNI_PATH": ""}).succeeded()
    assert set(lab.states().values()) == {"unknown"}
    lab.switch_up()
    poll(lambda: lab.states() == {}, "all are removed")
    lab.assert_clean()


def test_a_damaged_row_is_told_once_and_the_others_are_looked_after(lab: ExampleLab) -> None:
    daemon = started(lab, OFTEN)
    conf = lab.conf(ipam=lab.spy_ipam())
    for container in ("c1", "c2", "c3", "c4"):
        lab.add(conf, container=container)
    daemon.stop()  # else it may have read a row before, and miss its port after
    with closing(sqlite3.connect(lab.plugin.state_dir / "attachments.db")) as db, db:
        for container, column, value in (
            ("c1", "config", "{"),
            ("c2", "state", "attachec"),
            ("c3", "port", "{}"),
        ):
            db.execute(
                f"UPDATE attachment SET {column} = ? WHERE container_id = ?",
                (value, container),
            )
    for port in lab.switch.glob("*.*"):
        port.unlink()
    daemon.start()
    poll(lambda: len(lab.ports()) == 1, "the sound one is put back")
    (port,) = lab.switch.glob("*.*")
    for _ in range(3):
        port.unlink()
        poll(port.exists, "it is put back again")
    assert len(lab.states()) == 4
    assert "watching the switches of engine example failed" not in daemon.said()
    for container in ("c1", "c2", "c3"):
        told = [
            line
            for line in daemon.said().splitlines()
            if f"container {container}, eth0" in line and "is damaged" in line
        ]
        assert len(told) == 1, daemon.said()
        lab.call("DEL", conf, container=container).succeeded()
    lab.call("DEL", conf, container="c4").succeeded()
    lab.assert_clean()


@pytest.mark.parametrize("what", ["store", "log", "damaged"])
def test_a_store_that_is_taken_away_is_told_and_the_attachments_can_be_removed(
    lab: ExampleLab, what: str
) -> None:
    daemon = started(lab, "watch_interval = 0.05\nreconcile_interval = 0\n")
    conf = lab.conf(ipam=lab.spy_ipam())
    for container in ("c1", "c2"):
        lab.add(conf, container=container)
    store = lab.plugin.state_dir / "attachments.db"
    match what:
        case "store":
            store.unlink()
        case "log":
            store.with_name("attachments.db-wal").unlink()
        case _:
            store.write_bytes(b"this is no database\n" * 400)
            store.with_name("attachments.db-wal").write_bytes(b"nor is this a log\n" * 400)
            daemon.kill()
            daemon.start()
    poll(lambda: f"{store}" in daemon.said() and "ERROR" in daemon.said(), "it is told")
    daemon.kill()
    daemon.start()
    if what == "log":
        assert lab.states() == {"c1": "attached", "c2": "attached"}
    for container in ("c1", "c2"):
        lab.call("DEL", conf, container=container).succeeded()
    lab.assert_clean()
