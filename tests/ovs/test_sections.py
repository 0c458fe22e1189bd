"""Validation of the engine's configuration sections and its messages."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab.attachments import attachment
from userspace_cni import config
from userspace_cni.api import Attachment, Bandwidth, EngineConf, Memif
from userspace_cni.cni.errors import CniError
from userspace_cni_ovs import ports
from userspace_cni_ovs.host import OvsHostEngine
from userspace_cni_ovs.ovsdb import a_map, a_set, mapping, members, optional
from userspace_cni_ovs.sections import BridgeSection
from userspace_cni_ovs.switch import without_secret


def _conf(**host: Any) -> EngineConf:
    raw = {"iftype": "vhostuser", "bridge": {"bridgeName": "br0"}, **host}
    return config.engine_conf(raw, "host", OvsHostEngine.info, {})


def _attachment(**more: Any) -> Attachment:
    return attachment(network="n", container_id="c", netns="", interface="e", **more)


@pytest.mark.parametrize(
    ("host", "words"),
    [
        ({"bridge": {"bridgeName": "br0", "vlanId": 0}}, "host.bridge.vlanId: expected 1 to 4094"),
        ({"bridge": {"bridgeName": "a/b"}}, "host.bridge.bridgeName"),
        ({"bridge": {"bridgeName": "sixteen-letters."}}, "host.bridge.bridgeName"),
        ({"bridge": {"bridgeName": "br0", "trunk": [{"id": 4096}]}}, "host.bridge.trunk[0].id"),
        ({"bridge": {"bridgeName": "br0", "trunk": [{"minID": 9, "maxID": 8}]}}, "trunk[0]"),
        ({"bridge": {"bridgeName": "br0", "trunk": [{"minID": 9}]}}, "both minID and maxID"),
        ({"bridge": {"bridgeName": "br0", "trunk": [{"id": 1, "maxID": 2}]}}, "either id"),
        ({"bridge": {"bridgeName": "br0", "color": 1}}, "host.bridge.color: unknown key"),
        ({"memif": {"ringSize": 1000}}, "host.memif.ringSize: expected a power of two"),
        ({"memif": {"socketfile": "../up"}}, "host.memif.socketfile: expected the bare name"),
        ({"vhost": {"socketfile": ".."}}, "host.vhost.socketfile"),
        ({"vhost": {"mode": "peer"}}, "host.vhost.mode: expected one of client, server"),
        ({"iftype": "macvlan"}, "host.iftype"),
        ({"netType": "interface"}, "host.netType"),
    ],
)
def test_a_value_that_cannot_be_used_is_named(host: dict[str, Any], words: str) -> None:
    with pytest.raises(CniError) as caught:
        _conf(**host)
    assert words in str(caught.value)


def test_a_secret_is_not_repeated() -> None:
    with pytest.raises(CniError) as caught:
        _conf(memif={"secret": "has,comma"})
    assert "has,comma" not in str(caught.value)
    assert "host.memif.secret" in str(caught.value)
    error = "Error attaching device 'net_memif0,secret=s3cret,id=0' to DPDK"
    assert without_secret(error) == "Error attaching device 'net_memif0,secret=...,id=0' to DPDK"
    assert "s3cret" not in repr(Memif(role="client", socket="/s", secret="s3cret"))


@pytest.mark.parametrize(
    ("host", "words"),
    [
        ({"bridge": {}}, "host.bridge.bridgeName: missing"),
        ({"netType": "none", "bridge": {"vlanId": 4}}, "host.bridge.vlanId"),
        ({"netType": "none", "bridge": {"create": True}}, "host.bridge.create"),
        ({"bridge": {"bridgeName": "b", "nativeTagged": True}}, "host.bridge.nativeTagged"),
        (
            {"bridge": {"bridgeName": "b", "create": True, "datapathType": "system"}},
            "host.bridge.datapathType",
        ),
        ({"iftype": "memif", "memif": {"role": "slave"}}, "host.memif.role"),
        ({"iftype": "memif", "memif": {"mode": "ip"}}, "host.memif.mode"),
    ],
)
def test_a_combination_that_cannot_work_is_named(host: dict[str, Any], words: str) -> None:
    (problem,) = ports.problems(_conf(**host))
    assert problem.code == 7
    assert words in str(problem)


@pytest.mark.parametrize(
    ("host", "name"),
    [
        ({"bridge": {"bridgeName": "br7"}}, "br7"),
        ({"bridge": {"bridgeId": 7}}, "br-7"),
        ({"bridge": {"bridgeName": "br8", "bridgeId": 7}}, "br8"),
        ({"netType": "none", "bridge": {}}, "br-int"),
    ],
)
def test_the_bridges_name(host: dict[str, Any], name: str) -> None:
    assert ports.bridge_section(_conf(**host)).name == name


@pytest.mark.parametrize(
    ("section", "mode", "trunks"),
    [
        ({}, "", []),
        ({"vlanId": 5}, "access", []),
        ({"trunk": [{"id": 5}, {"minID": 4, "maxID": 6}]}, "trunk", [4, 5, 6]),
        ({"vlanId": 5, "trunk": [{"id": 0}]}, "native-untagged", [0]),
        ({"vlanId": 5, "trunk": [{"id": 9}], "nativeTagged": True}, "native-tagged", [9]),
    ],
)
def test_vlans(section: dict[str, Any], mode: str, trunks: list[int]) -> None:
    bridge = _conf(bridge={"bridgeName": "br0", **section}).section(BridgeSection)
    assert (bridge.vlan_mode, bridge.trunks) == (mode, trunks)


@given(st.integers(0, 4095), st.integers(0, 4095))
def test_a_range_has_both_its_ends(one: int, other: int) -> None:
    low, high = sorted((one, other))
    bridge = {"bridgeName": "b", "trunk": [{"minID": low, "maxID": high}]}
    trunks = _conf(bridge=bridge).section(BridgeSection).trunks
    assert (trunks[0], trunks[-1], len(trunks)) == (low, high, high - low + 1)


def test_limits_are_converted_to_the_switchs_units() -> None:
    spec = ports.PortSpec(
        name="p",
        type="",
        bridge=BridgeSection(bridge_name="b"),
        external_ids={"userspace-cni-id": "x"},
        bandwidth=Bandwidth(
            ingress_rate=8_000_000,
            ingress_burst=800_000,
            egress_rate=5_000_000,
            egress_burst=40_000,
        ),
    )
    assert spec.policing == (5000, 40)
    qos = spec.qos()
    assert qos is not None
    assert mapping(qos["other_config"]) == {"cir": "1000000", "cbs": "100000"}


def test_too_few_queues_of_a_memif_are_refused(tmp_path: Any) -> None:
    from pathlib import Path

    from userspace_cni.handover import ContainerDirectory

    directory = ContainerDirectory(tmp_path, "c", Path("/run"))
    conf = _conf(iftype="memif", memif={"queues": 2})
    assert ports.memif(_attachment(), conf, directory, 2).rx_queues == 2
    with pytest.raises(CniError, match="expected at least 3, got 2"):
        ports.memif(_attachment(), conf, directory, 3)


def test_a_path_with_a_comma_cannot_be_a_device_argument() -> None:
    with pytest.raises(CniError, match="sharedDir"):
        ports.memif_options("0" * 16, Memif(role="client", socket="/a,b"), "/a,b")


@given(st.dictionaries(st.text(), st.text()))
def test_maps_are_read_as_they_are_written(value: dict[str, str]) -> None:
    assert mapping(a_map(value)) == value


@given(st.lists(st.integers()))
def test_sets_are_read_as_they_are_written(value: list[int]) -> None:
    assert members(a_set(value)) == value
    assert members(7) == [7]
    assert optional(a_set(())) is None
