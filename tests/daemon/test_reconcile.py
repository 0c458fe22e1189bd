"""Reconciliation by the daemon."""

from __future__ import annotations

import os
import sqlite3
import subprocess
from contextlib import ExitStack, closing, contextmanager
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from lab.daemon_lab import queued, started
from lab.node import poll
from userspace_cni.store import Record, Store

if TYPE_CHECKING:
    from collections.abc import Iterator

    from core.example_lab import ExampleLab

OFTEN = "watch_interval = 0.05\nreconcile_interval = 0.05\n"


@contextmanager
def _namespace(name: str) -> Iterator[str]:
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        yield f"/run/netns/{name}"
    finally:
        subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)


def _untagged(lab: ExampleLab) -> Path:
    stranger = lab.switch / "somebody-elses-port"
    stranger.write_text("hands off")
    return stranger


def test_a_port_that_is_lost_is_put_back_and_nothing_else_is_touched(lab: ExampleLab) -> None:
    daemon = started(lab, OFTEN)
    stranger = _untagged(lab)
    conf = lab.conf(host={"engine": "example", "iftype": "note", "note": {"text": "mine"}})
    results = {name: lab.add(conf, container=name) for name in ("c1", "c2", "c3")}
    for port in lab.switch.glob("*.*"):
        port.unlink()
    # Restoration is complete only once it is logged.
    poll(lambda: daemon.said().count("is restored") == 3, "all ports are back")
    assert len(lab.ports()) == 3
    assert {port.read_text() for port in lab.switch.glob("*.*")} == {"mine"}
    assert stranger.read_text() == "hands off"
    for name, result in results.items():
        lab.call("CHECK", conf | {"prevResult": result}, container=name).succeeded()
    for name in results:
        lab.call("DEL", conf, container=name).succeeded()
    assert list(lab.switch.iterdir()) == [stranger]


def test_what_was_lost_while_no_daemon_ran_is_put_back_at_its_start(lab: ExampleLab) -> None:
    daemon = started(lab, "watch_interval = 3600\nreconcile_interval = 0")
    lab.add(lab.conf())
    daemon.stop()
    (port,) = lab.switch.iterdir()
    port.unlink()
    daemon.start()
    poll(port.exists, "the port is back")


def test_one_that_cannot_be_restored_does_not_keep_the_others(lab: ExampleLab) -> None:
    daemon = started(lab, OFTEN)
    for name in ("a", "b", "c"):
        lab.add(lab.conf(), container=name)
    with closing(sqlite3.connect(lab.plugin.state_dir / "attachments.db")) as db, db:
        ((good,),) = db.execute("SELECT result FROM attachment WHERE container_id = 'a'")
        db.execute("UPDATE attachment SET result = '{}' WHERE container_id = 'a'")
    for port in lab.switch.glob("*.*"):
        port.unlink()
    poll(lambda: "cannot restore attachment" in daemon.said(), "the first is tried")
    poll(lambda: len(lab.ports()) == 2, "the others are back")
    with closing(sqlite3.connect(lab.plugin.state_dir / "attachments.db")) as db, db:
        db.execute("UPDATE attachment SET result = ? WHERE container_id = 'a'", (good,))
    poll(lambda: len(lab.ports()) == 3, "the first is back")
    assert daemon.said().count("cannot restore attachment") == 1


def test_a_namespace_that_is_gone_takes_its_attachment_along_after_the_grace(
    lab: ExampleLab,
) -> None:
    daemon = started(lab, "watch_interval = 0.05\ngrace = 1.0")
    conf = lab.conf(ipam=lab.spy_ipam(), macFromArgs=True)
    stranger = _untagged(lab)
    lab.add(conf, container="stays")
    with _namespace(f"ucni-{os.getpid()}") as path:
        lab.add(conf, container="goes", netns=path, args="MAC=02:00:00:00:00:07")
        assert len(lab.leases()) == 2
    poll(lambda: lab.states() == {"stays": "attached"}, "the attachment is removed")
    assert (len(lab.ports()), len(lab.leases())) == (1, 1)
    assert stranger.exists()
    poll(lambda: f"its network namespace {path} is gone" in daemon.said(), "it is told")
    (freed,) = lab.spy.calls("DEL")
    assert freed.env["CNI_CONTAINERID"] == "goes"
    assert freed.env["CNI_ARGS"] == "MAC=02:00:00:00:00:07"
    assert freed.netns == ""


