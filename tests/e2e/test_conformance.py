"""What CNI 1.1.0 demands of a plugin, rule by rule, of the installed executable.

The numbers are those of the project's list, read from the specification, its conventions and the
reference library. Left out: 10, which tests/core/test_runtime.py proves with a switch that can be
down, and 25, which is about engines that have sockets.
"""

from __future__ import annotations

import json
import subprocess
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from attrs import field, frozen

from lab import conf as lab_conf
from lab import plugin as lab_plugin
from lab.node import Node
from lab.plugin import Mode, Outcome, Plugin, clean_environ
from lab.spy import Spy
from userspace_cni.cni.versions import SUPPORTED
from userspace_cni.store import Record, Store

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [
    pytest.mark.own_process("a lab node has namespaces of its own"),
    pytest.mark.parity,
]

Json = dict[str, Any]

GC = "cni.dev/valid-attachments"
SUBNET = "10.33.0.0/24"
BRIDGE = "conf0"


@frozen
class Bench:
    """A node, a container's network namespace on it, and the plugin."""

    node: Node
    plugin: Plugin
    spy: Spy
    netns: str
    directory: Path
    conf: Json = field()

    @conf.default
    def _conf(self) -> Json:
        bridge = {"bridgeName": BRIDGE, "gateway": True, "defaultRoute": True}
        return {
            "cniVersion": "1.0.0",
            "name": "conf",
            "type": "userspace",
            "host": {"engine": "linux", "iftype": "veth", "netType": "bridge", "bridge": bridge},
            "ipam": lab_conf.host_local(SUBNET, self.directory / "leases"),
        }

    def spied(self, **keys: Any) -> Json:
        """Return the network at version 1.1.0, which only the spy supports as IPAM plugin."""
        ipam = self.spy.ipam(SUBNET, self.directory / "leases", **keys)
        return self.conf | {"cniVersion": "1.1.0", "ipam": ipam}

    def without_ipam(self, **keys: Any) -> Json:
        conf = {key: value for key, value in self.conf.items() if key != "ipam"}
        host = {"engine": "linux", "iftype": "veth", "netType": "none"}
        return conf | {"cniVersion": "1.1.0", "host": host} | keys

    def call(self, command: str, conf: object, **keys: Any) -> Outcome:
        return self.plugin.call(command, conf, **{"netns": self.netns, "node": self.node, **keys})

    def add(self, conf: Json, **keys: Any) -> Json:
        return self.call("ADD", conf, **keys).result

    def execute(self, conf: object, **variables: str) -> Outcome:
        """Execute the plugin with these variables and no others."""
        return self.plugin.execute(conf, variables, node=self.node)

    def inside(self) -> dict[str, Json]:
        """Return the container's interfaces."""
        found = self.node.links(self.netns)
        del found["lo"]
        return found

    def leases(self) -> list[str]:
        return lab_conf.leases(self.directory / "leases")

    def recorded(self) -> list[Record]:
        with closing(Store(self.plugin.state_dir, 10)) as store:
            return store.all()

    def assert_clean(self) -> None:
        found = (self.inside(), self.node.veths(), self.leases(), self.recorded())
        assert found == ({}, [], [], [])


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    with Node() as node:
        yield node


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory, served_by: Mode) -> Iterator[Plugin]:
    with lab_plugin.installed(tmp_path_factory.mktemp("plugin"), served_by) as plugin:
        yield plugin


@pytest.fixture
def bench(node: Node, plugin: Plugin, tmp_path: Path) -> Iterator[Bench]:
    spy = Spy.install(plugin.bin_dir, tmp_path / "spy.log")
    netns = node.netns("box")
    bench = Bench(node, plugin, spy, netns, tmp_path)
    yield bench
    for left in bench.recorded():
        bench.call("DEL", bench.conf, container=left.container_id, ifname=left.ifname).succeeded()
    node.run(["ip", "netns", "delete", "box"])
    node.run(["ip", "link", "delete", BRIDGE], check=False)


# -- environment and dispatch


