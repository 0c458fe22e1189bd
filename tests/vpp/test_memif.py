from __future__ import annotations

import socket
import stat
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from lab.contract import host_engine_life, host_engine_undo
from lab.vpp_lab import VppLab, conf, ips, route
from userspace_cni.api import Memif
from userspace_cni.cni.errors import CheckFailed, CniError, DataplaneError, InvalidConfig
from userspace_cni.handover import ContainerDirectory
from userspace_cni_vpp import tags
from userspace_cni_vpp.sections import BridgeSection, InterfaceSection, MemifSection

if TYPE_CHECKING:
    from userspace_cni.api import EngineConf

BRIDGED = conf("memif", "bridge", bridge=BridgeSection(bridge_id=4))
ABSTRACT = conf(
    "memif", "bridge", bridge=BridgeSection(bridge_id=4), memif=MemifSection(socket="abstract")
)
ROUTED = conf("memif", "interface")
IP_MODE = conf("memif", "interface", memif=MemifSection(mode="ip"))
CLIENT = conf("memif", "none", memif=MemifSection(role="slave"))


@pytest.mark.parametrize(
    "host", [BRIDGED, ABSTRACT, ROUTED, IP_MODE, CLIENT, conf("memif", "none")]
)
def test_life_and_undo(lab: VppLab, host: EngineConf) -> None:
    for act in (host_engine_life, host_engine_undo):
        attachment = lab.attachment(lab.container(), ips=ips("10.1.0.2/24>10.1.0.1"))
        act(lab.engine, attachment, host, lab.call)
        attachment.directory.withdraw("eth0", attachment.id)  # type: ignore[attr-defined]
        lab.assert_clean()


def test_what_the_container_is_told(lab: VppLab) -> None:
    section = MemifSection(
        id=3, secret="s3cret", ring_size=512, rx_queues=2, tx_queues=1, zero_copy=True
    )
    a = lab.attach(conf("memif", "none", memif=section))
    memif = a.port.port
    assert isinstance(memif, Memif)
    assert (memif.role, memif.id, memif.secret) == ("client", 3, "s3cret")
    assert (memif.ring_size, memif.rx_queues, memif.tx_queues) == (512, 1, 2)
    assert "s3cret" not in repr(a.port)
    path = Path(memif.socket)
    assert path.name == "eth0.sock"
    assert stat.S_IMODE(path.stat().st_mode) == 0o660
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o750
    a.check()
    a.delete()
    assert not path.exists()
    lab.assert_clean()


def test_interface_is_tagged_up_and_has_its_own_mac(lab: VppLab) -> None:
    a = lab.attach(BRIDGED, mtu=3000, mac="02:00:00:00:00:aa")
    found = lab.switch.tagged(tags.of(a.attachment))
    assert found is not None
    assert found.up
    assert (found.mtu, found.mac) == (3000, tags.host_mac(a.id).hex(":"))
    assert (a.port.mac, a.port.mtu) == ("02:00:00:00:00:aa", 3000)
    assert len(found.tag) <= 63
    assert found.name == a.port.name == a.port.interfaces[0].name


def test_abstract_socket_needs_no_file(lab: VppLab) -> None:
    a = lab.attach(ABSTRACT)
    assert isinstance(a.port.port, Memif)
    assert a.port.port.socket.startswith("@")
    assert list(Path(a.attachment.directory.path).iterdir()) == []
    a.check()
    a.delete()
    lab.assert_clean()


def test_a_file_in_the_way_is_not_touched(lab: VppLab) -> None:
    attachment = lab.attachment(lab.container())
    directory = attachment.directory
    directory.provide()
    taken = Path(directory.path, "eth0.sock")
    taken.write_text("precious")
    with pytest.raises(CniError, match="exists, and is no socket"):
        lab.add(attachment, BRIDGED)
    assert taken.read_text() == "precious"
    taken.unlink()
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with listener:
        listener.bind(str(taken))
        listener.listen()
        with pytest.raises(CniError, match="somebody listens"):
            lab.add(attachment, BRIDGED)
    # Nobody listens any more.
    lab.add(attachment, BRIDGED)