def test_a_path_that_another_namespace_has_taken_is_a_namespace_that_is_gone(
    lab: ExampleLab,
) -> None:
    started(lab, "watch_interval = 0.05\ngrace = 0")
    path = lab.directory / "netns"
    path.symlink_to(lab.netns)
    lab.add(lab.conf(), netns=str(path))
    with _namespace(f"ucni-{os.getpid()}") as other:
        path.unlink()
        path.symlink_to(other)
        poll(lambda: lab.states() == {}, "the attachment is removed")
    lab.assert_clean()


def test_a_namespace_with_the_number_of_a_dead_one_gets_nothing_of_it(lab: ExampleLab) -> None:
    daemon = started(lab, "watch_interval = 0.05\nreconcile_interval = 0.05\ngrace = 0")
    names = (f"ucni-{os.getpid()}-{number}" for number in count())
    # Use several, because other processes may get a namespace's number first.
    links: dict[int, Path] = {}
    with ExitStack() as stack:
        for container in ("c1", "c2", "c3", "c4"):
            path = stack.enter_context(_namespace(next(names)))
            link = lab.directory / container
            link.symlink_to(path)
            links[os.stat(path).st_ino] = link
            lab.add(lab.conf(), container=container, netns=str(link))
        daemon.kill()
    with ExitStack() as stack:

        def reused() -> str:
            path = stack.enter_context(_namespace(next(names)))
            return path if os.stat(path).st_ino in links else ""

        path = poll(reused, "the kernel uses the number of a namespace again")
        link = links[os.stat(path).st_ino]
        link.unlink()
        link.symlink_to(path)
        for port in lab.switch.glob("*.*"):
            port.unlink()
        daemon.start()
        poll(lambda: lab.states() == {}, "the dead ones' attachments are removed")
        assert lab.ports() == []
        assert "is restored" not in daemon.said()
        lab.assert_clean()


def test_a_file_in_the_place_of_a_namespace_may_be_a_mount_that_is_not_seen(
    lab: ExampleLab,
) -> None:
    daemon = started(lab, "watch_interval = 0.05\ngrace = 0")
    path = lab.directory / "netns"
    path.symlink_to(lab.netns)
    lab.add(lab.conf(), netns=str(path))
    gone = lab.directory / "gone"
    gone.symlink_to(lab.netns)
    lab.add(lab.conf(), netns=str(gone), container="c2")
    path.unlink()
    path.touch()
    gone.unlink()
    poll(lambda: lab.states() == {"c1": "attached"}, "the other is removed")
    assert "c1" not in daemon.said()


def test_a_del_with_the_switch_down_is_done_when_it_is_back(lab: ExampleLab) -> None:
    started(lab, "watch_interval = 0.05")
    conf = lab.conf(ipam=lab.spy_ipam())
    for name in ("c1", "c2"):
        lab.add(conf, container=name)
    lab.switch_down()
    for name in ("c1", "c2"):
        lab.call("DEL", conf, container=name).succeeded()
    assert lab.states() == {"c1": "deleting", "c2": "deleting"}
    assert len(lab.leases()) == 2
    lab.switch_up()
    poll(lambda: lab.states() == {}, "both are removed")
    lab.assert_clean()


def test_a_del_without_a_namespace_and_a_record_does_not_keep_the_others(lab: ExampleLab) -> None:
    conf = lab.conf()
    daemon = started(lab, "watch_interval = 0.05")
    lab.add(conf, container="recorded")
    lab.switch_down()
    lab.call("DEL", conf, container="unrecorded", netns="").succeeded()
    lab.call("DEL", conf, container="recorded").succeeded()
    assert lab.states() == {"recorded": "deleting", "unrecorded": "unknown"}
    lab.switch_up()
    poll(lambda: lab.states() == {}, "both are removed")
    assert "internal error" not in daemon.said()
    lab.assert_clean()


