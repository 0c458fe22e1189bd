"""The runtime with the example engine: the life cycle of attachments and its failures."""

from __future__ import annotations

import json
import shutil
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from lab.disk import fill, small_disk
from lab.node import poll
from lab.plugin import read_only
from userspace_cni.api import attachment_id
from userspace_cni.locks import Locks

if TYPE_CHECKING:
    from collections.abc import Iterator

    from core.example_lab import ExampleLab
    from lab.plugin import Outcome

GC = "cni.dev/valid-attachments"
ID = attachment_id("net", "c1", "eth0")


def _valid(*containers: str) -> list[dict[str, str]]:
    return [{"containerID": container, "ifname": "eth0"} for container in containers]


# -- the life cycle


@pytest.mark.parity
def test_an_attachment_lives_and_leaves_nothing(lab: ExampleLab) -> None:
    conf = lab.conf(ipam=lab.spy_ipam())
    lab.call("STATUS", conf).succeeded()
    result = lab.add(conf)
    (inside,) = result["interfaces"]
    assert (inside["name"], inside["sandbox"], inside["mtu"]) == ("eth0", lab.netns, 1500)
    assert result == {
        "cniVersion": "1.1.0",
        "interfaces": [inside],
        "ips": [{"address": "10.66.0.2/24", "gateway": "10.66.0.1", "interface": 0}],
    }
    assert lab.states() == {"c1": "attached"}
    assert lab.ports() == [ID]
    checked = conf | {"prevResult": result}
    lab.call("CHECK", checked).succeeded()
    lab.call("STATUS", conf).succeeded()
    lab.call("GC", conf | {GC: _valid("c1")}).succeeded()
    lab.call("CHECK", checked).succeeded()
    lab.call("DEL", checked).succeeded()
    lab.assert_clean()
    assert lab.call("CHECK", checked).code == 104


def test_check_notices_a_port_that_is_gone(lab: ExampleLab) -> None:
    result = lab.add(lab.conf())
    checked = lab.conf(prevResult=result)
    (port,) = lab.switch.iterdir()
    port.unlink()
    outcome = lab.call("CHECK", checked)
    assert outcome.code == 104
    assert str(port) in outcome.text
    stranger = lab.conf(prevResult={"interfaces": [{"name": "eth9", "sandbox": lab.netns}]})
    outcome = lab.call("CHECK", stranger)
    assert outcome.code == 104
    assert "eth0" in outcome.text


@pytest.mark.parity
@pytest.mark.parametrize(
    ("container", "ifname"), [("a", "e" * 15), ("a" * 200, "e")], ids=["short", "long"]
)
def test_long_and_short_names_are_served(lab: ExampleLab, container: str, ifname: str) -> None:
    conf = lab.conf("1.0.0", ipam=lab.host_local())
    result = lab.add(conf, container=container, ifname=ifname)
    assert result["interfaces"][0]["name"] == ifname
    twin = lab.add(conf, container=f"{container}b", ifname=ifname)
    assert twin["ips"] != result["ips"]
    assert len(lab.ports()) == 2
    checked = conf | {"prevResult": result}
    lab.call("CHECK", checked, container=container, ifname=ifname).succeeded()
    for name in (container, f"{container}b"):
        lab.call("DEL", conf, container=name, ifname=ifname).succeeded()
    lab.assert_clean()


@pytest.mark.parity
def test_del_can_be_repeated_and_needs_no_add(lab: ExampleLab) -> None:
    conf = lab.conf("1.0.0", ipam=lab.host_local())
    lab.call("DEL", conf, container="never-added").succeeded()
    lab.add(conf)
    for netns in (lab.netns, "", "/run/netns/gone-long-ago"):
        lab.call("DEL", conf, netns=netns).succeeded()
    lab.assert_clean()


@pytest.mark.parametrize("path", ["", "/run/netns/gone-long-ago"])
def test_del_needs_no_network_namespace(lab: ExampleLab, path: str) -> None:
    conf = lab.conf(ipam=lab.spy_ipam())
    lab.add(conf)
    lab.call("DEL", conf, netns=path).succeeded()
    lab.assert_clean()


