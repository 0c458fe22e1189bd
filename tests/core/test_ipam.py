"""Delegation to IPAM plugins, played by shell scripts that behave well or badly."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from core.example_lab import shell

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from core.example_lab import ExampleLab

GC = "cni.dev/valid-attachments"
ONE = '{"ips": [{"address": "10.66.0.9/24"}]}'


def _printing(text: str) -> str:
    return f"[ $CNI_COMMAND != ADD ] || printf %s {shell(text)}"


def _called(lab: ExampleLab) -> Path:
    return lab.directory / "called"


def _recording(lab: ExampleLab, body: str) -> str:
    return f"echo $CNI_COMMAND >> {shell(_called(lab))}\n{body}"


# -- plugins that misbehave


@pytest.mark.parametrize(
    ("body", "code", "says"),
    [
        ("exit 3", 105, "ADD exited with 3 and printed no error as JSON"),
        ("echo oh no; exit 1", 105, "exited with 1"),
        ('echo \'{"msg": "no code"}\'; exit 1', 105, "exited with 1"),
        ("kill -9 $$", 105, "was killed by signal 9"),
        (_printing("garbage {"), 105, "'garbage {'"),
        (_printing(""), 105, "printed no JSON"),
        (_printing("[1]"), 105, "[1]"),
        (_printing("{}"), 105, "no IP address"),
        (_printing("null"), 105, "no IP address"),
        ("yes [ | tr -d '\\n' | head -c 100000", 105, "printed no JSON"),
        ('echo \'{"code": Infinity, "msg": "endless"}\'; exit 1', 105, "exited with 1"),
        ("head -c 2000000 /dev/zero", 105, "ADD printed more than 1048576 bytes"),
        (_printing('{"ips": []}'), 105, "no IP address"),
        (_printing('{"ips": [{"address": "10.66.0.9"}]}'), 105, "ips[0].address"),
        (_printing('{"cniVersion": "1.0.0", "ips": 7}'), 105, "ips: expected a list, got 7"),
        ('echo \'{"code": 11, "msg": "not now", "details": "busy"}\'; exit 1', 11, "not now busy"),
        ('echo \'{"code": 777, "msg": "mine", "more": 1}\'; exit 1', 777, "mine"),
        ('echo \'{"code": true, "msg": "odd"}\'; exit 1', 105, "exited with 1"),
        *(
            (
                f'echo \'{{"code": {code}, "msg": "odd"}}\'; exit 1',
                105,
                f"ipam ipam-script failed with its code {code}: odd",
            )
            for code in (999, 100, 105, -1, 2**32, 10**30)
        ),
        ('echo \'{"code": 0, "msg": "zero"}\'; exit 1', 105, "zero"),
    ],
)
def test_an_add_that_ipam_fails_leaves_nothing(
    lab: ExampleLab, body: str, code: int, says: str
) -> None:
    script = lab.script(_recording(lab, f"[ $CNI_COMMAND != ADD ] || {{ {body}; }}"))
    outcome = lab.call("ADD", lab.conf(ipam=script))
    assert outcome.code == code
    assert says in outcome.text
    assert "ipam-script" in outcome.text
    assert _called(lab).read_text() == "ADD\nDEL\n"
    lab.assert_clean()


def test_a_plugin_that_fails_its_del_too_leaves_no_record(lab: ExampleLab) -> None:
    """For example a plugin whose configuration is wrong: it would fail in the same way forever."""
    outcome = lab.call("ADD", lab.conf(ipam=lab.spy_ipam(fail=["ADD", "DEL"])))
    assert outcome.code == 111
    assert [call.command for call in lab.spy.calls()] == ["ADD", "DEL"]
    lab.assert_clean()


@pytest.mark.one_process("in the daemon no request does the removals of others")
def test_a_removal_on_the_way_does_not_get_the_arguments_of_another_container(
    lab: ExampleLab,
) -> None:
    conf = lab.conf(ipam=lab.spy_ipam(), macFromArgs=True)
    lab.add(conf, args="MAC=02:00:00:00:00:01")
    lab.switch_down()
    lab.call("DEL", conf, args="MAC=02:00:00:00:00:01").succeeded()
    lab.switch_up()
    lab.add(conf, container="c2", args="MAC=02:00:00:00:00:02")
    assert not lab.spy.calls("DEL")  # no ADD does the work of others
    lab.call("DEL", conf, container="c2", args="MAC=02:00:00:00:00:02").succeeded()
    _, freed = lab.spy.calls("DEL")
    assert freed.env["CNI_CONTAINERID"] == "c1"
    assert freed.env["CNI_ARGS"] == "MAC=02:00:00:00:00:01"


@pytest.mark.one_process("in the daemon no request does the removals of others")
def test_removals_that_hang_keep_no_other_waiting(lab: ExampleLab) -> None:
    hangs, log = lab.directory / "hangs", lab.directory / "log"
    body = f"[ $CNI_COMMAND != DEL ] || {{ echo >> {log}; [ ! -e {hangs} ] || exec sleep 60; }}\n"
    conf = lab.conf(name="hanging", ipam=lab.script(body + _printing(ONE)))
    config = lab.directory / "config.toml"
    config.write_text("timeout = 1\n" + config.read_text())
    for number in range(4):
        lab.add(conf, container=f"c{number}")
    hangs.touch()
    for number in range(4):
        assert lab.call("DEL", conf, container=f"c{number}").code == 11
    assert len(log.read_text()) == 4
    lab.add(lab.conf())
    lab.call("DEL", lab.conf()).succeeded()
    lab.add(conf, container="another")
    assert len(log.read_text()) == 4  # nobody has tried those again
    hangs.unlink()
    lab.call("DEL", conf, container="another").succeeded()
    lab.assert_clean()


def test_a_plugin_that_does_not_exist_is_named_with_where_it_was_sought(lab: ExampleLab) -> None:
    outcome = lab.call("ADD", lab.conf(ipam={"type": "no-such-plugin"}))
    assert outcome.code == 105
    assert "'no-such-plugin'" in outcome.text
    assert str(lab.plugin.bin_dir) in outcome.text
    lab.assert_clean()


def test_without_cni_path_a_plugin_cannot_be_found(lab: ExampleLab) -> None:
    conf = lab.conf(ipam=lab.script(_printing(ONE)))
    for path in ("", ":", "relative/bin"):
        outcome = lab.call("ADD", conf, environ={"CNI_PATH": path})
        assert outcome.code in (4, 105)
        assert "CNI_PATH" in outcome.text
    lab.add(lab.conf(), environ={"CNI_PATH": ""})
    lab.call("DEL", lab.conf(), environ={"CNI_PATH": ""}).succeeded()
    lab.assert_clean()


def test_what_cannot_be_executed_is_no_plugin(lab: ExampleLab) -> None:
    conf = lab.conf(ipam=lab.script(_printing(ONE)))
    path = lab.plugin.bin_dir / "ipam-script"
    path.chmod(0o644)
    assert "not in any directory" in lab.call("ADD", conf).text
    path.unlink()
    path.mkdir()
    assert "not in any directory" in lab.call("ADD", conf).text
    path.rmdir()
    path.write_text("#!/no/such/interpreter\n")
    path.chmod(0o755)
    outcome = lab.call("ADD", conf)
    assert (outcome.code, "cannot be executed" in outcome.text) == (105, True)
    lab.assert_clean()


def test_the_first_directory_of_cni_path_that_has_the_plugin_counts(
    lab: ExampleLab, tmp_path: Path
) -> None:
    conf = lab.conf(ipam=lab.script(_printing(ONE)))
    (tmp_path / "empty").mkdir()
    path = f"/nowhere:{tmp_path / 'empty'}:{lab.plugin.bin_dir}"
    result = lab.call("ADD", conf, environ={"CNI_PATH": path}).result
    assert result["ips"] == [{"address": "10.66.0.9/24", "interface": 0}]


@pytest.mark.parity
def test_a_plugin_that_hangs_is_given_up(lab: ExampleLab) -> None:
    config = lab.directory / "config.toml"
    config.write_text("timeout = 3\n" + config.read_text())
    conf = lab.conf(ipam=lab.script("[ $CNI_COMMAND != ADD ] || exec sleep 60"))
    began = time.monotonic()
    outcome = lab.call("ADD", conf)
    assert time.monotonic() - began < 30
    assert outcome.code == 11
    assert "did not answer ADD in time: a request has 3 s" in outcome.text
    lab.assert_clean()


def test_a_plugin_has_answered_when_it_ends_whatever_it_left_running(lab: ExampleLab) -> None:
    """For example a background process that holds the plugin's standard output and error open."""
    child = lab.directory / "child"
    body = f"{_printing(ONE)}\n[ $CNI_COMMAND != ADD ] || {{ sleep 50 & echo $! > {child}; }}"
    began = time.monotonic()
    try:
        assert lab.add(lab.conf(ipam=lab.script(body)))["ips"]
        lab.call("DEL", lab.conf()).succeeded()
    finally:
        os.kill(int(child.read_text()), signal.SIGKILL)
    assert time.monotonic() - began < 30
    lab.assert_clean()


