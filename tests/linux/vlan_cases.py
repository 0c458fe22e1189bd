"""VLAN test cases, run by test_vlan.py in a separate kernel."""

from __future__ import annotations

import json
import re
from contextlib import ExitStack

import pytest

from linux.conftest import Attached, Lab, conf
from userspace_cni.api import Bandwidth, EngineConf
from userspace_cni.api.sections import Trunk
from userspace_cni.cni.errors import CheckFailed, DataplaneError
from userspace_cni_linux.sections import BridgeSection


def vlan(number: int | None, name: str = "br0", **more: object) -> EngineConf:
    section = BridgeSection(bridge_name=name, vlan_id=number, **more)  # type: ignore[arg-type]
    return conf("veth", "bridge", bridge=section)


def members(lab: Lab, port: str) -> dict[int, set[str]]:
    shown = json.loads(lab.host.run("bridge", "-j", "vlan", "show", "dev", port))
    return {
        entry["vlan"]: set(entry.get("flags", ())) for found in shown for entry in found["vlans"]
    }


OWN = {"PVID", "Egress Untagged"}


def test_isolation_and_membership_by_traffic(lab: Lab) -> None:
    a, b = lab.attach(vlan(5), "10.1.0.2/24"), lab.attach(vlan(5), "10.1.0.3/24")
    c = lab.attach(vlan(6), "10.1.0.4/24")
    d = lab.attach(vlan(None), "10.1.0.5/24")
    assert a.container.ping("10.1.0.3")
    for other in ("10.1.0.4", "10.1.0.5"):
        assert not a.container.ping(other, timeout=0.5)
    assert not c.container.ping("10.1.0.5", timeout=0.5)
    assert members(lab, a.port.name) == {5: OWN}
    assert members(lab, d.port.name) == {1: OWN}
    for attached in (a, b, c, d):
        attached.check()
    for attached in (a, b, c, d):
        attached.delete()
    assert lab.host.links() == set()


def test_trunk(lab: Lab) -> None:
    ranges = (Trunk(id=7), Trunk(min_id=10, max_id=12))
    a = lab.attach(vlan(11, trunk=ranges), "10.1.0.2/24")
    assert members(lab, a.port.name) == {7: set(), 10: set(), 11: OWN, 12: set()}
    b = lab.attach(vlan(7), "10.7.0.3/24")
    only = lab.attach(vlan(None, trunk=ranges))
    assert members(lab, only.port.name) == {7: set(), 10: set(), 11: set(), 12: set()}
    tagged(a, 7, "10.7.0.2/24")
    tagged(a, 10, "10.10.0.2/24")
    assert b.container.ping("10.7.0.2")
    c = lab.attach(vlan(10), "10.10.0.3/24")
    assert c.container.ping("10.10.0.2")
    a.check()
    lab.host.run("bridge", "vlan", "del", "dev", a.port.name, "vid", "12")
    with pytest.raises(CheckFailed, match="lacks VLANs of its trunk: missing: 12"):
        a.check()


def test_check_sees_another_vlan(lab: Lab) -> None:
    a = lab.attach(vlan(5))
    lab.host.run("bridge", "vlan", "add", "dev", a.port.name, "vid", "6", "pvid", "untagged")
    with pytest.raises(CheckFailed, match="expected untagged traffic in VLAN 5, found VLAN 6"):
        a.check()


@pytest.mark.parametrize(
    ("bridge", "holder"), [("br0", "br0.5"), ("a-longish-name0", "ucv[0-9a-f]{7}[.]5")]
)
def test_gateway_on_the_vlans_sub_interface(lab: Lab, bridge: str, holder: str) -> None:
    wanted = vlan(5, bridge, gateway=True)
    a = lab.attach(wanted, "10.1.0.2/24>10.1.0.1", "fd00:1::2/64>fd00:1::1")
    again = lab.attach(wanted, "10.1.0.3/24>10.1.0.1")
    assert again.container.ping("10.1.0.1")
    assert a.container.ping("fd00:1::1")
    a.check()
    other = lab.attach(vlan(6, bridge), "10.1.0.4/24")
    assert not other.container.ping("10.1.0.1", timeout=0.5)
    (found,) = lab.host.links() - {bridge, a.port.name, again.port.name, other.port.name}
    assert re.fullmatch(holder, found)
    lab.host.run("ip", "address", "del", "10.1.0.1/24", "dev", found)
    with pytest.raises(CheckFailed, match=r"does not have the gateway address 10\.1\.0\.1/24"):
        a.check()
    for attached in (a, again, other):
        attached.delete()
    assert lab.host.links() == set()