def test_rule_01_each_command_needs_its_variables_and_cni_path_only_for_ipam(bench: Bench) -> None:
    conf = bench.without_ipam()
    names = {"CNI_CONTAINERID": "c1", "CNI_IFNAME": "eth0"}
    everything = names | {"CNI_NETNS": bench.netns}
    result = bench.execute(conf, CNI_COMMAND="ADD", **everything).result
    checked = conf | {"prevResult": result}
    bench.execute(checked, CNI_COMMAND="CHECK", **everything).succeeded()
    bench.execute(conf, CNI_COMMAND="STATUS").succeeded()
    valid = [{"containerID": "c1", "ifname": "eth0"}]
    bench.execute(conf | {GC: valid}, CNI_COMMAND="GC").succeeded()
    bench.execute(conf, CNI_COMMAND="DEL", **names).succeeded()
    bench.assert_clean()


@pytest.mark.parametrize(
    ("command", "required"),
    [
        ("ADD", ["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"]),
        ("CHECK", ["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"]),
        ("DEL", ["CNI_CONTAINERID", "CNI_IFNAME"]),
    ],
)
def test_rule_02_a_missing_variable_is_code_4_and_named(
    bench: Bench, command: str, required: list[str]
) -> None:
    values = {"CNI_CONTAINERID": "c1", "CNI_NETNS": bench.netns, "CNI_IFNAME": "eth0"}
    for missing in required:
        variables = {key: value for key, value in values.items() if key != missing}
        outcome = bench.execute(bench.conf, CNI_COMMAND=command, **variables)
        assert outcome.code == 4
        assert missing in outcome.text
        assert not [name for name in variables if name in outcome.text]
    bench.assert_clean()


@pytest.mark.parametrize(
    ("variable", "value", "code"),
    [
        ("container", "a/b", 4),
        ("container", "-a", 4),
        ("ifname", "a" * 16, 4),
        ("ifname", "..", 4),
        ("ifname", "a:b", 4),
        ("ifname", "a b", 4),
        ("name", "a/b", 7),
        ("name", "_a", 7),
    ],
)
def test_rule_03_names_outside_the_character_sets_are_refused(
    bench: Bench, variable: str, value: str, code: int
) -> None:
    conf = bench.conf | ({"name": value} if variable == "name" else {})
    outcome = bench.call("ADD", conf, **({} if variable == "name" else {variable: value}))
    assert outcome.code == code
    assert repr(value) in outcome.text


def test_rule_04_an_unknown_command_is_code_4_and_none_is_a_question(bench: Bench) -> None:
    assert bench.execute(bench.conf, CNI_COMMAND="UPGRADE").code == 4
    about = bench.execute(bench.conf)
    assert (about.status, about.out) == (0, "")
    assert "userspace" in about.err
    assert ", ".join(SUPPORTED) in about.err


@pytest.mark.parametrize(
    ("stdin", "code", "says"),
    [
        (b"{", 6, "not JSON"),
        (b"", 6, "empty"),
        (b'{"cniVersion": "1.0.0"}', 7, "name"),
        (b'{"cniVersion": "1.0.0", "name": "n", "host": {"engine": 7}}', 7, "host.engine"),
        (
            (b'{"cniVersion": "1.0.0", "name": "n", "hots": "red",'
            b' "host": {"engine": "linux", "iftype": "tap"}}'),
            2,
            "hots: unknown",
        ),
        (b'{"cniVersion": "1.9.0", "name": "n"}', 1, "1.9.0"),
    ],
)  # fmt: skip
def test_rule_05_each_kind_of_error_has_its_code(
    bench: Bench, stdin: bytes, code: int, says: str
) -> None:
    outcome = bench.call("ADD", stdin)
    assert outcome.code == code
    assert says in outcome.text
    if code == 2:
        assert '"red"' in outcome.text


