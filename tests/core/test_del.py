"""DEL is final: nothing comes back, addresses outlive their ports, and no DEL gets stuck."""

from __future__ import annotations

import json
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from lab.disk import fill, small_disk
from lab.node import poll
from lab.plugin import Outcome, clean_environ
from userspace_cni.api import attachment_id

if TYPE_CHECKING:
    from collections.abc import Iterator

    from core.example_lab import ExampleLab

GC = "cni.dev/valid-attachments"
ID = attachment_id("net", "c1", "eth0")
ATTACHED = ([ID], ["10.66.0.2"], {"c1": "attached"})


@contextmanager
def _impatient(lab: ExampleLab) -> Iterator[None]:
    """Limit the time that requests wait to 0.3 s."""
    config = lab.directory / "config.toml"
    patient = config.read_text()
    config.write_text(f"timeout = 0.3\n{patient}")
    _restart_daemon(lab)
    yield
    config.write_text(patient)
    _restart_daemon(lab)


def _restart_daemon(lab: ExampleLab) -> None:
    if lab.plugin.daemon is not None:
        lab.plugin.daemon.stop()
        lab.plugin.serve(None)


def _there(lab: ExampleLab) -> tuple[list[str], list[str], dict[str, str]]:
    return lab.ports(), lab.leases(), lab.states()


# -- a store that cannot be written, or read


@pytest.mark.parity
def test_on_a_full_disk_a_del_touches_nothing_and_is_asked_for_again(lab: ExampleLab) -> None:
    conf = lab.conf(ipam=lab.spy_ipam())
    with small_disk(lab.plugin) as disk:
        lab.add(conf)
        ballast = fill(disk)
        outcome = lab.call("DEL", conf)
        assert outcome.code == 11
        assert str(disk) in outcome.text
        assert lab.spy.calls("DEL") == []
        ballast.unlink()
        assert _there(lab) == ATTACHED
        lab.call("DEL", conf).succeeded()
        lab.assert_clean()


def test_a_del_that_could_not_remove_its_record_is_asked_for_again(lab: ExampleLab) -> None:
    """The disk is full when only the record is left to remove."""
    with small_disk(lab.plugin) as disk:
        ballast = disk / "ballast"
        conf = lab.conf(
            ipam=lab.script(
                "cat > /dev/null; case $CNI_COMMAND in"
                ' ADD) echo \'{"cniVersion": "1.1.0", "ips": [{"address": "10.66.0.2/24"}]}\';;'
                f" DEL) head -c 10M /dev/zero > {ballast} 2> /dev/null; true;; esac"
            )
        )
        lab.add(conf)
        assert lab.call("DEL", conf).code == 11
        ballast.unlink()
        assert lab.states() == {"c1": "deleting"}
        lab.script("cat > /dev/null")
        lab.call("DEL", conf).succeeded()
        lab.assert_clean()


@pytest.mark.parity
def test_a_locked_store_is_code_11_and_nothing_is_touched(lab: ExampleLab) -> None:
    conf = lab.conf(ipam=lab.spy_ipam())
    lab.add(conf)
    store = lab.plugin.state_dir / "attachments.db"
    with _impatient(lab), closing(sqlite3.connect(store)) as other:
        other.execute("BEGIN EXCLUSIVE")
        outcome = lab.call("DEL", conf)
        assert outcome.code == 11
        assert "locked" in outcome.text
    assert _there(lab) == ATTACHED
    lab.call("DEL", conf).succeeded()
    lab.assert_clean()


def test_what_the_store_cannot_tell_is_not_freed(lab: ExampleLab) -> None:
    """A DEL of an attachment that may or may not be recorded."""
    conf = lab.conf(ipam=lab.spy_ipam())
    (lab.plugin.state_dir / "attachments.db").mkdir(parents=True)
    outcome = lab.call("DEL", conf)
    assert outcome.code == 11
    assert str(lab.plugin.state_dir) in outcome.text
    assert lab.spy.calls() == []
    (lab.plugin.state_dir / "attachments.db").rmdir()
    lab.call("DEL", conf).succeeded()


@pytest.mark.own_process("it has few file descriptors")
@pytest.mark.one_process("a daemon has its files open")
def test_without_file_descriptors_a_del_is_done_or_told(lab: ExampleLab) -> None:
    conf = lab.conf(ipam=lab.spy_ipam())
    told = 0
    for limit in range(4, 24, 2):
        if not lab.states():
            lab.add(conf)
        before = _there(lab)
        outcome = _limited(lab, limit)
        ports, leases, states = _there(lab)
        if outcome.status == 0:
            assert (ports, leases, states) == ([], [], {}), limit
            continue
        told += 1
        assert bool(leases) >= bool(ports), limit
        assert states == before[2] or states == {"c1": "deleting"}, limit
        assert states == {"c1": "deleting"} or (ports, leases) == before[:2], limit
    assert told
    lab.call("DEL", conf).succeeded()
    lab.assert_clean()


