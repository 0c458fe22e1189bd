"""Restoration of interfaces that VPP has lost, with the same name, MAC address and socket."""

from __future__ import annotations

import itertools
import os
import select
from contextlib import ExitStack, closing
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any

import pytest

from lab.node import poll
from lab.vpp import api_dir
from lab.vpp_lab import Attached, Guest, VppLab, conf, route
from userspace_cni.api import Bandwidth, attachment_id
from userspace_cni.cni.errors import CheckFailed, DataplaneUnavailable
from userspace_cni.cni.request import Caller, Request, Target
from userspace_cni.config.settings import DaemonSettings, Settings
from userspace_cni.daemon.observer import Observer
from userspace_cni.daemon.reconcile import Reconciler
from userspace_cni.runtime import Runtime
from userspace_cni_vpp.sections import BridgeSection, InterfaceSection, MemifSection, VhostSection

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from lab.netns import Namespace
    from userspace_cni_vpp.switch import Switch

BRIDGE = {"bridgeName": "blue", "gateway": True, "vlanId": 9}
NETWORKS: list[dict[str, Any]] = [
    {"iftype": "memif", "netType": "bridge", "bridge": BRIDGE},
    {"iftype": "memif", "netType": "bridge", "bridge": BRIDGE, "memif": {"socket": "abstract"}},
    {"iftype": "memif", "netType": "interface", "memif": {"mode": "ip"}, "interface": {"vrf": 7}},
    {
        "iftype": "vhostuser",
        "netType": "interface",
        "interface": {"vrf": 8},
        "vhost": {"mode": "server"},
    },
    {"iftype": "veth", "netType": "bridge", "bridge": {"bridgeName": "blue"}},
]


class Node:
    """The runtime as used by the daemon."""

    def __init__(self, lab: VppLab) -> None:
        self.lab = lab
        engine = {"api_socket": str(lab.vpp.path), "api_dir": api_dir(), "timeout": 5}
        self.settings = Settings(
            state_dir=lab.dir / "state", run_dir=lab.dir / "run", engines={"vpp": engine}
        )
        self.runtime = Runtime(self.settings)

    def close(self) -> None:
        self.runtime.close()

    def request(
        self, command: str, host: Mapping[str, Any], name: str, container: Namespace, ifname: str
    ) -> Request:
        ipam = {
            "type": "host-local",
            "dataDir": str(self.lab.dir / "leases"),
            "ranges": [[{"subnet": "10.1.0.0/24"}]],
        }
        network = f"net-{host['iftype']}-{host['netType']}"
        config = {
            "cniVersion": "1.0.0",
            "name": network,
            "type": "userspace",
            "sharedDir": str(self.lab.dir / "s"),
            "host": {"engine": "vpp", **host},
            "ipam": ipam,
        }
        target = Target(
            network=network, container_id=name, ifname=ifname, netns=container.path, config=config
        )
        plugins = "/usr/lib/cni"
        environ = {"PATH": "/usr/bin:/bin", "CNI_PATH": plugins}
        caller = Caller(path=(plugins,), environ=environ)
        return Request(command=command, target=target, caller=caller)

    def serve(self, request: Request) -> Any:
        """Serve *request* as the one-process plugin does."""
        with closing(Runtime(self.settings)) as runtime:
            return self.lab.call(runtime.serve, request)

    def restore(self, request: Request) -> bool:
        target = request.target
        id_ = attachment_id(target.network, target.container_id, target.ifname)
        return bool(self.lab.call(self.runtime.restore, id_))


@pytest.fixture
def node(lab: VppLab) -> Iterator[Node]:
    with closing(Node(lab)) as node:
        yield node