def test_a_plugin_that_floods_standard_error_is_heard_in_part(lab: ExampleLab) -> None:
    flood = "[ $CNI_COMMAND != ADD ] || yes | head -c 100000000 >&2\n"
    outcome = lab.call("ADD", lab.conf(ipam=lab.script(flood + _printing(ONE))))
    assert outcome.result["ips"]
    assert 1 << 16 <= len(outcome.err) < 1 << 17


def test_a_plugin_that_is_being_replaced_is_waited_for(lab: ExampleLab) -> None:
    """While a program is being written, its execution fails with "text file busy"."""
    path = lab.plugin.bin_dir / "busy"
    path.write_bytes((lab.plugin.bin_dir / "host-local").read_bytes())
    path.chmod(0o755)
    conf = lab.conf("1.0.0", ipam=lab.host_local() | {"type": "busy"})
    with path.open("r+b") as writer:
        timer = threading.Timer(0.7, writer.close)
        timer.start()
        result = lab.add(conf)
        timer.join()
    assert result["ips"][0]["address"] == "10.66.0.2/24"


# -- a plugin's input, and the use of its answer


@pytest.mark.parity
def test_a_plugin_gets_our_environment_and_the_unmodified_configuration(lab: ExampleLab) -> None:
    conf = {
        **lab.conf(ipam=lab.spy_ipam(extra={"ü": [None, 1.5]}), dns={"search": ["x"]}),
        "args": {"cni": {"labels": [{"key": "a"}]}},
        "runtimeConfig": {"ips": ["10.66.0.5"]},
        "cni.dev/anything": 1,
    }
    args = "IgnoreUnknown=1;K8S_POD_NAME=p;X=a=b"
    result = lab.call("ADD", conf, args=args, environ={"CNI_EXTRA": "e"}).result
    checked = conf | {"prevResult": result}
    lab.call("CHECK", checked, args=args).succeeded()
    lab.call("STATUS", conf).succeeded()
    lab.call("GC", conf | {GC: [{"containerID": "c1", "ifname": "eth0"}]}).succeeded()
    lab.call("DEL", checked, args=args).succeeded()
    calls = {call.command: call for call in lab.spy.calls()}
    assert list(calls) == ["ADD", "CHECK", "STATUS", "GC", "DEL"]
    assert calls["ADD"].env == {
        "CNI_COMMAND": "ADD",
        "CNI_CONTAINERID": "c1",
        "CNI_NETNS": lab.netns,
        "CNI_IFNAME": "eth0",
        "CNI_ARGS": args,
        "CNI_PATH": str(lab.plugin.bin_dir),
        "CNI_EXTRA": "e",
    }
    assert calls["ADD"].conf == conf
    assert calls["CHECK"].conf == checked
    assert calls["STATUS"].conf == conf
    assert calls["GC"].conf[GC] == [{"containerID": "c1", "ifname": "eth0"}]
    assert calls["DEL"].conf == conf
    assert calls["DEL"].env["CNI_ARGS"] == args