def test_a_removal_that_fails_is_told_once_and_tried_again(trouble: ExampleLab) -> None:
    daemon = started(trouble, "watch_interval = 0.05")
    conf = trouble.conf(ipam=trouble.spy_ipam())
    trouble.add(conf)
    trouble.add(conf, container="c2")
    trouble.fail("delete")
    assert trouble.call("DEL", conf).code == 999
    poll(lambda: "cannot remove attachment" in daemon.said(), "a failure")
    trouble.call("STATUS", conf)
    trouble.mend()
    poll(lambda: trouble.states() == {"c2": "attached"}, "it is removed")
    assert daemon.said().count("cannot remove attachment") == 1


@pytest.mark.parametrize("step", ["generation", "restore", "delete"])
def test_an_engine_that_exits_does_not_end_what_looks_after_it(
    trouble: ExampleLab, step: str
) -> None:
    daemon = started(trouble, OFTEN)
    for name in ("stays", "goes"):
        trouble.add(trouble.conf(), container=name)
    trouble.fail(step, "SystemExit('I am off')")
    assert trouble.call("DEL", trouble.conf(), container="goes").status == (step == "delete")
    for port in trouble.switch.glob("*.*"):
        port.unlink()
    poll(lambda: daemon.said().count("I am off") > (step == "delete"), "it has exited")
    trouble.mend()
    poll(lambda: trouble.states() == {"stays": "attached"}, "one is removed")
    poll(lambda: len(trouble.ports()) == 1, "the other is put back")


def test_a_host_part_that_is_no_object_does_not_keep_the_others(lab: ExampleLab) -> None:
    started(lab, OFTEN)
    for name in ("bad", "good"):
        lab.add(lab.conf(), container=name)
    with closing(sqlite3.connect(lab.plugin.state_dir / "attachments.db")) as db, db:
        db.execute(
            "UPDATE attachment SET config = json_set(config, '$.host', 5) "
            "WHERE container_id = 'bad'"
        )
    for port in lab.switch.glob("*.*"):
        port.unlink()
    poll(lambda: len(lab.ports()) == 1, "the other is put back")


def test_what_a_dead_add_left_is_removed_at_the_start(lab: ExampleLab) -> None:
    daemon = started(lab)
    conf = lab.conf(ipam=lab.spy_ipam())
    lab.add(conf)
    daemon.kill()
    store = Store(lab.plugin.state_dir, 10)
    (record,) = store.all()
    store.remove(record.id)
    store.begin(
        Record(
            network=record.network,
            container_id=record.container_id,
            ifname=record.ifname,
            netns=record.netns,
            engine=record.engine,
            config=record.config,
            path=record.path,
        )
    )
    store.close()
    daemon.start()
    poll(lambda: lab.states() == {}, "it is removed")
    lab.assert_clean()


def test_an_idle_daemon_costs_nothing(lab: ExampleLab) -> None:
    """Measure some two hundred rounds with attachments, none of which reads the store."""
    daemon = started(lab, "watch_interval = 0.01\nreconcile_interval = 0")
    for number in range(5):
        lab.add(lab.conf(), container=f"c{number}")

    def ticks() -> int:
        fields = Path(f"/proc/{daemon.pid}/stat").read_text().rpartition(")")[2].split()
        return int(fields[11]) + int(fields[12])

    def rounds() -> int:
        status = Path(f"/proc/{daemon.pid}/status").read_text()
        return sum(int(line.split()[1]) for line in status.splitlines() if "ctxt_sw" in line)

    before = ticks()
    marker = queued(lab, b"no frame", 0)
    poll(lambda: not marker.exists(), "a round")
    begun = os.times().elapsed
    poll(lambda: os.times().elapsed - begun > 2, "two seconds")
    used = (ticks() - before) / os.sysconf("SC_CLK_TCK")
    print(f"{used / 2:.1%} of a processor at 100 rounds a second, {rounds()} switches")  # noqa: T201  for the reader of -s
    assert used < 1