def test_fifty_attachments_outlive_a_restart(lab: VppLab, node: Node) -> None:
    containers = [lab.container() for _ in range(10)]
    requests = [
        node.request("ADD", host, f"c{number}", containers[number % 10], f"eth{number}")
        for number, host in zip(range(50), itertools.cycle(NETWORKS), strict=False)
    ]
    for request in requests:
        node.serve(request)
    before = {port.name: (port.tag, port.mac, port.vlan, port.mtu) for port in lab.switch.ports()}
    inside = [container.run("ip", "-o", "link") for container in containers]
    sockets = sorted(path.name for path in (lab.dir / "s").glob("*/*.sock"))
    assert not any(node.restore(request) for request in requests)
    lab.vpp.kill()
    with pytest.raises(DataplaneUnavailable):
        node.restore(requests[0])
    lab.call(lab.vpp.start)
    assert all(node.restore(request) for request in requests)
    after = {port.name: (port.tag, port.mac, port.vlan, port.mtu) for port in lab.switch.ports()}
    assert after == before
    assert [container.run("ip", "-o", "link") for container in containers] == inside
    assert sorted(path.name for path in (lab.dir / "s").glob("*/*.sock")) == sockets
    assert {path.stat().st_mode & 0o777 for path in (lab.dir / "s").glob("*/*.sock")} == {0o660}
    assert not any(node.restore(request) for request in requests)
    for number, request in enumerate(requests):
        host = NETWORKS[number % len(NETWORKS)]
        node.serve(
            node.request(
                "DEL",
                host,
                request.target.container_id,
                containers[number % 10],
                request.target.ifname,
            )
        )
    lab.assert_clean()


@pytest.fixture
def reconciler(node: Node) -> Iterator[Reconciler]:
    """The daemon's reconciler, which has finished its first round and waits."""
    stop = Event()
    unasked = DaemonSettings(watch_interval=3600, networks=node.settings.state_dir / "none")
    reconciler = Reconciler(node.runtime, unasked, Observer(), stop, lambda: None)
    reconciler.start()
    poll(lambda: reconciler.has_looked, "its first look")
    yield reconciler
    stop.set()
    reconciler.end()


def test_a_restart_before_the_first_question_is_noticed(
    lab: VppLab, node: Node, reconciler: Reconciler
) -> None:
    host = NETWORKS[0]
    requests = [node.request("ADD", host, f"c{n}", lab.container(), "eth0") for n in range(3)]
    for request in requests:
        lab.call(node.runtime.serve, request)
    before = {port.name for port in lab.switch.ports()}
    lab.restart()
    reconciler.notice(requests[0].target.config["host"])
    poll(lambda: {port.name for port in lab.switch.ports()} == before, "all is back")
    poll(lambda: reconciler.dataplanes == {"vpp": "up"}, "it is up")
    # The next restart is noticed only through the broken connection.
    lab.restart()
    poll(lambda: {port.name for port in lab.switch.ports()} == before, "all is back again")


def test_a_lifeline_breaks_with_the_connection(lab: VppLab) -> None:
    host = conf("memif", "none")
    for end in (lab.vpp.kill, lab.engine.close):
        lifeline = lab.call(lab.engine.lifeline, host)
        assert lifeline is not None
        waiting = select.poll()
        waiting.register(*lifeline)
        lab.call(lab.engine.generation, host)
        lab.engine.attachments("blue", host)
        assert not waiting.poll(0)
        end()
        assert waiting.poll(20_000)
        os.close(lifeline.descriptor)
        lab.restart()


def test_containers_with_a_kernel_speak_again(traffic_lab: VppLab) -> None:
    lab = traffic_lab
    host = {"iftype": "veth", "netType": "bridge", "bridge": {"bridgeName": "blue"}}
    one, two = lab.container(), lab.container()
    with closing(Node(lab)) as node:
        requests = [
            node.request("ADD", host, f"c{number}", c, "eth0")
            for number, c in enumerate((one, two))
        ]
        _, (peer,) = (
            [ip["address"].partition("/")[0] for ip in node.serve(request)["ips"]]
            for request in requests
        )
        assert one.ping(peer)
        lab.restart()
        assert [node.restore(request) for request in requests] == [True, True]
        assert one.ping(peer)


@pytest.mark.parametrize(
    "memif",
    [MemifSection(), MemifSection(socket="abstract"), MemifSection(role="slave")],
    ids=["path", "abstract", "client"],
)
def test_containers_with_a_vpp_speak_again(traffic_lab: VppLab, memif: MemifSection) -> None:
    lab = traffic_lab
    host = conf("memif", "bridge", bridge=BridgeSection(bridge_id=4), memif=memif)
    a, b = lab.attach(host, "10.5.0.2/24"), lab.attach(host, "10.5.0.3/24")
    one, _ = a.guest(), b.guest()
    _until_linked(lab)
    assert one.vpp.ping("10.5.0.3")
    lab.restart()
    for each in (a, b):
        _restore(each)
    _until_linked(lab)
    assert one.vpp.ping("10.5.0.3")