@pytest.mark.parametrize("tag", ["theirs", ""])
@pytest.mark.parametrize("host", [ABSTRACT, CLIENT], ids=["abstract", "client"])
def test_a_memif_of_somebody_else_on_the_socket_stays(
    lab: VppLab, host: EngineConf, tag: str
) -> None:
    probe = lab.attachment(lab.container())
    switch = lab.switch
    made = lab.add(probe, host)
    taken = switch.named(made.name)
    assert taken is not None
    switch.tag(taken.index, tag or "x")
    if not tag:
        switch.api.call("sw_interface_tag_add_del", is_add=False, sw_if_index=taken.index, tag="")
    with pytest.raises(DataplaneError, match="already has a memif on the socket") as caught:
        lab.call(lab.engine.add, probe, host, ExitStack())
    assert made.name in caught.value.msg
    assert tag in caught.value.msg
    assert switch.named(made.name) is not None


def test_two_attachments_do_not_share_a_socket(lab: VppLab) -> None:
    host = conf("memif", "none", memif=MemifSection(socketfile="shared.sock"))
    first = lab.attach(host, container_id="both")
    with pytest.raises(CniError, match="somebody listens on it") as caught:
        lab.attach(host, container_id="both", ifname="eth1")
    assert "socketfile" in caught.value.details
    first.check()


def test_a_long_path_gets_a_short_name(lab: VppLab) -> None:
    directory = ContainerDirectory(lab.dir / "s", "c" * 120, lab.dir / "views")
    a = lab.attach(conf("memif", "none"), container_id="c" * 120, directory=directory)
    sockets = lab.switch.api.dump("memif_socket_filename_dump")
    (found,) = [s.socket_filename for s in sockets if s.socket_id]
    assert len(found) <= 107
    assert isinstance(a.port.port, Memif)
    assert len(a.port.port.socket) > 107
    assert Path(a.port.port.socket).is_socket()
    a.check()
    a.delete()
    directory.discard()
    lab.assert_clean()


def test_check_sees_what_has_changed(lab: VppLab) -> None:
    a = lab.attach(BRIDGED)
    index = _index(lab, a.id)
    switch = lab.switch
    switch.api.call("sw_interface_set_flags", sw_if_index=index, flags=0)
    with pytest.raises(CheckFailed, match="down"):
        a.check()
    switch.up(index)
    switch.set_mtu(index, 1400)
    with pytest.raises(CheckFailed, match="MTU"):
        a.check()
    switch.set_mtu(index, 1500)
    switch.api.call("sw_interface_set_l2_bridge", rx_sw_if_index=index, bd_id=4, enable=False)
    with pytest.raises(CheckFailed, match="bridge domain 4"):
        a.check()
    switch.join(index, 4)
    a.check()
    switch.set_vlan(index, 7)
    with pytest.raises(CheckFailed, match="VLAN"):
        a.check()
    switch.tag(index, "somebody else's")
    with pytest.raises(CheckFailed, match="tag"):
        a.check()


def test_what_is_not_ours_stays(lab: VppLab) -> None:
    switch = lab.switch
    foreign = switch.create_loopback(bytes(6))
    switch.tag(foreign, "theirs")
    switch.create_domain(9, "theirs")
    section = BridgeSection(bridge_name="9")
    a = lab.attach(conf("memif", "bridge", bridge=section))
    a.delete()
    assert lab.leftovers()["bridge domains"] == [9]
    assert lab.tags() == ["theirs"]