def test_a_name_that_is_taken_is_refused_and_stays(lab: ExampleLab) -> None:
    conf = lab.conf(ipam=lab.spy_ipam())
    lab.add(conf)
    outcome = lab.call("ADD", conf)
    assert outcome.code == 103
    assert all(word in outcome.text for word in ("c1", "eth0", "net"))
    assert (lab.states(), lab.ports(), lab.leases()) == ({"c1": "attached"}, [ID], ["10.66.0.2"])


# -- a switch that is down


@pytest.mark.parity
def test_a_switch_that_is_down_fails_add_and_status_and_leaves_nothing(lab: ExampleLab) -> None:
    conf = lab.conf(ipam=lab.spy_ipam())
    lab.switch_down()
    status = lab.call("STATUS", conf)
    assert status.code == 50
    assert str(lab.switch) in status.text
    outcome = lab.call("ADD", conf)
    assert outcome.code == 11
    assert "mkdir" in outcome.text
    assert [call.command for call in lab.spy.calls()] == ["ADD", "DEL"]
    lab.switch_up()
    lab.assert_clean()


@pytest.mark.one_process("the daemon retries by itself: tests/daemon/test_reconcile.py")
def test_del_with_the_switch_down_is_queued_until_it_is_back(lab: ExampleLab) -> None:
    conf = lab.conf(ipam=lab.spy_ipam())
    lab.add(conf)
    lab.switch_down()
    for _ in range(2):
        lab.call("DEL", conf).succeeded()
    assert lab.states() == {"c1": "deleting"}
    assert lab.leases() == ["10.66.0.2"]
    again = lab.call("ADD", conf)
    assert again.code == 11
    assert "still to be removed" in again.text
    lab.switch_up()
    assert lab.ports() == [ID]
    lab.add(conf, container="c2")
    assert lab.states() == {"c1": "deleting", "c2": "attached"}  # an ADD does not wait for others
    lab.call("DEL", conf, container="c2").succeeded()
    lab.assert_clean()


def test_an_unrecorded_del_with_the_switch_down_is_queued_too(lab: ExampleLab) -> None:
    conf = lab.conf(ipam=lab.spy_ipam())
    lab.add(conf)
    shutil.rmtree(lab.plugin.state_dir)
    lab.switch_down()
    lab.call("DEL", conf).succeeded()
    assert lab.states() == {"c1": "unknown"}
    lab.switch_up()
    lab.call("DEL", conf, container="another").succeeded()
    lab.call("GC", conf | {GC: []}).succeeded()
    lab.assert_clean()


def test_gc_does_what_was_queued(lab: ExampleLab) -> None:
    conf = lab.conf(ipam=lab.spy_ipam())
    lab.add(conf)
    lab.switch_down()
    lab.call("DEL", conf).succeeded()
    assert lab.call("GC", conf | {GC: []}).code == 11
    assert lab.states() == {"c1": "deleting"}
    lab.switch_up()
    lab.call("GC", conf | {GC: []}).succeeded()
    lab.assert_clean()


def test_add_of_a_queued_key_cleans_first_when_the_switch_is_back(lab: ExampleLab) -> None:
    conf = lab.conf(ipam=lab.spy_ipam())
    lab.add(conf)
    lab.switch_down()
    lab.call("DEL", conf).succeeded()
    lab.switch_up()
    assert lab.add(conf)["ips"][0]["address"] == "10.66.0.2/24"
    assert lab.states() == {"c1": "attached"}


# -- an ADD that dies


@contextmanager
def _killed_in_engine(trouble: ExampleLab) -> Iterator[dict[str, Any]]:
    """Kill an ADD after its engine created the port; yield the configuration."""
    conf = trouble.conf(ipam=trouble.spy_ipam())
    (trouble.switch / "hang-add").touch()
    with trouble.started("ADD", json.dumps(conf).encode()) as process:
        poll((trouble.switch / "hanging-add").exists, "the port")
        poll(trouble.leases, "the address")
        process.kill()
        process.wait()
    (trouble.switch / "hang-add").unlink()
    assert (trouble.ports(), trouble.leases()) == ([ID], ["10.66.0.2"])
    assert trouble.states() == {"c1": "adding"}
    yield conf