def test_rule_05_standard_input_that_cannot_be_read_is_code_5(bench: Bench) -> None:
    done = subprocess.run(
        ["/bin/sh", "-c", 'exec "$0" 0> /dev/null', bench.plugin.executable],
        env={**clean_environ(), "CNI_COMMAND": "ADD"},
        capture_output=True,
        check=False,
    )
    assert (done.returncode, json.loads(done.stdout)["code"]) == (1, 5)


@pytest.mark.parametrize("version", [None, ""])
def test_rule_06_no_version_is_0_1_0(bench: Bench, version: str | None) -> None:
    conf = bench.conf | {"cniVersion": version}
    if version is None:
        del conf["cniVersion"]
    result = bench.add(conf)
    assert result["cniVersion"] == "0.1.0"
    assert result["ip4"]["ip"] == "10.33.0.2/24"
    assert bench.call("ADD", bench.conf | {"cniVersion": "v1.0.0"}, container="c2").code == 1


@pytest.mark.parametrize(("command", "version"), [("CHECK", "0.3.1"), ("GC", "1.0.0"),
                                                  ("STATUS", "1.0.0")])  # fmt: skip
def test_rule_07_a_command_that_the_version_does_not_know_is_code_1(
    bench: Bench, command: str, version: str
) -> None:
    outcome = bench.call(command, bench.conf | {"cniVersion": version})
    assert outcome.code == 1
    assert version in outcome.text


def test_rule_08_the_plugins_own_namespace_is_code_8_unless_overridden(bench: Bench) -> None:
    own = "/proc/self/ns/net"
    outcome = bench.call("ADD", bench.conf, netns=own)
    assert outcome.code == 8
    assert own in outcome.text
    bench.assert_clean()
    override = {"CNI_NETNS_OVERRIDE": "true"}
    conf = bench.without_ipam()
    result = bench.add(conf, netns=own, ifname="host0", environ=override)
    assert result["interfaces"][-1]["sandbox"] == own
    assert "host0" in bench.node.links()
    bench.call("DEL", conf, netns=own, ifname="host0", environ=override).succeeded()
    assert "host0" not in bench.node.links()


def test_rule_09_an_error_is_one_object_on_standard_output(bench: Bench) -> None:
    outcome = bench.call("ADD", bench.conf | {"mtu": 1, "logLevel": "debug"})
    assert outcome.status != 0
    assert outcome.out.count("\n") == 1
    assert outcome.body.keys() <= {"cniVersion", "code", "msg", "details"}
    assert (outcome.body["cniVersion"], outcome.body["code"]) == ("1.0.0", 7)


# -- VERSION


@pytest.mark.parametrize("version", SUPPORTED)
def test_rule_11_version_answers_in_the_version_of_the_input(bench: Bench, version: str) -> None:
    outcome = bench.execute({"cniVersion": version}, CNI_COMMAND="VERSION")
    assert outcome.result == {"cniVersion": version, "supportedVersions": list(SUPPORTED)}


# -- ADD


def test_rule_12_a_name_that_is_taken_is_an_error_and_stays_untouched(bench: Bench) -> None:
    bench.node.enter(bench.netns, ["ip", "link", "add", "eth0", "type", "veth"])
    before = bench.inside()
    outcome = bench.call("ADD", bench.conf)
    assert outcome.code >= 100
    assert "eth0" in outcome.text
    assert bench.inside() == before
    assert (bench.leases(), bench.node.veths(), bench.recorded()) == ([], [], [])


def test_rule_12_a_second_add_is_an_error_and_the_first_stays(bench: Bench) -> None:
    bench.add(bench.conf)
    before = bench.inside()
    assert bench.call("ADD", bench.conf).code == 103
    assert bench.inside() == before
    assert bench.leases() == ["10.33.0.2"]


def test_rule_13_the_result_lists_every_interface_as_it_is(bench: Bench) -> None:
    conf = bench.spied()
    result = bench.add(conf)
    assert result["cniVersion"] == "1.1.0"
    host, inside = bench.node.links(), bench.inside()
    for interface in result["interfaces"]:
        where = inside if "sandbox" in interface else host
        link = where[interface["name"]]
        assert (interface["mac"], interface["mtu"]) == (link["address"], link["mtu"])
    assert [item.get("sandbox") for item in result["interfaces"]] == [None, None, bench.netns]
    assert {item["name"] for item in result["interfaces"]} >= {BRIDGE, "eth0"}


