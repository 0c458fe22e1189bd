"""The daemon's life cycle: start, end, log."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from lab.daemon_lab import daemon_of, exchanged, frame, lines, queued, rss, started
from lab.node import poll

if TYPE_CHECKING:
    from core.example_lab import ExampleLab
    from lab.plugin import Outcome


def _started_in_vain(lab: ExampleLab) -> str:
    """Start a daemon that must fail to start; return its output."""
    done = subprocess.run(
        [Path(sys.executable).with_name("userspace-cni"), "daemon"],
        env={**os.environ, **lab.plugin.env},
        capture_output=True,
        check=False,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    return done.stderr


def _settings_before_tables(lab: ExampleLab, text: str) -> None:
    path = Path(lab.plugin.env["USERSPACE_CNI_CONFIG"])
    path.write_text(f"{text}{path.read_text()}")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_a_running_add_end_and_refuses_new_ones(
    lab: ExampleLab, number: signal.Signals
) -> None:
    begun, go = lab.directory / "begun", lab.directory / "go"
    script = lab.script(
        f"touch {begun}; while [ ! -e {go} ]; do sleep 0.02; done\n"
        'echo \'{"cniVersion": "1.1.0", "ips": [{"address": "10.66.0.9/24"}]}\''
    )
    conf = lab.conf(ipam=script)
    daemon = started(lab)
    outcomes: list[Outcome] = []
    caller = threading.Thread(target=lambda: outcomes.append(lab.call("ADD", conf)))
    caller.start()
    poll(begun.exists, "the ADD")
    daemon.signal(number)
    poll(lambda: not daemon.socket.exists(), "the socket goes")
    assert daemon.running
    go.touch()
    caller.join()
    assert outcomes[0].result["ips"][0]["address"] == "10.66.0.9/24"
    assert daemon.wait() == 0
    assert lab.states() == {"c1": "attached"}


def test_a_stale_socket_is_replaced_and_a_files_mode_is_restored(lab: ExampleLab) -> None:
    daemon = started(lab)
    daemon.kill()
    assert daemon.socket.exists()
    with pytest.raises(ConnectionRefusedError), closing(socket.socket(socket.AF_UNIX)) as end:
        end.connect(str(daemon.socket))
    daemon.start()
    exchanged(daemon.socket, frame(lab, "STATUS", lab.conf())).succeeded()


def test_what_is_no_socket_is_not_replaced(lab: ExampleLab) -> None:
    daemon = daemon_of(lab)
    daemon.socket.write_text("precious")
    lab.plugin.settings(f'[daemon]\nsocket = "{daemon.socket}"\n')
    assert f"cannot listen at {daemon.socket}" in _started_in_vain(lab)
    assert daemon.socket.read_text() == "precious"


def test_a_second_daemon_is_refused_by_name_of_the_first(lab: ExampleLab) -> None:
    daemon = started(lab)
    assert f"another daemon, process {daemon.pid}, owns {daemon.socket}" in _started_in_vain(lab)
    exchanged(daemon.socket, frame(lab, "STATUS", lab.conf())).succeeded()


def test_bad_settings_are_told_and_nothing_is_started(lab: ExampleLab) -> None:
    lab.plugin.settings("[daemon]\nworkers = 0\n")
    assert "daemon.workers: expected 1 to 1024, got 0" in _started_in_vain(lab)


@pytest.mark.parametrize("abstract", [False, True])
def test_systemd_is_told(lab: ExampleLab, abstract: bool) -> None:
    daemon = daemon_of(lab)
    path = f"@{daemon.socket}.notify" if abstract else f"{daemon.socket}.notify"
    with closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as systemd:
        systemd.bind(path.replace("@", "\0"))
        systemd.settimeout(30)
        daemon.env = {**daemon.env, "NOTIFY_SOCKET": path}
        started(lab)
        assert systemd.recv(100) == b"READY=1"
        daemon.stop()
        assert systemd.recv(100) == b"STOPPING=1"


def test_each_request_is_one_line_of_the_log(lab: ExampleLab) -> None:
    _settings_before_tables(lab, 'log_level = "info"\n')
    daemon = started(lab)
    args = "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=till-0"
    lab.call("ADD", lab.conf(), args=args)
    lab.call("ADD", lab.conf(), args=args)
    added, refused = lines(daemon, "request command=ADD")
    assert float(added.pop("ms")) > 0
    assert added == {
        "command": "ADD", "network": "net", "container": "c1", "ifname": "eth0",
        "pod": "shop/till-0", "engine": "example", "code": "0",
    }  # fmt: skip
    assert refused["code"] == "103"
    lab.call("DEL", lab.conf(), container="a\nb=c")
    assert r'container="a\nb=c"' in daemon.said()


def test_a_table_of_settings_that_no_engine_can_use_is_told_at_the_start(lab: ExampleLab) -> None:
    path = Path(lab.plugin.env["USERSPACE_CNI_CONFIG"])
    path.write_text(
        f"{path.read_text()}[engines.exmaple]\n[engines.ovs-dpdk]\n[engines.vpp]\nx = 1\n"
    )
    told = started(lab).said()
    assert "[engines.exmaple] in the node's settings is not used" in told
    assert 'did you mean "example"?' in told
    assert "the engine 'ovs-dpdk' reads [engines.ovs]" in told
    assert f"node settings {path}: engines.vpp.x: unknown key with value 1" in told
    assert "[engines.example] in" not in told


def test_what_a_request_logs_goes_to_its_caller_and_to_no_other(lab: ExampleLab) -> None:
    daemon = started(lab)
    own = lab.directory / "own.log"
    conf = lab.conf(logFile=str(own))
    lab.add(conf)
    lab.add(lab.conf(name="other"), container="c2")
    lab.switch_down()
    outcome = lab.call("DEL", conf)
    assert re.search(
        "WARNING DEL network=net container=c1 ifname=eth0: removal postponed", outcome.err
    )
    assert own.read_text() == outcome.err
    assert outcome.err in daemon.said()
    assert "network=net" not in lab.call("DEL", lab.conf(name="other"), container="c2").err


def test_queued_dels_are_done_in_order_each_once(lab: ExampleLab) -> None:
    conf = lab.conf(ipam=lab.spy_ipam())
    daemon = started(lab)
    for number in range(5):
        lab.add(conf, container=f"c{number}")
    daemon.stop()
    paths = [queued(lab, frame(lab, "DEL", conf, f"c{number}"), number) for number in range(5)]
    bad = [
        queued(lab, content, 10 + number)
        for number, content in enumerate([b"", b"garbage", frame(lab, "ADD", conf)])
    ]
    link = lab.plugin.state_dir / "queue" / "00000000000000000000-1.del"
    link.symlink_to(lab.directory / "config.toml")
    daemon.start()
    poll(lambda: not any(path.exists() for path in (*paths, *bad)), "the queue is done")
    lab.assert_clean()
    removed = [call.env["CNI_CONTAINERID"] for call in lab.spy.calls("DEL")]
    assert removed == [f"c{number}" for number in range(5)]
    assert {path.name for path in (lab.plugin.state_dir / "queue").iterdir()} == {
        path.with_suffix(".bad").name for path in (*bad, link)
    }


def test_a_del_that_is_queued_while_the_daemon_runs_is_done_too(lab: ExampleLab) -> None:
    conf = lab.conf()
    started(lab, "watch_interval = 0.05")
    lab.add(conf)
    path = queued(lab, frame(lab, "DEL", conf), 0)
    poll(lambda: not path.exists(), "the DEL is done")
    lab.assert_clean()


def test_a_queued_del_does_not_hit_a_later_add_of_the_same_container(lab: ExampleLab) -> None:
    started(lab)
    path = queued(lab, frame(lab, "DEL", lab.conf()), 0)
    lab.add(lab.conf())
    assert not path.exists()
    assert lab.states() == {"c1": "attached"}
    assert len(lab.ports()) == 1


def test_a_store_that_is_removed_under_the_daemon_is_made_again(lab: ExampleLab) -> None:
    started(lab)
    lab.add(lab.conf())
    (lab.plugin.state_dir / "attachments.db").unlink()
    lab.add(lab.conf(), container="c2")
    assert lab.states() == {"c2": "attached"}


def test_memory_stays_bounded_with_two_hundred_attachments(lab: ExampleLab) -> None:
    daemon = started(lab)
    conf = lab.conf()
    before = rss(daemon.pid)
    for _ in range(3):
        for number in range(200):
            assert exchanged(daemon.socket, frame(lab, "ADD", conf, f"c{number}")).result
        print(f"RSS with 200 attachments: {rss(daemon.pid) >> 20} MiB, {before >> 20} without")  # noqa: T201  for the reader of -s
        assert rss(daemon.pid) < 64 << 20
        for number in range(200):
            exchanged(daemon.socket, frame(lab, "DEL", conf, f"c{number}")).succeeded()
    lab.assert_clean()


def test_an_answer_is_one_json_object_for_each_caller_at_once(lab: ExampleLab) -> None:
    daemon = started(lab)
    outcome = exchanged(daemon.socket, frame(lab, "VERSION", {"cniVersion": "1.1.0"}))
    assert json.loads(outcome.out)["supportedVersions"][-1] == "1.1.0"


def test_a_log_file_that_is_renamed_is_begun_anew(lab: ExampleLab) -> None:
    path, old = lab.directory / "node.log", lab.directory / "node.log.1"
    _settings_before_tables(lab, f'log_file = "{path}"\nlog_level = "info"\n')
    daemon = started(lab)
    # It logs this only after it listens.
    poll(lambda: "serving at" in path.read_text(), "the daemon's first line")
    path.rename(old)
    daemon.stop()
    assert "ended" not in old.read_text()
    assert "ended" in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_a_log_file_that_becomes_a_symbolic_link_is_not_followed(lab: ExampleLab) -> None:
    path, old, victim = (lab.directory / name for name in ("node.log", "node.log.1", "victim"))
    victim.write_text("precious")
    _settings_before_tables(lab, f'log_file = "{path}"\nlog_level = "info"\n')
    daemon = started(lab)
    path.rename(old)
    path.symlink_to(victim)
    daemon.stop()
    assert "ended" in old.read_text()
    assert victim.read_text() == "precious"


def test_sighup_is_no_reason_to_end(lab: ExampleLab) -> None:
    daemon = started(lab)
    ipam = lab.script("grep SigIgn /proc/self/status >&2; echo '{}'")
    daemon.signal(signal.SIGHUP)
    told = re.findall("SigIgn:\t([0-9a-f]+)", lab.call("ADD", lab.conf(ipam=ipam)).err)
    assert told
    assert not any(int(ignored, 16) & 1 << signal.SIGHUP - 1 for ignored in told)
    assert daemon.running


def test_a_del_waits_for_the_ipam_plugin_that_outlives_its_daemon(lab: ExampleLab) -> None:
    log = lab.directory / "log"
    conf = lab.conf(
        ipam=lab.script(
            f"echo $CNI_COMMAND >> {log}; [ $CNI_COMMAND != ADD ] || "
            f"{{ sleep 1; echo allocated >> {log}; }}"
        )
    )
    daemon = started(lab)
    caller = threading.Thread(target=lambda: lab.call("ADD", conf))
    caller.start()
    poll(log.exists, "the ADD")
    daemon.kill()
    caller.join()
    daemon.start()
    lab.call("DEL", conf).succeeded()
    told = log.read_text().split()
    assert told[:2] == ["ADD", "allocated"]
    assert set(told[2:]) == {"DEL"}
    lab.assert_clean()


def test_requests_that_wait_keep_no_other_waiting(lab: ExampleLab) -> None:
    started(lab)
    go = lab.directory / "go"
    waiting = lab.conf(ipam=lab.script(f"until [ -e {go} ]; do sleep 0.01; done; exit 1"))
    callers = [
        threading.Thread(target=lab.call, args=("ADD", waiting), kwargs={"container": f"w{number}"})
        for number in range(5)
    ]
    for caller in callers:
        caller.start()
    try:
        lab.add(lab.conf())
        assert all(caller.is_alive() for caller in callers)
    finally:
        go.touch()
        for caller in callers:
            caller.join()


def test_an_add_whose_caller_has_gone_is_not_begun(lab: ExampleLab) -> None:
    log, go, waits = (lab.directory / name for name in ("log", "go", "waits"))
    conf = lab.conf(
        ipam=lab.script(
            f"[ $CNI_COMMAND != CHECK ] || > {waits}\n"
            f"[ $CNI_COMMAND != CHECK ] || while [ ! -e {go} ]; do sleep 0.02; done\n"
            f"echo $CNI_COMMAND >> {log}\n"
            'echo \'{"cniVersion": "1.1.0", "ips": [{"address": "10.66.0.9/24"}]}\''
        )
    )
    lab.plugin.settings("workers = 1\n")
    daemon = started(lab)
    result = lab.add(conf, container="other")
    busy = threading.Thread(
        target=lambda: lab.call("CHECK", conf | {"prevResult": result}, container="other")
    )
    busy.start()
    poll(waits.exists, "the only worker is busy")
    with closing(socket.socket(socket.AF_UNIX)) as caller:
        caller.connect(str(daemon.socket))
        caller.sendall(frame(lab, "ADD", conf))
    go.touch()
    busy.join()
    lab.call("STATUS", lab.conf()).succeeded()  # its turn is after the ADD's
    assert lab.states() == {"other": "attached"}
    lab.call("DEL", conf, container="other").succeeded()
    lab.assert_clean()