@pytest.mark.own_process("it is killed")
@pytest.mark.one_process("the daemon goes on when its client is killed")
@pytest.mark.parametrize("cleaner", ["DEL", "GC"])
def test_an_add_killed_in_the_engine_is_cleaned_up(trouble: ExampleLab, cleaner: str) -> None:
    with _killed_in_engine(trouble) as conf:
        trouble.call(cleaner, conf | {GC: []}).succeeded()
    trouble.assert_clean()


@pytest.mark.own_process("it is killed")
@pytest.mark.one_process("the daemon goes on when its client is killed")
def test_a_new_add_cleans_up_after_one_that_was_killed(trouble: ExampleLab) -> None:
    with _killed_in_engine(trouble) as conf:
        result = trouble.add(conf)
    assert result["ips"][0]["address"] == "10.66.0.2/24"
    assert [call.command for call in trouble.spy.calls()] == ["ADD", "DEL", "ADD"]
    trouble.call("DEL", conf).succeeded()
    trouble.assert_clean()


# -- engines that misbehave

#: A thread whose stack does not fit into any machine's memory.
_NO_THREAD = """exec('''
import threading
before = threading.stack_size(1 << 46)
try:
    threading.Thread(target=print).start()
finally:
    threading.stack_size(before)
''')"""


@pytest.mark.parity
@pytest.mark.parametrize(
    ("exception", "code", "says"),
    [
        ("ZeroDivisionError('by design')", 999, "ZeroDivisionError: by design"),
        ("KeyError('a key')", 999, "a key"),
        ("OSError(28, 'No space left on device')", 999, "No space left"),
        ("SystemExit(0)", 999, "SystemExit"),
        ("UnicodeDecodeError('utf-8', b'x', 0, 1, 'odd')", 999, "odd"),
        ("RecursionError()", 999, "RecursionError"),
        (_NO_THREAD, 11, "out of threads: can't start new thread"),
        (_NO_THREAD, 11, "TasksMax"),
        ("OSError(24, 'Too many open files')", 11, "LimitNOFILE"),
        ("OSError(23, 'Too many open files in system')", 11, "fs.file-max"),
        ("MemoryError()", 11, "out of memory"),
    ],
)
def test_whatever_an_engine_raises_add_undoes_and_reports(
    trouble: ExampleLab, exception: str, code: int, says: str
) -> None:
    conf = trouble.conf(ipam=trouble.spy_ipam())
    trouble.fail("add", exception)
    outcome = trouble.call("ADD", conf)
    assert outcome.code == code
    assert says in outcome.text
    assert "Traceback" in outcome.err
    trouble.assert_clean()


def test_an_engine_that_raises_in_check_or_status_is_reported(trouble: ExampleLab) -> None:
    conf = trouble.conf()
    result = trouble.add(conf)
    trouble.fail("check")
    trouble.fail("status")
    for command in ("CHECK", "STATUS"):
        outcome = trouble.call(command, conf | {"prevResult": result})
        assert outcome.code in (50, 999)
        assert "ZeroDivisionError: by design" in outcome.text


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"ifname": "trouble0"}, "wants out"),
        ({"container": "trouble"}, "no way to prepare"),
    ],
)
def test_a_failing_container_engine_undoes_the_host_engine(
    trouble: ExampleLab, keys: dict[str, str], says: str
) -> None:
    outcome = trouble.call("ADD", trouble.conf(ipam=trouble.spy_ipam()), **keys)
    assert outcome.code == 999
    assert says in outcome.text
    trouble.assert_clean()