@pytest.mark.parametrize(
    ("host", "same"),
    [
        (conf("memif", "bridge", bridge=BridgeSection(bridge_id=4, vlan_id=7)), True),
        (
            conf(
                "vhostuser",
                "bridge",
                bridge=BridgeSection(bridge_id=4),
                vhost=VhostSection(mode="server"),
            ),
            True,
        ),
        (conf("memif", "interface", interface=InterfaceSection(vrf=3)), False),
    ],
)
def test_what_somebody_changed_by_hand(lab: VppLab, host: Any, same: bool) -> None:
    a = lab.attach(host, "10.1.0.2/24>10.1.0.1")
    index = _index(a)
    changes: list[tuple[str, Any]] = [
        ("sw_interface_set_flags", {"flags": 0}),
        ("sw_interface_set_mtu", {"mtu": [1400] * 4}),
    ]
    if same:
        changes.append(("sw_interface_set_l2_bridge", {"bd_id": 4}))
    for request, fields in changes:
        key = "rx_sw_if_index" if "bd_id" in fields else "sw_if_index"
        lab.switch.api.call(request, **(fields | {key: _index(a)}))
        with pytest.raises(CheckFailed):
            a.check()
        _restore(a)
        # The repaired interface keeps its index and therefore its peer.
        assert not same or _index(a) == index
    lab.switch.remove(lab.switch.port(_index(a)))
    _restore(a)
    Path(a.port.socket).unlink()
    with pytest.raises(CheckFailed, match="socket"):
        a.check()
    _restore(a)
    assert Path(a.port.socket).is_socket()
    a.delete()
    lab.assert_clean()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s, _, d: _flags(s, d, 1), "learn"),
        (lambda s, _, d: _flags(s, d, 6), "forward, flood"),
        (lambda s, _, d: s.api.call("sw_interface_set_flags", sw_if_index=_bvi(s, d)), "is down"),
        (lambda s, _, d: s.set_mac(_bvi(s, d), b"\2abcde"), "MAC address"),
        (lambda s, i, _: s.set_mac(i, b"\2abcde"), "MAC address"),
        (lambda s, i, _: s.api.call("l2_interface_efp_filter", sw_if_index=i), "filter"),
    ],
    ids=["learn", "forward-flood", "bvi-down", "bvi-mac", "mac", "vlan-filter"],
)
def test_what_somebody_changed_around_a_port(lab: VppLab, change: Any, words: str) -> None:
    section = BridgeSection(bridge_name="blue", vlan_id=7, gateway=True)
    a = lab.attach(conf("memif", "bridge", bridge=section), "10.1.0.2/24>10.1.0.1")
    a.check()
    index = _index(a)
    change(lab.switch, index, section.domain)
    with pytest.raises(CheckFailed, match=words):
        a.check()
    _restore(a)
    assert _index(a) == index
    a.delete()
    lab.assert_clean()


def test_a_limit_that_was_taken_away_is_put_back(lab: VppLab) -> None:
    limits = Bandwidth(ingress_rate=8_000_000, egress_rate=8_000_000)
    a = lab.attach_kernel(conf("veth"), bandwidth=limits)
    index = _index(a)
    for queue in ("root", "ingress"):
        a.container.run("tc", "qdisc", "del", "dev", "eth0", queue)
        with pytest.raises(CheckFailed, match="has lost the limit"):
            a.check()
        _restore(a)
        a.check()
    assert _index(a) == index
    a.delete()
    lab.assert_clean()


def test_a_bridge_domain_of_somebody_else_stays_as_it_is(lab: VppLab) -> None:
    lab.switch.create_domain(9, "theirs")
    _flags(lab.switch, 9, 1)
    a = lab.attach(conf("memif", "bridge", bridge=BridgeSection(bridge_id=9)))
    a.check()
    lab.switch.set_mtu(_index(a), 1400)
    _restore(a)
    domain = lab.switch.domain(9)
    assert domain is not None
    assert domain.off == ("learn",)