def test_rule_14_the_interface_has_the_name_that_was_asked_for(bench: Bench) -> None:
    for name in ("e", "n" * 15):
        result = bench.add(bench.conf, ifname=name)
        assert result["interfaces"][-1]["name"] == name
    assert set(bench.inside()) == {"e", "n" * 15}


def test_rule_15_prev_result_is_passed_on_and_extended(bench: Bench) -> None:
    previous = {
        "cniVersion": "1.0.0",
        "interfaces": [{"name": "net0", "sandbox": bench.netns}],
        "ips": [{"address": "192.0.2.9/24", "interface": 0}],
        "routes": [{"dst": "198.51.100.0/24"}],
    }
    result = bench.add(bench.conf | {"prevResult": previous})
    assert result["interfaces"][0] == previous["interfaces"][0]
    assert result["ips"][0] == previous["ips"][0]
    assert result["routes"][0] == previous["routes"][0]
    ours = result["ips"][1]
    assert ours["address"] == "10.33.0.2/24"
    assert result["interfaces"][ours["interface"]]["name"] == "eth0"
    checked = bench.conf | {"prevResult": result}
    bench.call("CHECK", checked).succeeded()
    bench.call("DEL", checked).succeeded()
    bench.assert_clean()


def test_rule_16_containers_come_and_go_at_once_on_one_bridge(bench: Bench) -> None:
    names = [f"par{number}" for number in range(6)]
    paths = {name: bench.node.netns(name) for name in names}
    try:
        for command in ("ADD", "DEL"):
            with ThreadPoolExecutor(6) as pool:
                outcomes = pool.map(
                    lambda name, command=command: bench.call(
                        command, bench.conf, container=name, netns=paths[name]
                    ),
                    names,
                )
                assert [outcome.status for outcome in outcomes] == [0] * len(names)
            if command == "ADD":
                assert len(bench.leases()) == len(bench.node.veths()) == len(names)
    finally:
        for name in names:
            bench.node.run(["ip", "netns", "delete", name])
    bench.assert_clean()


def test_rule_17_reserved_keys_are_no_unknown_keys(bench: Bench) -> None:
    reserved = {"runtimeConfig": {}, "args": {"cni": {}, "x": 1}, "cni.dev/new": 1, "dns": {}}
    assert bench.add(bench.without_ipam(**reserved))["interfaces"]


# -- IPAM


def test_rule_18_ipam_gets_the_same_environment_and_configuration(bench: Bench) -> None:
    conf = bench.spied()
    bench.add(conf, args="IgnoreUnknown=1;A=b")
    (call,) = bench.spy.calls("ADD")
    assert call.conf == conf
    assert call.env == {
        "CNI_COMMAND": "ADD",
        "CNI_CONTAINERID": "c1",
        "CNI_NETNS": bench.netns,
        "CNI_IFNAME": "eth0",
        "CNI_ARGS": "IgnoreUnknown=1;A=b",
        "CNI_PATH": str(bench.plugin.bin_dir),
    }


def test_rule_19_each_address_points_at_the_containers_interface(bench: Bench) -> None:
    ipam = bench.conf["ipam"] | {"ranges": [[{"subnet": SUBNET}], [{"subnet": "fd33::/64"}]]}
    result = bench.add(bench.conf | {"ipam": ipam})
    assert len(result["ips"]) == 2
    for ip in result["ips"]:
        assert result["interfaces"][ip["interface"]]["name"] == "eth0"


def test_rule_20_after_a_failed_ipam_add_comes_an_ipam_del(bench: Bench) -> None:
    outcome = bench.call("ADD", bench.spied(fail=["ADD"]))
    assert outcome.code == 111
    assert [call.command for call in bench.spy.calls()] == ["ADD", "DEL"]
    bench.assert_clean()