@pytest.mark.parametrize("cleaner", ["DEL", "GC"])
@pytest.mark.parametrize("exception", ["RuntimeError('cannot undo')", "SystemExit('cannot undo')"])
def test_a_failing_undo_leaves_a_record_that_is_healed(
    trouble: ExampleLab, exception: str, cleaner: str
) -> None:
    conf = trouble.conf(ipam=trouble.spy_ipam())
    trouble.fail("add")
    trouble.fail("undo", exception)
    assert "by design" in trouble.call("ADD", conf).text
    assert trouble.states() == {"c1": "deleting"}
    # The port may still exist.
    assert trouble.leases() == ["10.66.0.2"]
    trouble.mend()
    trouble.call(cleaner, conf | {GC: []}).succeeded()
    trouble.assert_clean()


def test_an_address_is_not_freed_while_its_port_is_there(trouble: ExampleLab) -> None:
    conf = trouble.conf(ipam=trouble.spy_ipam())
    trouble.add(conf)
    trouble.fail("delete")
    outcome = trouble.call("DEL", conf)
    assert outcome.code == 999
    assert "by design" in outcome.text
    assert (trouble.ports(), trouble.leases()) == ([ID], ["10.66.0.2"])
    assert trouble.states() == {"c1": "deleting"}
    trouble.mend()
    trouble.call("DEL", conf).succeeded()
    trouble.assert_clean()


def test_what_cannot_be_removed_does_not_fail_another_add(trouble: ExampleLab) -> None:
    conf = trouble.conf(ipam=trouble.spy_ipam())
    trouble.add(conf)
    trouble.fail("delete")
    assert trouble.call("DEL", conf).code == 999
    assert trouble.add(conf, container="c2")["ips"]
    assert trouble.states() == {"c1": "deleting", "c2": "attached"}


@pytest.mark.parametrize("exception", ["OSError('by design')", "SystemExit('by design')"])
def test_an_engine_that_cannot_close_fails_no_request(trouble: ExampleLab, exception: str) -> None:
    trouble.fail("close", exception)
    trouble.add(trouble.conf())
    trouble.call("DEL", trouble.conf()).succeeded()
    trouble.mend()
    trouble.assert_clean()


@pytest.mark.parametrize("exception", ["OSError('by design')", "SystemExit('by design')"])
def test_gc_goes_on_after_a_failure_and_reports_it(trouble: ExampleLab, exception: str) -> None:
    conf = trouble.conf(ipam=trouble.spy_ipam())
    for container in ("c1", "c2"):
        trouble.add(conf, container=container)
    trouble.fail("delete", exception)
    outcome = trouble.call("GC", conf | {GC: []})
    assert outcome.code == 999
    assert outcome.text.count("by design") >= 2
    assert len(trouble.leases()) == 2
    trouble.mend()
    trouble.fail("attachments")
    assert "by design" in trouble.call("GC", conf | {GC: []}).text
    trouble.mend()
    trouble.call("GC", conf | {GC: []}).succeeded()
    trouble.assert_clean()


# -- the configuration that DEL uses


def test_del_uses_the_configuration_of_the_add(trouble: ExampleLab) -> None:
    """The network was switched to another engine and lost its IPAM in between."""
    conf = trouble.conf(ipam=trouble.spy_ipam())
    trouble.add(conf)
    changed = trouble.conf(host={"engine": "nope", "iftype": "memif"}, mtu=9000)
    trouble.call("DEL", changed).succeeded()
    assert trouble.spy.calls("DEL")[-1].conf == conf
    trouble.assert_clean()


def test_del_without_state_works_by_tags_and_the_given_configuration(lab: ExampleLab) -> None:
    conf = lab.conf(ipam=lab.spy_ipam())
    for container in ("c1", "c2"):
        lab.add(conf, container=container)
    shutil.rmtree(lab.plugin.state_dir)
    lab.call("DEL", conf).succeeded()
    assert lab.ports() == [attachment_id("net", "c2", "eth0")]
    assert lab.leases() == ["10.66.0.3"]