@pytest.mark.parametrize("vrf", [0, 3])
@pytest.mark.parametrize("what", ["down", "mac"])
def test_what_somebody_changed_of_a_gateway(lab: VppLab, what: str, vrf: int) -> None:
    host = conf("memif", "interface", interface=InterfaceSection(vrf=vrf))
    a = lab.attach(host, "10.1.0.2/24>10.1.0.1")
    lender = lab.switch.borrowers()[_index(a)]
    if what == "down":
        lab.switch.api.call("sw_interface_set_flags", sw_if_index=lender, flags=0)
    else:
        lab.switch.set_mac(_index(a), b"\2abcde")
    with pytest.raises(CheckFailed, match="is down" if what == "down" else "MAC"):
        a.check()
    _restore(a)
    a.delete()
    lab.assert_clean()


def _flags(switch: Switch, domain: int, off: int) -> None:
    switch.api.call("bridge_flags", bd_id=domain, is_set=False, flags=off)


def _bvi(switch: Switch, number: int) -> int:
    domain = switch.domain(number)
    assert domain is not None
    assert domain.bvi is not None
    return domain.bvi


def test_the_applications_own_socket_is_not_missed(lab: VppLab) -> None:
    """If VPP is the client, the application may create its socket at any time."""
    host = conf("vhostuser", "none")
    a = lab.attach(host)
    lab.restart()
    _restore(a)
    assert not Path(a.port.socket).exists()


def test_a_restore_that_breaks_off_is_done_again(sim: VppLab) -> None:
    host = conf("memif", "interface", interface=InterfaceSection(vrf=3))
    a = sim.attach(host, "10.1.0.2/24>10.1.0.1")
    for message in itertools.count(1):
        sim.restart()
        sim.vpp.drop_at(message)
        with ExitStack() as undo:
            try:
                sim.call(sim.engine.restore, a.attachment, a.conf, a.port, undo)
            except DataplaneUnavailable:
                pass
            else:
                undo.pop_all()
                break
        _restore(a)
    sim.restart()  # drop_at() has not come to pass
    assert message > 10


def test_the_vpp_in_a_container_is_configured_anew(lab: VppLab) -> None:
    host = conf("memif", "bridge", bridge=BridgeSection(bridge_id=4))
    a = lab.attach(host, "10.4.0.2/24>10.4.0.1", routes=(route("0.0.0.0/0"),))
    guest = a.guest()
    guest.vpp.kill()
    with pytest.raises(DataplaneUnavailable):
        guest.call("check")
    a.container.call(guest.vpp.start)
    with pytest.raises(CheckFailed):
        guest.call("check")
    for _ in range(2):
        guest.call("add")
        guest.call("check")
        assert len(_guest_ports(guest)) == 1


def test_the_container_gives_its_interface_up(lab: VppLab) -> None:
    host = conf("memif", "interface")
    a = lab.attach(host, "10.4.0.2/24>10.4.0.1", routes=(route("0.0.0.0/0"),))
    guest = a.guest()
    switch = guest.switch
    theirs = switch.create_loopback(bytes(6))
    switch.tag(theirs, "theirs")
    before = _routes(guest)
    guest.call("check")
    for _ in range(2):
        guest.call("delete")
        assert [port.tag for port in _guest_ports(guest)] == ["theirs"]
        assert not [s for s in switch.api.dump("memif_socket_filename_dump") if s.socket_id]
        assert _routes(guest) < before
        assert not any(r.startswith(("10.4.", "0.0.0.0/0 via")) for r in _routes(guest))
    with pytest.raises(CheckFailed):
        guest.call("check")


def _routes(guest: Guest) -> set[str]:
    found = guest.switch.api.dump("ip_route_dump", table={"table_id": 0, "is_ip6": False})
    return {
        f"{'.'.join(map(str, d.route.prefix.address.un.ip4))}/{d.route.prefix.len} via {p.type}"
        for d in found
        for p in d.route.paths
        if p.type != 2
    }


def _guest_ports(guest: Guest) -> list[Any]:
    return [port for port in guest.switch.ports() if port.index]


def _until_linked(lab: VppLab) -> None:
    poll(lambda: all(port.link for port in lab.switch.ports(name="memif")), "the links")


def _restore(a: Attached) -> None:
    with ExitStack() as undo:
        name = a.port.name
        a.port = a.lab.call(a.lab.engine.restore, a.attachment, a.conf, a.port, undo)
        undo.pop_all()
    assert a.port.name == name
    a.check()


def _index(a: Attached) -> int:
    found = a.lab.switch.named(a.port.name)
    assert found is not None
    return found.index