def test_rule_20_after_a_failure_of_our_own_the_address_is_given_back(bench: Bench) -> None:
    host = bench.conf["host"] | {"bridge": {"bridgeName": "missing0", "create": False}}
    outcome = bench.call("ADD", bench.conf | {"host": host})
    assert outcome.code != 0
    assert "missing0" in outcome.text
    bench.assert_clean()


def test_rule_21_ipam_is_asked_for_every_command_and_its_errors_are_ours(bench: Bench) -> None:
    conf = bench.spied()
    result = bench.add(conf)
    for command in ("CHECK", "STATUS", "GC", "DEL"):
        keys = {"prevResult": result, GC: [{"containerID": "c1", "ifname": "eth0"}]}
        failing = bench.spied(fail=[command]) | keys
        if command != "DEL":  # DEL goes by the configuration of the ADD
            assert bench.call(command, failing).code == (50 if command == "STATUS" else 111)
        bench.call(command, conf | keys).succeeded()
    commands = [call.command for call in bench.spy.calls()]
    assert commands == ["ADD", "CHECK", "CHECK", "STATUS", "STATUS", "GC", "GC", "DEL"]
    bench.assert_clean()


@pytest.mark.parametrize(
    ("answer", "code"),
    [('{"ips": [{"address": "10.33.0.9/24", "gateway": "10.33.0.1"}]}', 0), ("null", 105)],
)
def test_rule_22_an_ipam_result_without_version_has_the_networks(
    bench: Bench, answer: str, code: int
) -> None:
    script = bench.plugin.bin_dir / "fixed"
    script.write_text(f"#!/bin/sh\n[ $CNI_COMMAND != ADD ] || echo '{answer}'\n")
    script.chmod(0o755)
    outcome = bench.call("ADD", bench.conf | {"ipam": {"type": "fixed"}})
    if code:
        assert outcome.code == code
        bench.assert_clean()
    else:
        (ip,) = outcome.result["ips"]
        assert (ip["address"], ip["interface"]) == ("10.33.0.9/24", 2)


# -- DEL


@pytest.mark.parametrize("netns", ["same", "empty", "vanished"])
def test_rule_23_del_succeeds_whatever_is_gone(bench: Bench, netns: str) -> None:
    bench.call("DEL", bench.conf, container="never").succeeded()
    gone = bench.node.netns("gone")
    bench.add(bench.conf, netns=gone)
    if netns == "vanished":
        bench.node.run(["ip", "netns", "delete", "gone"])
    path = "" if netns == "empty" else gone
    for _ in range(2):
        bench.call("DEL", bench.conf, netns=path).succeeded()
    if netns != "vanished":
        assert set(bench.node.links(gone)) == {"lo"}
        bench.node.run(["ip", "netns", "delete", "gone"])
    bench.assert_clean()


def test_rule_23_del_frees_the_address_after_the_interface(bench: Bench) -> None:
    """Otherwise another container could get an address that is still in use."""
    conf = bench.spied()
    seen = bench.directory / "links-when-freed"
    script = bench.plugin.bin_dir / "lab-spy"
    real = bench.plugin.bin_dir / "lab-spy-real"
    script.rename(real)
    script.write_text(
        f'#!/bin/sh\n[ $CNI_COMMAND != DEL ] || ls /sys/class/net > {seen}\nexec {real} "$@"\n'
    )
    script.chmod(0o755)
    veth = next(
        item["name"]
        for item in bench.add(conf)["interfaces"]
        if item["name"] not in (BRIDGE, "eth0")
    )
    bench.call("DEL", conf).succeeded()
    assert veth not in seen.read_text().split()


# -- CHECK