def test_del_of_an_unknown_attachment_with_an_unusable_network_succeeds(lab: ExampleLab) -> None:
    """An ADD cannot have succeeded with it, and the runtime would repeat the DEL forever."""
    lab.call("DEL", lab.conf(host={"engine": "nope"})).succeeded()
    lab.call("DEL", lab.conf(mtu="big")).succeeded()


# -- many at once


@pytest.mark.parity
def test_of_two_adds_of_one_key_one_wins(lab: ExampleLab) -> None:
    conf = lab.conf(ipam=lab.spy_ipam(sleep={"ADD": 0.3}))
    with ThreadPoolExecutor(4) as pool:
        outcomes = list(pool.map(lambda _: lab.call("ADD", conf), range(4)))
    winners = [outcome for outcome in outcomes if outcome.status == 0]
    assert len(winners) == 1
    assert {outcome.code for outcome in outcomes if outcome not in winners} <= {11, 103}
    assert (lab.ports(), lab.leases()) == ([ID], ["10.66.0.2"])
    lab.call("DEL", conf).succeeded()
    lab.assert_clean()


def test_fifty_parallel_adds_and_dels(lab: ExampleLab) -> None:
    conf = lab.conf("1.0.0", ipam=lab.host_local())
    names = [f"c{number}" for number in range(50)]

    def call(command: str) -> list[Outcome]:
        with ThreadPoolExecutor(10) as pool:
            return list(pool.map(lambda name: lab.call(command, conf, container=name), names))

    results = [outcome.result for outcome in call("ADD")]
    assert len({result["ips"][0]["address"] for result in results}) == 50
    assert len({result["interfaces"][0]["mac"] for result in results}) == 50
    assert len(lab.ports()) == 50
    assert set(lab.states().values()) == {"attached"}
    for outcome in call("DEL"):
        outcome.succeeded()
    lab.assert_clean()


# -- GC


@pytest.mark.parity
def test_gc_removes_what_is_not_valid_and_only_in_its_network(lab: ExampleLab) -> None:
    conf = lab.conf(ipam=lab.spy_ipam())
    other = conf | {"name": "other"}
    for container in ("keep", "lost"):
        lab.add(conf, container=container)
    lab.add(other, container="lost")
    lab.call(
        "GC", conf | {GC: [*_valid("keep"), {"containerID": "\ud800", "ifname": "x"}]}
    ).succeeded()
    lab.call("GC", conf | {GC: _valid("keep")}).succeeded()
    assert [(record.network, record.container_id) for record in lab.records()] == [
        ("net", "keep"),
        ("other", "lost"),
    ]
    assert len(lab.ports()) == 2


def test_gc_finds_by_tag_what_no_record_tells(lab: ExampleLab) -> None:
    conf = lab.conf()
    for container in ("c1", "c2"):
        lab.add(conf, container=container)
    lab.add(conf | {"name": "other"})
    shutil.rmtree(lab.plugin.state_dir)
    lab.call("GC", conf | {GC: _valid("c2")}).succeeded()
    kept = [attachment_id("net", "c2", "eth0"), attachment_id("other", "c1", "eth0")]
    assert lab.ports() == sorted(kept)


@pytest.mark.parametrize("listed", [{}, {GC: None}], ids=["absent", "null"])
def test_gc_without_list_removes_nothing(lab: ExampleLab, listed: dict[str, Any]) -> None:
    lab.add(lab.conf())
    assert lab.call("GC", lab.conf() | listed).code == 7
    assert (lab.ports(), lab.states()) == ([ID], {"c1": "attached"})


@pytest.mark.parity
def test_gc_leaves_an_add_in_progress_alone(lab: ExampleLab) -> None:
    conf = lab.conf()
    lab.add(conf)
    locks = Locks(lab.plugin.run_dir / "locks", 1)
    with locks.hold(f"attachment {ID}"):
        lab.call("GC", conf | {GC: []}).succeeded()
        assert (lab.ports(), lab.states()) == ([ID], {"c1": "attached"})
    lab.call("GC", conf | {GC: []}).succeeded()
    lab.assert_clean()