def test_a_removal_by_gc_tells_the_plugin_whose_it_is(lab: ExampleLab) -> None:
    conf = lab.conf(ipam=lab.spy_ipam())
    lab.add(conf, container="lost", ifname="net7")
    gc = {"CNI_COMMAND": "GC", "CNI_PATH": str(lab.plugin.bin_dir)}
    lab.plugin.execute(conf | {GC: []}, gc).succeeded()
    (freed,) = lab.spy.calls("DEL")
    assert (freed.env["CNI_CONTAINERID"], freed.env["CNI_IFNAME"]) == ("lost", "net7")
    assert freed.netns == lab.netns


@pytest.mark.parametrize("command", ["CHECK", "STATUS", "GC", "DEL"])
def test_an_error_of_the_plugin_is_ours(lab: ExampleLab, command: str) -> None:
    conf = lab.conf(ipam=lab.spy_ipam(fail=[command]))
    result = lab.add(conf)
    outcome = lab.call(command, conf | {"prevResult": result, GC: []})
    assert outcome.code == (50 if command == "STATUS" else 111)
    assert "the spy says no as configured" in outcome.text
    expected = [] if command in ("DEL", "GC") else ["attached"]
    if command == "DEL":
        expected = ["deleting"]
    assert list(lab.states().values()) == expected