def test_the_admins_bridge_gets_no_sub_interface(lab: Lab) -> None:
    lab.host.run("ip", "link", "add", "br0", "up", "type", "bridge", "vlan_filtering", "1")
    wanted = vlan(5, gateway=True)
    commands = []
    for _ in range(2):
        with pytest.raises(DataplaneError) as error:
            lab.attach(wanted, "10.1.0.2/24>10.1.0.1")
        command = error.value.details.partition("with: ")[2]
        commands.append(command)
        lab.host.run("sh", "-c", command)
    assert commands[0].startswith("ip link add link br0 name br0.5 up type vlan id 5")
    assert commands[1] == "ip address add 10.1.0.1/24 dev br0.5"
    a = lab.attach(wanted, "10.1.0.2/24>10.1.0.1")
    assert a.container.ping("10.1.0.1")
    a.check()
    a.delete()
    assert lab.host.links() == {"br0", "br0.5"}


def test_our_plain_bridge_learns_to_filter(lab: Lab) -> None:
    a, b = lab.attach(vlan(None), "10.1.0.2/24"), lab.attach(vlan(None), "10.1.0.3/24")
    lab.attach(vlan(5))
    assert a.container.ping("10.1.0.3")
    b.check()


def test_an_admins_vlan_upon_our_bridge_keeps_it(lab: Lab) -> None:
    a = lab.attach(vlan(5))
    lab.host.run("ip", "link", "add", "link", "br0", "name", "mine", "type", "vlan", "id", "9")
    a.delete()
    assert lab.host.links() == {"br0", "mine"}


@pytest.mark.parametrize(
    "damage",
    [
        "ip link set {} nomaster",
        "ip link set {} down",
        "bridge vlan del dev {} vid 5",
        "bridge vlan del dev {} vid 12",
        "bridge vlan add dev {} vid 6 pvid untagged",
        "ip link delete br0",
        "ip link delete br0.5",
        "ip link set br0.5 down",
        "ip address flush dev br0.5",
        "bridge vlan del dev br0 vid 5 self",
    ],
)
def test_a_port_and_its_gateway_are_restored(lab: Lab, damage: str) -> None:
    wanted = vlan(5, gateway=True, trunk=(Trunk(min_id=10, max_id=12),))
    addresses = ("10.1.0.2/24>10.1.0.1", "10.1.0.3/24>10.1.0.1")
    both = [lab.attach(wanted, address) for address in addresses]
    other = lab.attach(vlan(6), "10.1.0.4/24")
    lab.host.run(*damage.format(both[0].port.name).split())
    with pytest.raises(CheckFailed):
        both[0].check()
    for each in (*both, other):
        with ExitStack() as undo:
            lab.call(lab.engine.restore, each.attachment, each.conf, each.port, undo)
            undo.pop_all()
        each.check()
    trunk: dict[int, set[str]] = {10: set(), 11: set(), 12: set()}
    assert [members(lab, each.port.name) for each in both] == [{5: OWN, **trunk}] * 2
    assert both[0].container.ping("10.1.0.3")
    assert both[0].container.ping("10.1.0.1")
    assert not both[0].container.ping("10.1.0.4", timeout=0.5)
    for each in (*both, other):
        each.delete()
    assert lab.host.links() == set()


def tagged(attached: Attached, number: int, address: str) -> None:
    name = f"eth0.{number}"
    kind = ("type", "vlan", "id", str(number))
    attached.container.run("ip", "link", "add", "link", "eth0", "name", name, "up", *kind)
    attached.container.run("ip", "address", "add", address, "dev", name)


def test_the_admins_bridge_is_enough_where_it_filters(lab: Lab) -> None:
    lab.host.run("ip", "link", "add", "br0", "up", "type", "bridge", "vlan_filtering", "1")
    a, b = lab.attach(vlan(5), "10.1.0.2/24"), lab.attach(vlan(5), "10.1.0.3/24")
    assert a.container.ping("10.1.0.3")
    b.check()


def test_limits_need_traffic_control(lab: Lab) -> None:
    """This test is here because this kernel lacks the modules."""
    with pytest.raises(DataplaneError, match="lacks what bandwidth needs") as refused:
        lab.attach(vlan(None), bandwidth=Bandwidth(ingress_rate=8_000_000))
    assert "modprobe -a sch_tbf" in refused.value.details
    assert lab.host.links() == set()