@pytest.mark.parity
def test_gc_leaves_an_add_alone_that_ends_meanwhile(lab: ExampleLab) -> None:
    steps = {name: lab.directory / name for name in ("adding", "added", "deleting", "deleted")}
    wait = "cat >&2; touch {}; while [ ! -e {} ]; do sleep 0.02; done"
    ipam = lab.script(
        "case $CNI_COMMAND-$CNI_CONTAINERID in\n"
        f"ADD-new) {wait.format(steps['adding'], steps['added'])};;\n"
        f"DEL-old) {wait.format(steps['deleting'], steps['deleted'])};;\n"
        'esac\necho \'{"cniVersion": "1.1.0", "ips": [{"address": "10.66.0.9/24"}]}\''
    )
    conf = lab.conf(ipam=ipam)
    lab.add(conf, container="old")
    with ThreadPoolExecutor(2) as pool:
        added = pool.submit(lab.add, conf, container="new")
        poll(steps["adding"].exists, "the ADD")
        collected = pool.submit(lab.call, "GC", conf | {GC: []})
        poll(steps["deleting"].exists, "the GC")
        steps["added"].touch()
        assert added.result()
        steps["deleted"].touch()
        collected.result().succeeded()
    assert (len(lab.ports()), lab.states()) == (1, {"new": "attached"})
    lab.call("DEL", conf, container="new").succeeded()
    lab.assert_clean()


@pytest.mark.parity
def test_a_lock_that_is_held_too_long_is_code_11(lab: ExampleLab) -> None:
    lab.plugin.settings("\n")
    config = lab.directory / "config.toml"
    config.write_text("timeout = 0.2\n" + config.read_text())
    with Locks(lab.plugin.run_dir / "locks", 1).hold(f"attachment {ID}"):
        assert lab.call("ADD", lab.conf()).code == 11
    lab.assert_clean()


# -- a store that fails


@pytest.mark.parametrize("used", [False, True], ids=["never used", "used"])
def test_a_full_disk_fails_add_before_anything_is_touched(lab: ExampleLab, used: bool) -> None:
    conf = lab.conf(ipam=lab.spy_ipam())
    with small_disk(lab.plugin) as disk:
        if used:
            lab.add(conf)
            lab.call("DEL", conf).succeeded()
            lab.spy.log.unlink()
        ballast = fill(disk)
        outcome = lab.call("ADD", conf | {"dns": {"search": ["x" * 9000]}})
        assert outcome.code == 5
        assert str(disk) in outcome.text
        assert lab.spy.calls() == []
        assert lab.call("STATUS", conf).code == 50
        ballast.unlink()
        lab.assert_clean()


@pytest.mark.own_process("it goes on while the disk is filled")
def test_a_disk_that_fills_up_during_an_add_undoes_it(trouble: ExampleLab) -> None:
    conf = trouble.conf(ipam=trouble.spy_ipam())
    with small_disk(trouble.plugin) as disk:
        (trouble.switch / "hang-add").touch()
        with trouble.started("ADD", json.dumps(conf).encode()) as process:
            poll((trouble.switch / "hanging-add").exists, "the port")
            ballast = fill(disk)
            (trouble.switch / "hang-add").unlink()
            out = json.loads(process.stdout.read())
        assert out["code"] == 5
        assert (trouble.ports(), trouble.leases()) == ([], [])
        ballast.unlink()
        trouble.add(conf)
        trouble.call("DEL", conf).succeeded()
        trouble.assert_clean()


@pytest.mark.one_process("the daemon has the store open")
def test_a_read_only_store_fails_every_request_and_changes_nothing(lab: ExampleLab) -> None:
    conf = lab.conf(ipam=lab.spy_ipam())
    lab.add(conf)
    with read_only(lab.plugin.state_dir):
        outcome = lab.call("ADD", conf, container="c2")
        assert outcome.code == 5
        assert str(lab.plugin.state_dir) in outcome.text
        assert len(lab.ports()) == 1
        assert lab.call("STATUS", conf).code == 50
        assert lab.call("DEL", conf).code == 11
        assert (len(lab.ports()), len(lab.leases())) == (1, 1)
    lab.call("GC", conf | {GC: []}).succeeded()
    lab.assert_clean()