@pytest.mark.parity
def test_standard_error_of_the_plugin_is_passed_through(lab: ExampleLab) -> None:
    conf = lab.conf(ipam=lab.script("echo whispered >&2\n" + _printing(ONE)))
    outcome = lab.call("ADD", conf)
    assert outcome.result["ips"]
    assert "whispered" in outcome.err


@pytest.mark.parametrize(
    ("stated", "answer"),
    [
        ("1.1.0", {"cniVersion": "1.1.0", "ips": [{"address": "10.66.0.9/24"}]}),
        ("1.1.0", {"ips": [{"address": "10.66.0.9/24"}]}),
        ("1.1.0", {"cniVersion": "", "ips": [{"address": "10.66.0.9/24"}]}),
        ("1.0.0", {"cniVersion": "0.4.0", "ips": [{"version": "4", "address": "10.66.0.9/24"}]}),
        ("1.1.0", {"cniVersion": "0.2.0", "ip4": {"ip": "10.66.0.9/24"}}),
        ("0.2.0", {"ip4": {"ip": "10.66.0.9/24"}}),
    ],
)
def test_an_answer_is_read_in_its_own_version_or_the_networks(
    lab: ExampleLab, stated: str, answer: dict[str, Any]
) -> None:
    conf = lab.conf(stated, ipam=lab.script(_printing(json.dumps(answer))))
    result = lab.add(conf)
    assert result["cniVersion"] == stated
    if stated == "0.2.0":
        assert result["ip4"] == {"ip": "10.66.0.9/24"}
    else:
        assert result["ips"] == [{"address": "10.66.0.9/24", "interface": 0}]


@pytest.mark.parity
def test_addresses_routes_and_dns_of_the_plugin_are_in_the_result(lab: ExampleLab) -> None:
    answer: dict[str, Any] = {
        "ips": [
            {"address": "10.66.0.9/24", "gateway": "10.66.0.1"},
            {"address": "fd66::9/64", "gateway": "fd66::1"},
        ],
        "routes": [{"dst": "0.0.0.0/0"}, {"dst": "fd67::/48", "gw": "fd66::2", "priority": 5}],
        "dns": {"nameservers": ["10.66.0.1"]},
    }
    script = lab.script(_printing(json.dumps(answer)))
    result = lab.add(lab.conf(ipam=script))
    assert result["ips"] == [ip | {"interface": 0} for ip in answer["ips"]]
    assert (result["routes"], result["dns"]) == (answer["routes"], answer["dns"])
    ours = lab.add(lab.conf(ipam=script, dns={"domain": "ours"}), container="c2")
    assert ours["dns"] == {"domain": "ours"}


def test_a_plugin_needs_no_path_and_no_shell(lab: ExampleLab) -> None:
    """The type is one word of an argument list, never a command line."""
    name = "a plugin; touch pwned"
    conf = lab.conf(ipam=lab.script(_printing(ONE), name=name))
    assert lab.add(conf)["ips"]
    assert not (lab.plugin.bin_dir / "pwned").exists()
    assert subprocess.run(["test", "!", "-e", "pwned"], check=False).returncode == 0


# -- versions


def test_host_local_that_speaks_1_0_0_serves_a_network_of_1_1_0(lab: ExampleLab) -> None:
    conf = lab.conf("1.1.0", ipam=lab.host_local())
    lab.call("STATUS", conf).succeeded()
    result = lab.add(conf)
    assert (result["cniVersion"], result["ips"]) == (
        "1.1.0",
        [{"address": "10.66.0.2/24", "gateway": "10.66.0.1", "interface": 0}],
    )
    checked = conf | {"prevResult": result}
    lab.call("CHECK", checked).succeeded()
    lab.call("GC", conf | {GC: [{"containerID": "c1", "ifname": "eth0"}]}).succeeded()
    assert lab.leases() == ["10.66.0.2"]
    lab.call("DEL", checked).succeeded()
    lab.assert_clean()
    lab.add(conf, container="c2")
    lab.call("GC", conf | {GC: []}).succeeded()
    lab.assert_clean()