def test_vlan_and_bvi(lab: VppLab) -> None:
    section = BridgeSection(bridge_name="green", vlan_id=100, gateway=True)
    host = conf("memif", "bridge", bridge=section)
    a = lab.attach(host, "10.2.0.2/24>10.2.0.1", "fd00:2::2/64>fd00:2::1")
    b = lab.attach(host, "10.2.0.3/24>10.2.0.1", "fd00:2::3/64>fd00:2::1")
    a.check()
    b.check()
    assert lab.switch.port(_index(lab, a.id)).vlan == 100
    assert section.domain is not None
    domain = lab.switch.domain(section.domain)
    assert domain is not None
    assert domain.bvi is not None
    assert len(domain.members) == 3
    a.delete()
    b.check()
    b.delete()
    lab.assert_clean()


def test_routed_port_and_its_table(lab: VppLab) -> None:
    section = InterfaceSection(vrf=7)
    host = conf("memif", "interface", interface=section)
    dual = "10.1.0.2/24>10.1.0.1", "fd00:1::2/64>fd00:1::1"
    a = lab.attach(host, *dual)
    b = lab.attach(host, "10.1.0.3/24>10.1.0.1", "fd00:1::3/64>fd00:1::1")
    other = lab.attach(ROUTED, *dual)  # the same addresses, in another table
    for each in (a, b, other):
        each.check()
        assert each.port.point_to_point
    assert len([tag for tag in lab.tags() if "gateway" in tag]) == 2
    with pytest.raises(DataplaneError, match=r"10\.1\.0\.2"):
        lab.attach(host, *dual)
    a.check()
    a.delete()
    b.check()
    b.delete()
    assert len([tag for tag in lab.tags() if "gateway" in tag]) == 1
    other.check()
    other.delete()
    lab.assert_clean()


def test_routed_port_with_addresses_of_its_own(lab: VppLab) -> None:
    section = InterfaceSection(addresses=("10.3.0.1/24", "fd00:3::1/64"))
    host = conf("memif", "interface", interface=section)
    a = lab.attach(host, "10.3.0.2/24", "fd00:3::2/64")
    a.check()
    assert len(lab.switch.addresses(_index(lab, a.id))) == 2
    a.delete()
    lab.assert_clean()


def test_container_side(lab: VppLab) -> None:
    a = lab.attach(
        BRIDGED, "10.4.0.2/24>10.4.0.1", "fd00:4::2/64>fd00:4::1",
        routes=(route("0.0.0.0/0"), route("172.16.0.0/12", "10.4.0.9")), mtu=2000,
    )  # fmt: skip
    guest = a.guest()
    guest.call("check")
    (port,) = [p for p in guest.switch.ports() if p.index]
    assert (port.mac, port.mtu, port.up) == (a.port.mac, 2000, True)
    memif = guest.switch.memif(port.index)
    assert memif is not None
    assert not memif.server
    guest.call("add")  # again: replaces, as after a restart of the agent
    assert len([p for p in guest.switch.ports() if p.index]) == 1
    guest.call("check")
    guest.switch.api.call("sw_interface_set_flags", sw_if_index=port.index, flags=0)
    with pytest.raises(CheckFailed, match="state"):
        guest.call("check")


def test_container_side_in_a_bridge(lab: VppLab) -> None:
    a = lab.attach(BRIDGED)
    guest = a.guest("bridge", bridge=BridgeSection(bridge_name="inner"))
    guest.call("check")
    domain = BridgeSection(bridge_name="inner").domain
    assert domain is not None
    found = guest.switch.domain(domain)
    assert found is not None
    assert len(found.members) == 1


def test_container_must_agree(lab: VppLab) -> None:
    a = lab.attach(BRIDGED)
    with pytest.raises(InvalidConfig, match="role"):
        a.handoff(memif=MemifSection(role="master"))
    with pytest.raises(InvalidConfig, match="mode"):
        a.handoff(memif=MemifSection(role="slave", mode="ip"))
    a.handoff(memif=MemifSection(role="slave"))


def _index(lab: VppLab, id_: str) -> int:
    (found,) = lab.switch.ports(containing=[id_.encode()])
    return found.index