def test_locks_that_cannot_be_made_are_code_5(lab: ExampleLab) -> None:
    with read_only(lab.plugin.run_dir):
        outcome = lab.call("ADD", lab.conf())
        assert outcome.code == 5
        assert str(lab.plugin.run_dir) in outcome.text
    lab.assert_clean()


@pytest.mark.one_process("the daemon looks at the version when it opens the store")
def test_a_store_of_a_newer_version_is_not_touched(lab: ExampleLab) -> None:
    conf = lab.conf(ipam=lab.spy_ipam())
    lab.add(conf)
    path = lab.plugin.state_dir / "attachments.db"
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA user_version = 99")
    before = path.read_bytes()
    outcome = lab.call("ADD", conf, container="c2")
    assert outcome.code == 5
    assert "99" in outcome.text
    assert "upgrade" in outcome.text
    assert lab.call("STATUS", conf).code == 50
    refused = lab.call("DEL", conf)
    assert refused.code == 11
    assert "upgrade" in refused.text
    assert (len(lab.ports()), len(lab.leases())) == (1, 1)
    assert path.read_bytes() == before


def test_in_a_chain_prev_result_is_extended(lab: ExampleLab) -> None:
    previous = {
        "cniVersion": "1.0.0",
        "interfaces": [
            {"name": "br0", "mac": "02:00:00:00:00:0a"},
            {"name": "eth0", "sandbox": lab.netns},
        ],
        "ips": [{"address": "10.1.0.2/24", "gateway": "10.1.0.1", "interface": 1}],
        "routes": [{"dst": "0.0.0.0/0", "gw": "10.1.0.1"}],
        "dns": {"domain": "example.org"},
    }
    conf = lab.conf("1.0.0", ipam=lab.host_local(), prevResult=previous)
    result = lab.add(conf, ifname="net1")
    assert [item["name"] for item in result["interfaces"]] == ["br0", "eth0", "net1"]
    assert result["interfaces"][:2] == previous["interfaces"]
    assert result["ips"] == [
        {"address": "10.1.0.2/24", "gateway": "10.1.0.1", "interface": 1},
        {"address": "10.66.0.2/24", "gateway": "10.66.0.1", "interface": 2},
    ]
    assert (result["routes"], result["dns"]) == (previous["routes"], previous["dns"])
    checked = conf | {"prevResult": result}
    lab.call("CHECK", checked, ifname="net1").succeeded()
    lab.call("DEL", checked, ifname="net1").succeeded()
    lab.assert_clean()


@pytest.mark.parametrize(
    ("version", "previous", "expected"),
    [
        (
            "0.2.0",
            {"ip4": {"ip": "10.1.0.2/24", "routes": [{"dst": "0.0.0.0/0"}]}},
            {"ip4": {"ip": "10.1.0.2/24", "routes": [{"dst": "0.0.0.0/0"}]}},
        ),
        (
            "0.4.0",
            {"ips": [{"version": "4", "address": "10.1.0.2/24"}]},
            {"ips": [{"version": "4", "address": "10.1.0.2/24"}]},
        ),
    ],
)
def test_prev_result_passes_through_in_old_versions(
    lab: ExampleLab, version: str, previous: dict[str, Any], expected: dict[str, Any]
) -> None:
    result = lab.add(lab.conf(version, prevResult=previous))
    result.pop("interfaces", None)
    assert result == {"cniVersion": version, **expected}


@pytest.mark.parametrize("version", ["0.1.0", "0.2.0"])
def test_without_address_old_versions_cannot_be_answered_and_nothing_is_left(
    lab: ExampleLab, version: str
) -> None:
    outcome = lab.call("ADD", lab.conf(version))
    assert outcome.code == 1
    assert version in outcome.text
    assert "IP" in outcome.text
    lab.assert_clean()