def _limited(lab: ExampleLab, files: int) -> Outcome:
    conf = lab.conf(ipam=lab.spy_ipam())
    done = subprocess.run(
        ["prlimit", f"--nofile={files}", lab.plugin.executable],
        input=json.dumps(conf).encode(),
        env={
            **clean_environ(),
            **lab.plugin.env,
            "CNI_COMMAND": "DEL",
            "CNI_CONTAINERID": "c1",
            "CNI_IFNAME": "eth0",
            "CNI_PATH": str(lab.plugin.bin_dir),
        },
        capture_output=True,
        check=False,
    )
    return Outcome(status=done.returncode, out=done.stdout.decode(), err=done.stderr.decode())


# -- a switch that is down


@pytest.mark.parametrize("path", [True, False], ids=["CNI_PATH", "no CNI_PATH"])
@pytest.mark.one_process("the daemon retries by itself: tests/daemon/test_del.py")
def test_an_outage_leaves_nothing_that_cannot_be_removed(lab: ExampleLab, path: bool) -> None:
    """Each retry of the runtime has a new container ID."""
    conf = lab.conf(ipam=lab.spy_ipam())
    lab.switch_down()
    for container in ("c1", "c2", "c3"):
        assert lab.call("ADD", conf, container=container).code == 11
        environ = {} if path else {"CNI_PATH": ""}
        lab.call("DEL", conf, container=container, environ=environ).succeeded()
    assert set(lab.states().values()) == {"unknown"}
    lab.switch_up()
    lab.call("DEL", conf, container="c1").succeeded()
    lab.assert_clean()


@pytest.mark.parity
def test_what_the_switch_has_of_an_unrecorded_attachment_is_freed_or_told(
    lab: ExampleLab,
) -> None:
    conf = lab.conf(ipam=lab.spy_ipam())
    lab.add(conf)
    if lab.plugin.daemon is not None:
        lab.plugin.daemon.stop()
    shutil.rmtree(lab.plugin.state_dir)
    broken = lab.conf(ipam=lab.spy_ipam(fail=["DEL"]))
    assert lab.call("DEL", broken).code == 111
    assert lab.states() == {"c1": "deleting"}
    assert lab.call("DEL", broken).code == 111
    assert lab.leases() == ["10.66.0.2"]


# -- configurations with which no ADD can succeed


def test_after_an_add_without_its_ipam_plugin_del_succeeds(lab: ExampleLab) -> None:
    conf = lab.conf(ipam={"type": "not-there"})
    assert lab.call("ADD", conf).code == 105
    lab.call("DEL", conf).succeeded()
    lab.call("DEL", conf, environ={"CNI_PATH": ""}).succeeded()
    lab.assert_clean()


def test_after_an_add_with_a_bad_subnet_del_succeeds(lab: ExampleLab) -> None:
    conf = lab.conf("1.0.0", ipam=lab.host_local() | {"ranges": [[{"subnet": "10.66.0.0/99"}]]})
    assert lab.call("ADD", conf).status != 0
    lab.call("DEL", conf).succeeded()
    lab.assert_clean()


def test_an_ipam_plugin_that_asks_for_patience_gets_it(lab: ExampleLab) -> None:
    conf = lab.conf(
        ipam=lab.script('cat > /dev/null; echo \'{"code": 11, "msg": "not now"}\'; exit 1')
    )
    assert lab.call("DEL", conf).code == 11


@pytest.mark.one_process("the daemon removes what is unknown by itself")
def test_a_failed_add_whose_ipam_plugin_never_works_can_be_deleted(trouble: ExampleLab) -> None:
    conf = trouble.conf(ipam=trouble.spy_ipam(fail=["ADD", "DEL"]))
    trouble.fail("undo", "RuntimeError('cannot undo')")
    assert trouble.call("ADD", conf).code == 111
    assert trouble.states() == {"c1": "unknown"}
    trouble.mend()
    for port in trouble.switch.glob(f"*.{ID}"):
        port.unlink()
    trouble.call("DEL", conf).succeeded()
    trouble.assert_clean()


# -- an address stays allocated as long as its port exists


@contextmanager
def _uninstalled(trouble: ExampleLab, interpreter: Path) -> Iterator[None]:
    def run_by(python: Path) -> None:
        if trouble.plugin.daemon is not None:
            trouble.plugin.daemon.stop()
        trouble.plugin.interpreted_by(python)

    run_by(Path(sys.executable))
    yield
    run_by(interpreter)