@pytest.mark.parametrize(
    "damage",
    [
        "link delete eth0",
        "link set eth0 down",
        "address delete 10.33.0.2/24 dev eth0",
        "route delete default",
    ],
)
def test_rule_24_check_finds_what_is_missing(bench: Bench, damage: str) -> None:
    result = bench.add(bench.conf)
    checked = bench.conf | {"prevResult": result}
    bench.call("CHECK", checked).succeeded()
    bench.node.enter(bench.netns, ["ip", *damage.split()])
    outcome = bench.call("CHECK", checked)
    assert outcome.code == 104
    bench.call("DEL", checked).succeeded()
    bench.assert_clean()


def test_rule_24_check_needs_prev_result_and_tolerates_what_is_added(bench: Bench) -> None:
    result = bench.add(bench.conf)
    assert bench.call("CHECK", bench.conf).code == 7
    bench.node.enter(bench.netns, ["ip", "address", "add", "192.0.2.1/24", "dev", "eth0"])
    bench.node.enter(bench.netns, ["ip", "route", "add", "198.51.100.0/24", "dev", "eth0"])
    bench.call("CHECK", bench.conf | {"prevResult": result}).succeeded()


def test_rule_24_check_goes_by_what_later_plugins_changed(bench: Bench) -> None:
    """As after `tuning`: another MAC address in prevResult."""
    result = bench.add(bench.conf)
    mac = "02:00:00:00:00:99"
    bench.node.enter(bench.netns, ["ip", "link", "set", "eth0", "address", mac])
    assert bench.call("CHECK", bench.conf | {"prevResult": result}).code == 104
    result["interfaces"][-1]["mac"] = mac
    bench.call("CHECK", bench.conf | {"prevResult": result}).succeeded()


# -- GC and STATUS


def test_rule_26_gc_removes_what_is_not_valid_here_and_nothing_elsewhere(bench: Bench) -> None:
    conf = bench.spied()
    elsewhere = bench.without_ipam(name="elsewhere")
    for name in ("keep0", "lost0"):
        bench.add(conf, ifname=name)
    bench.add(elsewhere, ifname="other0")
    assert bench.call("GC", conf).code == 7
    assert set(bench.inside()) == {"keep0", "lost0", "other0"}
    bench.call("GC", conf | {GC: [{"containerID": "c1", "ifname": "keep0"}]}).succeeded()
    assert set(bench.inside()) == {"keep0", "other0"}
    assert bench.leases() == ["10.33.0.2"]
    bench.call("GC", conf | {GC: []}).succeeded()
    bench.call("GC", elsewhere | {GC: []}).succeeded()
    bench.assert_clean()


def test_rule_27_status_tells_whether_an_add_would_succeed(bench: Bench) -> None:
    conf = bench.spied()
    bench.call("STATUS", conf).succeeded()
    missing = conf["host"] | {"bridge": {"bridgeName": "missing0", "create": False}}
    outcome = bench.call("STATUS", conf | {"host": missing})
    assert outcome.code == 50
    assert "missing0" in outcome.text
    assert bench.call("STATUS", bench.spied(fail=["STATUS"])).code == 50
    bench.assert_clean()


# -- versions


@pytest.mark.parametrize("version", SUPPORTED)
def test_rule_28_the_result_is_in_the_version_of_the_network(bench: Bench, version: str) -> None:
    network = bench.spied() if version == "1.1.0" else bench.conf  # host-local ends at 1.0.0
    result = bench.add(network | {"cniVersion": version})
    assert result.pop("cniVersion") == version
    address, route = "10.33.0.2/24", {"dst": "0.0.0.0/0", "gw": "10.33.0.1"}
    if version in ("0.1.0", "0.2.0"):
        ip4 = {"ip": address, "gateway": "10.33.0.1", "routes": [route]}
        assert result == {"ip4": ip4}
        return
    stated = {"version": "4"} if version < "1.0.0" else {}
    ip = {"address": address, "gateway": "10.33.0.1", "interface": 2}
    assert (result["ips"], result["routes"]) == ([ip | stated], [route])
    extra = {"mtu"} if version == "1.1.0" else set()
    assert result["interfaces"][2].keys() == {"name", "mac", "sandbox"} | extra