def test_an_old_plugin_gets_the_configuration_in_its_version(lab: ExampleLab) -> None:
    seen = lab.directory / "seen"
    body = f"cat > {seen}\n{_printing(ONE)}"
    conf = lab.conf(ipam=lab.script(body, versions=["0.4.0", "1.0.0"]))
    conf["prevResult"] = {
        "cniVersion": "1.1.0",
        "interfaces": [{"name": "lo", "sandbox": lab.netns, "mtu": 9000, "socketPath": "/s"}],
    }
    assert lab.add(conf)["cniVersion"] == "1.1.0"
    told = json.loads(seen.read_text())
    assert told["cniVersion"] == told["prevResult"]["cniVersion"] == "1.0.0"
    assert told["prevResult"]["interfaces"] == [{"name": "lo", "sandbox": lab.netns}]
    assert told["ipam"] == conf["ipam"]


@pytest.mark.parametrize("command", ["ADD", "STATUS"])
def test_a_plugin_without_a_common_version_is_refused(lab: ExampleLab, command: str) -> None:
    conf = lab.conf(ipam=lab.script(_printing(ONE), versions=["2.0.0"]))
    outcome = lab.call(command, conf)
    assert outcome.code == 1
    assert "ipam ipam-script supports CNI 2.0.0, but the network has 1.1.0" in outcome.text
    lab.assert_clean()


def test_a_plugin_that_refuses_the_version_is_told_as_too_old(lab: ExampleLab) -> None:
    refusal = 'echo \'{"code": 1, "msg": "incompatible CNI versions"}\'; exit 1'
    outcome = lab.call("ADD", lab.conf("1.0.0", ipam=lab.script(refusal)))
    assert outcome.code == 1
    assert "ipam ipam-script does not support CNI 1.0.0: incompatible" in outcome.text
    assert "lower the network's cniVersion" in outcome.text


@pytest.mark.parametrize("answer", ["", "{}", "[]", '{"supportedVersions": 7}', "exit 1"])
def test_a_plugin_that_does_not_say_its_versions_gets_the_networks(
    lab: ExampleLab, answer: str
) -> None:
    seen = lab.directory / "seen"
    says = answer if answer.startswith("exit") else f"printf %s {shell(answer)}"
    lab.script(f"cat > {seen}\n{_printing(ONE)}", name="silent")
    program = lab.plugin.bin_dir / "silent"
    kept = program.read_text().splitlines()
    kept[1] = f"[ $CNI_COMMAND != VERSION ] || {{ {says}; exit; }}"
    program.write_text("\n".join(kept))
    assert lab.add(lab.conf(ipam={"type": "silent"}))["ips"]
    assert json.loads(seen.read_text())["cniVersion"] == "1.1.0"


def _counting(lab: ExampleLab, version: str) -> tuple[dict[str, Any], Callable[[], int]]:
    """Return a network and a function that counts its plugin's VERSION calls."""
    log = lab.directory / "asked"
    conf = lab.conf(version, ipam=lab.script(_printing(ONE)))
    program = lab.plugin.bin_dir / "ipam-script"
    head, *rest = program.read_text().splitlines()
    counted = f"[ $CNI_COMMAND != VERSION ] || echo >> {log}"
    program.write_text("\n".join([head, counted, *rest]))
    return conf, lambda: len(log.read_text()) if log.exists() else 0


def test_a_plugin_is_not_asked_for_a_version_that_all_speak(lab: ExampleLab) -> None:
    conf, asked = _counting(lab, "1.0.0")
    lab.add(conf)
    lab.call("DEL", conf).succeeded()
    assert asked() == 0


@pytest.mark.own_process("it is about what a process remembers")
@pytest.mark.parity
def test_the_daemon_asks_a_plugin_once_and_again_when_it_is_replaced(lab: ExampleLab) -> None:
    conf, asked = _counting(lab, "1.1.0")
    for number in range(3):
        lab.add(conf, container=f"c{number}")
    assert asked() == (1 if lab.plugin.daemon else 3)
    program = lab.plugin.bin_dir / "ipam-script"
    draft = program.with_name("draft")
    draft.write_text(program.read_text())
    draft.chmod(0o755)
    draft.replace(program)
    lab.add(conf, container="c3")
    assert asked() == (2 if lab.plugin.daemon else 4)