@pytest.mark.parity
@pytest.mark.parametrize("command", ["DEL", "GC"])
def test_without_its_engine_an_attachment_stays_whole(
    trouble: ExampleLab, trouble_interpreter: Path, command: str
) -> None:
    conf = trouble.conf(ipam=trouble.spy_ipam())
    trouble.add(conf)
    with _uninstalled(trouble, trouble_interpreter):
        for _ in range(2):
            outcome = trouble.call(command, conf | {GC: []})
            assert outcome.code == 100
            assert "'trouble' is not installed" in outcome.text
            assert "install the package" in outcome.text
        assert _there(trouble) == ([ID], ["10.66.0.2"], {"c1": "deleting"})
    trouble.call(command, conf | {GC: []}).succeeded()
    trouble.assert_clean()


@pytest.mark.parity
def test_gc_frees_no_address_of_a_port_that_is_there(trouble: ExampleLab) -> None:
    conf = trouble.conf(ipam=trouble.spy_ipam())
    for container in ("c1", "c2"):
        trouble.add(conf, container=container)
    valid = [{"containerID": "c2", "ifname": "eth0"}]
    trouble.fail("delete")
    assert trouble.call("GC", conf | {GC: valid}).code == 999
    assert len(trouble.leases()) == 2
    trouble.mend()
    trouble.call("GC", conf | {GC: valid}).succeeded()
    assert trouble.leases() == ["10.66.0.3"]
    # The address of a port without a record is unknown.
    if trouble.plugin.daemon is not None:
        trouble.plugin.daemon.stop()
    shutil.rmtree(trouble.plugin.state_dir)
    trouble.fail("delete")
    assert trouble.call("GC", conf | {GC: []}).code == 999
    assert trouble.leases() == ["10.66.0.3"]
    trouble.mend()
    trouble.call("GC", conf | {GC: []}).succeeded()
    trouble.assert_clean()


@pytest.mark.own_process("it is killed")
@pytest.mark.one_process("the daemon goes on when its client is killed")
def test_gc_removes_the_lock_of_an_add_that_died_before_its_record(lab: ExampleLab) -> None:
    conf = lab.conf(ipam=lab.spy_ipam())
    lab.add(conf, container="c2")
    with closing(sqlite3.connect(lab.plugin.state_dir / "attachments.db")) as other:
        other.execute("BEGIN EXCLUSIVE")
        with lab.started("ADD", json.dumps(conf).encode()) as process:
            poll(lab.locks, "the lock of the ADD, which waits for the store")
            process.kill()
            process.wait()
    assert lab.locks()
    valid = [{"containerID": "c2", "ifname": "eth0"}]
    lab.call("GC", conf | {GC: valid}).succeeded()
    assert (lab.locks(), lab.states()) == ([], {"c2": "attached"})


# -- paths that cannot be written to

LONG = "/run/" + "n" * 300


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        ({"runtimeConfig": {"CNIDeviceInfoFile": LONG}}, "runtimeConfig.CNIDeviceInfoFile"),
        ({"runtimeConfig": {"CNIDeviceInfoFile": "relative"}}, "runtimeConfig.CNIDeviceInfoFile"),
        ({"sharedDir": LONG}, "sharedDir"),
        ({"sharedDir": "/run" + "/n" * 3000}, "sharedDir"),
    ],
    ids=["device-info", "no device-info", "name", "path"],
)
def test_a_path_that_is_too_long_fails_add_and_keeps_no_del(
    lab: ExampleLab, keys: dict[str, Any], named: str
) -> None:
    conf = lab.conf(ipam=lab.spy_ipam(), **keys)
    outcome = lab.call("ADD", conf)
    assert outcome.code == 7
    assert named in outcome.text
    assert lab.spy.calls() == []
    lab.call("DEL", conf).succeeded()
    # Earlier versions did not refuse this ADD.
    lab.add(lab.conf(ipam=lab.spy_ipam()))
    with closing(sqlite3.connect(lab.plugin.state_dir / "attachments.db")) as db, db:
        db.execute("UPDATE attachment SET config = ?", (json.dumps(conf),))
    lab.call("DEL", conf).succeeded()
    lab.assert_clean()


def test_a_container_id_that_is_no_name_of_a_directory_keeps_no_del(lab: ExampleLab) -> None:
    lab.add(lab.conf(), container="c" * 300)
    lab.call("DEL", lab.conf(), container="c" * 300).succeeded()
    lab.assert_clean()