def test_rule_28_a_result_without_address_cannot_be_said_in_0_2_0(bench: Bench) -> None:
    outcome = bench.call("ADD", bench.without_ipam(cniVersion="0.2.0"))
    assert outcome.code == 1
    assert "0.2.0" in outcome.text
    bench.assert_clean()


@pytest.mark.parametrize(
    ("version", "previous"),
    [
        ("0.2.0", {"ip4": {"ip": "192.0.2.9/24"}}),
        ("0.3.1", {"ips": [{"version": "4", "address": "192.0.2.9/24"}]}),
        ("1.1.0", {"ips": [{"address": "192.0.2.9/24"}]}),
    ],
)
def test_rule_29_prev_result_is_read_in_its_version(
    bench: Bench, version: str, previous: Json
) -> None:
    conf = bench.without_ipam(cniVersion=version, prevResult={"cniVersion": version, **previous})
    result = bench.add(conf)
    for key, value in previous.items():
        assert result[key] == value


# -- conventions


def test_rule_30_capabilities_are_honoured_or_refused(bench: Bench) -> None:
    mac = "02:00:00:00:00:55"
    capabilities = {
        "mac": mac,
        "ips": ["10.33.0.77/24"],
        "dns": {"Servers": ["10.33.0.53"], "Searches": ["s.example"]},
        "bandwidth": {"IngressRate": 8_000_000, "IngressBurst": 800_000},
    }
    host = bench.conf["host"] | {"bridge": {"bridgeName": BRIDGE}}
    ipam = {"type": "static"}
    static = bench.conf | {"host": host, "ipam": ipam, "runtimeConfig": capabilities}
    result = bench.add(static)
    assert bench.inside()["eth0"]["address"] == mac
    assert result["ips"][0]["address"] == "10.33.0.77/24"
    assert result["dns"] == {"nameservers": ["10.33.0.53"], "search": ["s.example"]}
    assert "rate 8Mbit burst 100000b" in bench.node.run(["tc", "qdisc"]).stdout
    ports = [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]
    refused = bench.call(
        "ADD", bench.conf | {"runtimeConfig": {"portMappings": ports}}, container="c2"
    )
    assert refused.code == 2
    assert '"hostPort": 8080' in refused.text
    assert "portMappings" in refused.text


def test_rule_31_args_beat_cni_args(bench: Bench) -> None:
    asked = {"cni": {"mac": "02:00:00:00:00:31", "labels": [], "colour": "ignored"}}
    bench.add(bench.conf | {"args": asked}, args="MAC=02:00:00:00:00:99;IgnoreUnknown=true")
    assert bench.inside()["eth0"]["address"] == "02:00:00:00:00:31"


def test_rule_32_cni_args_are_read_as_runtimes_write_them(bench: Bench) -> None:
    pod = (
        "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=p;"
        "K8S_POD_INFRA_CONTAINER_ID=x;K8S_POD_UID=u;OTHER=a=b=c;MAC=02:00:00:00:00:32"
    )
    conf = bench.spied() | {"macFromArgs": True}
    bench.add(conf, args=pod)
    assert bench.inside()["eth0"]["address"] == "02:00:00:00:00:32"
    outcome = bench.call("ADD", conf, container="c2", ifname="eth1", args="OTHER=1")
    assert outcome.code == 4
    assert "OTHER" in outcome.text
    bench.call("DEL", conf, args="OTHER=1;nonsense").succeeded()
    bench.assert_clean()


def test_rule_33_tracing_variables_are_passed_over(bench: Bench) -> None:
    tracing = {"TRACEPARENT": "00-" + "a" * 32 + "-" + "b" * 16 + "-01", "BAGGAGE": "k=v"}
    assert bench.add(bench.conf, environ=tracing)["interfaces"]


def test_rule_34_del_goes_by_the_configuration_of_the_add(bench: Bench) -> None:
    bench.add(bench.conf)
    changed = bench.without_ipam(host={"engine": "linux", "iftype": "tap"})
    bench.call("DEL", changed).succeeded()
    bench.assert_clean()
