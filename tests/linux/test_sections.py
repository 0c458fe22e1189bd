from __future__ import annotations

import pytest

from userspace_cni.api.sections import Trunk
from userspace_cni.cni.errors import CniError
from userspace_cni.config.decoding import structure
from userspace_cni_linux.sections import BridgeSection, MacvlanSection, TapSection


def test_a_whole_bridge_section() -> None:
    section = structure(
        {
            "bridgeName": "br0",
            "vlanId": 5,
            "trunk": [{"id": 7}, {"minID": 10, "maxID": 12}],
            "gateway": True,
            "defaultRoute": True,
            "create": False,
            "hairpin": True,
            "promiscuous": True,
            "isolated": True,
        },
        BridgeSection,
        "host.bridge",
    )
    assert [list(trunk.vlans) for trunk in section.trunk] == [[7], [10, 11, 12]]
    assert section == BridgeSection(
        bridge_name="br0",
        vlan_id=5,
        trunk=(Trunk(id=7), Trunk(min_id=10, max_id=12)),
        gateway=True,
        default_route=True,
        create=False,
        hairpin=True,
        promiscuous=True,
        isolated=True,
    )


def test_defaults() -> None:
    assert structure({"bridgeName": "br0"}, BridgeSection, "").create
    assert structure({}, MacvlanSection, "") == MacvlanSection(master="", mode="bridge")
    assert structure({}, TapSection, "") == TapSection()


@pytest.mark.parametrize(
    ("kind", "value", "message"),
    [
        (BridgeSection, {}, "x.bridgeName: missing|bridgeName"),
        (BridgeSection, {"bridgeName": ""}, "x.bridgeName: expected an interface name"),
        (BridgeSection, {"bridgeName": "a" * 16}, "x.bridgeName: expected an interface name"),
        (BridgeSection, {"bridgeName": "a/b"}, "x.bridgeName: expected an interface name"),
        (BridgeSection, {"bridgeName": ".."}, "x.bridgeName: expected an interface name"),
        (BridgeSection, {"bridgeName": "b\n"}, "x.bridgeName: expected an interface name"),
        (BridgeSection, {"bridgeName": "b", "vlanId": 0}, "x.vlanId: expected 1 to 4094, got 0"),
        (
            BridgeSection,
            {"bridgeName": "b", "vlanId": 5000},
            "x.vlanId: expected 1 to 4094, got 5000",
        ),
        (
            BridgeSection,
            {"bridgeName": "b", "trunk": [{"id": 4095}]},
            r"x.trunk\[0\].id: expected 1 to 4094, got 4095",
        ),
        (
            BridgeSection,
            {"bridgeName": "b", "trunk": [{"minID": 4}]},
            r"x.trunk\[0\]: expected either id, or both minID and maxID",
        ),
        (
            BridgeSection,
            {"bridgeName": "b", "trunk": [{"id": 1, "minID": 4, "maxID": 5}]},
            r"x.trunk\[0\]: expected either id, or both minID and maxID",
        ),
        (
            BridgeSection,
            {"bridgeName": "b", "trunk": [{"minID": 6, "maxID": 5}]},
            r"x.trunk\[0\]: expected minID up to maxID, got 6 to 5",
        ),
        (MacvlanSection, {"mode": "source"}, "x.mode: expected one of bridge, private"),
        (MacvlanSection, {"master": "a b"}, "x.master: expected an interface name"),
        (TapSection, {"owner": -1}, "x.owner: expected 0 to 4294967294, got -1"),
        (TapSection, {"queues": 2}, "x.queues: unknown key"),
    ],
)
def test_errors(kind: type, value: dict[str, object], message: str) -> None:
    with pytest.raises(CniError, match=message):
        structure(value, kind, "x")