def test_if0name_names_the_interface(lab: ExampleLab) -> None:
    conf = lab.conf(if0name="data0")
    result = lab.add(conf)
    assert result["interfaces"][0]["name"] == "data0"
    lab.call("CHECK", conf | {"prevResult": result}).succeeded()
    lab.call("DEL", conf).succeeded()
    lab.assert_clean()


@pytest.mark.parametrize(
    ("keys", "args", "last"),
    [
        ({"mac": "02:00:00:00:00:01"}, "", "01"),
        ({"mac": "02:00:00:00:00:01"}, "MAC=02:00:00:00:00:02", "02"),
        ({"args": {"cni": {"mac": "02:00:00:00:00:03"}}}, "MAC=02:00:00:00:00:02", "03"),
        (
            {"args": {"cni": {"labels": []}}, "mac": "02:00:00:00:00:01"},
            "MAC=02:00:00:00:00:02",
            "01",
        ),
        ({"args": {"other": {}}}, "IgnoreUnknown=1;X=y;MAC=02:00:00:00:00:02", "02"),
        (
            {
                "runtimeConfig": {"mac": "02:00:00:00:00:AB"},
                "args": {"cni": {"mac": "02:00:00:00:00:03"}},
                "mac": "02:00:00:00:00:01",
            },
            "MAC=02:00:00:00:00:02",
            "ab",
        ),
        ({"runtimeConfig": {"mac": ""}, "mac": "02:00:00:00:00:01"}, "", "01"),
    ],
)
def test_who_says_the_mac_address(
    lab: ExampleLab, keys: dict[str, Any], args: str, last: str
) -> None:
    result = lab.add(lab.conf(macFromArgs=True, **keys), args=args)
    assert result["interfaces"][0]["mac"] == f"02:00:00:00:00:{last}"


def test_without_a_request_the_mac_address_is_the_same_every_time(lab: ExampleLab) -> None:
    macs = []
    for _ in range(2):
        macs.append(lab.add(lab.conf())["interfaces"][0]["mac"])
        lab.call("DEL", lab.conf()).succeeded()
    assert macs[0] == macs[1]
    assert int(macs[0][:2], 16) & 3 == 2  # locally administered, unicast


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"dns": {"nameservers": ["10.0.0.1"], "domain": "d"}}, {"nameservers": ["10.0.0.1"],
                                                                  "domain": "d"}),
        (
            {"runtimeConfig": {"dns": {"Servers": ["10.0.0.2"], "Searches": ["s"],
                                       "Options": ["ndots:2"]}}},
            {"nameservers": ["10.0.0.2"], "search": ["s"], "options": ["ndots:2"]},
        ),
        (
            {"runtimeConfig": {"dns": {"servers": ["10.0.0.2"]}}, "dns": {"domain": "d"}},
            {"nameservers": ["10.0.0.2"]},
        ),
        (
            {"runtimeConfig": {"dns": {"Servers": None, "Searches": None}}, "dns": {"domain": "d"}},
            {"domain": "d"},
        ),
    ],
)  # fmt: skip
def test_who_says_the_dns_settings(
    lab: ExampleLab, keys: dict[str, Any], expected: dict[str, Any]
) -> None:
    assert lab.add(lab.conf(**keys))["dns"] == expected


# -- the node's settings


@pytest.mark.one_process(
    "the daemon does not start with such settings: tests/daemon/test_daemon.py"
)
@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("colour = 1\n", "colour"),
        ("state_dir = 'relative'\n", '"relative"'),
        ("timeout = 0\n", "timeout: expected a number of seconds above 0"),
        ("not toml at all", "is not TOML"),
        ("engines = 3\n", "engines: expected a table, got 3"),
    ],
)
def test_an_error_in_the_node_settings_is_told_by_file_key_and_value(
    lab: ExampleLab, text: str, says: str
) -> None:
    config = lab.directory / "config.toml"
    config.write_text(text)
    for command in ("ADD", "STATUS"):
        outcome = lab.call(command, lab.conf())
        assert outcome.code == 7
        assert str(config) in outcome.text
        assert says in outcome.text
