"""All problems of a configuration are reported together, before the switch is used."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from core.example_lab import ExampleLab

_SAME_ROLE = {"role": "server"}
#: Mistakes in combinations of keys (host and container), and texts in the answer.
_MISTAKES: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "vpp: both serve": (
        {
            "host": {"engine": "vpp", "iftype": "memif", "memif": _SAME_ROLE},
            "container": {"engine": "vpp", "memif": _SAME_ROLE},
        },
        ("container.memif.role", "'client'", "'server'", "leave it out"),
    ),
    "vpp and dpdk: both connect": (
        {
            "host": {"engine": "vpp", "iftype": "memif", "memif": {"role": "slave"}},
            "container": {"engine": "dpdk", "memif": {"role": "slave"}},
        },
        ("container.memif.role", "'server'", "'slave'"),
    ),
    "ovs: both serve": (
        {
            "host": {"engine": "ovs", "iftype": "vhostuser", "vhost": {"mode": "server"}}
            | {"bridge": {"bridgeName": "br0"}},
            "container": {"vhost": {"mode": "server"}},
        },
        ("container.vhost.mode", "'client'", "'server'"),
    ),
    "ovs and vpp: both serve": (
        {
            "host": {"engine": "ovs", "iftype": "memif", "bridge": {"bridgeName": "br0"}},
            "container": {"engine": "vpp", "memif": {"role": "master"}},
        },
        ("container.memif.role", "'client'", "'master'"),
    ),
    "ovs: an MTU that a memif has not": (
        {
            "host": {"engine": "ovs", "iftype": "memif", "bridge": {"bridgeName": "br0"}},
            "mtu": 9000,
        },
        ("mtu", "9000", "vhostuser"),
    ),
    "vpp: modes differ": (
        {
            "host": {"engine": "vpp", "iftype": "memif", "memif": {"mode": "ip"}},
            "container": {"memif": {"mode": "ethernet"}},
        },
        ("container.memif.mode", "'ip'", "'ethernet'"),
    ),
    "vpp: a bridge without a name": (
        {"host": {"engine": "vpp", "iftype": "memif", "netType": "bridge"}},
        ("host.bridge.bridgeName", "missing"),
    ),
    "linux: a tap in a bridge": (
        {"host": {"engine": "linux", "iftype": "tap", "bridge": {"bridgeName": "b"}}},
        ("host.netType", "tap"),
    ),
    "linux: a bridge without a name": (
        {"host": {"engine": "linux", "iftype": "veth", "netType": "bridge"}},
        ("host.bridge.bridgeName", "missing"),
    ),
}


@pytest.fixture
def down(lab: ExampleLab) -> ExampleLab:
    """A lab in which no switch is running."""
    nowhere = lab.directory / "nowhere"
    lab.plugin.settings(
        f'[engines.vpp]\napi_socket = "{nowhere}/api.sock"\n'
        f'[engines.ovs]\ndb = "unix:{nowhere}/db.sock"\n'
    )
    return lab


@pytest.mark.parametrize(("keys", "says"), _MISTAKES.values(), ids=_MISTAKES)
def test_a_lasting_mistake_is_told_while_the_switch_is_down(
    down: ExampleLab, keys: dict[str, Any], says: tuple[str, ...]
) -> None:
    conf = down.conf(**keys)
    previous = {"interfaces": [{"name": "eth0", "sandbox": down.netns}]}
    for command, more in (
        ("ADD", {}),
        ("STATUS", {}),
        ("CHECK", {"prevResult": previous}),
        ("GC", {"cni.dev/valid-attachments": []}),
    ):
        outcome = down.call(command, conf | more)
        assert (command, outcome.code) == (command, 7), outcome.body
        for words in says:
            assert words in outcome.text
    # No ADD can have succeeded with it.
    down.call("DEL", conf).succeeded()
    down.assert_clean()


@pytest.mark.parity
def test_all_stages_are_told_in_one_answer(down: ExampleLab) -> None:
    conf = down.conf(
        mtuu=1400,
        mac="03:00:00:00:00:01",
        dns={"nameservers": ["one", "two"]},
        ipam={"subnet": "10.0.0.0/8"},
        runtimeConfig={"portMappings": [{"hostPort": 80}], "ips": ["10.0.0.5/24"]},
        args={"cni": {"mac": "beef"}},
        host={
            "engine": "vpp",
            "iftype": "memif",
            "brigde": {},
            "memif": {"ringSise": 512, "bufferSize": 3},
            "bridge": {"bridgeName": "blue", "vlanID": 7},
        },
        container={"engine": "dpdk", "netType": "bridge", "vhost": {"queues": 0}, "colour": 1},
    )
    for command in ("ADD", "STATUS"):
        outcome = down.call(command, conf)
        assert outcome.code == 7
        for words in (
            *("mtuu: unknown key with value 1400", 'did you mean "mtu"?'),
            *("mac: expected a unicast MAC address", "'one'", "'two'", "ipam.type: missing"),
            *("runtimeConfig.portMappings", "runtimeConfig.ips", "args.cni.mac", "beef"),
            *("host.brigde", 'did you mean "bridge"?'),
            *("host.memif.ringSise", 'did you mean "ringSize"?', "host.memif.bufferSize"),
            *("host.bridge.vlanID", 'did you mean "vlanId"?'),
            *("container.netType", "container.vhost.queues", "container.colour"),
        ):
            assert words in outcome.text, words
        assert outcome.text.count("host.brigde") == 1


def test_what_only_the_engines_can_judge_is_told_with_the_rest(down: ExampleLab) -> None:
    conf = down.conf(
        logLevel="loud",
        mtu=9000,
        host={
            "engine": "ovs",
            "iftype": "memif",
            "netType": "bridge",
            "memif": {"mode": "ip", "role": "client"},
        },
        container={"engine": "vpp", "netType": "bridge", "memif": {"role": "server"}},
    )
    outcome = down.call("ADD", conf)
    assert outcome.code == 7
    for words in (
        *("logLevel", "'loud'", "mtu: a memif port", "host.memif.mode", "host.memif.role"),
        *("host.bridge.bridgeName", "container.bridge.bridgeName", "container.memif.role"),
    ):
        assert words in outcome.text, words


def test_an_engine_that_is_missing_keeps_no_other_mistake_back(down: ExampleLab) -> None:
    conf = down.conf(
        mtu=1,
        host={"engine": "linuxx", "iftype": "veth"},
        container={"engine": "vpp", "memif": {"id": -1}},
    )
    outcome = down.call("ADD", conf)
    assert outcome.code == 7
    for words in (
        "mtu",
        "'linuxx' is not installed",
        'did you mean "linux"?',
        "container.memif.id",
    ):
        assert words in outcome.text, words
    down.call("DEL", conf).succeeded()
