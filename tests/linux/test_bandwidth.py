"""Rate limits of veth, macvlan and tap in both directions, measured with real traffic."""

from __future__ import annotations

import fcntl
import os
import select
import socket
import struct
import time
from typing import TYPE_CHECKING

import pytest

from lab.netns import transfer
from linux.conftest import Attached, conf
from userspace_cni.api import Bandwidth
from userspace_cni.cni.errors import CheckFailed, InvalidConfig
from userspace_cni_linux.sections import BridgeSection, MacvlanSection

if TYPE_CHECKING:
    from linux.conftest import Lab

RATE = 8_000_000  # bits per second: a million bytes
BURST = 400_000  # bits
LIMITS = {
    "ingress": Bandwidth(ingress_rate=RATE, ingress_burst=BURST),
    "egress": Bandwidth(egress_rate=RATE, egress_burst=BURST),
}
BOTH = Bandwidth(ingress_rate=RATE, egress_rate=2 * RATE)
BRIDGED = conf("veth", "bridge", bridge=BridgeSection(bridge_name="br0"))
WAYS = {
    "bridge": BRIDGED,
    "routed": conf("veth", "interface"),
    "alone": conf("veth", "none"),
    "tap": conf("tap", "none"),
    "macvlan": conf("macvlan", "none", macvlan=MacvlanSection(master="master0")),
}
MEGABYTE = 1_000_000
_SO_RCVBUFFORCE = 33


def _sent(server: Attached, client: Attached, address: str) -> float:
    """Send a megabyte by TCP; return how many seconds it took."""
    began = time.monotonic()
    assert transfer(server.container, client.container, address, MEGABYTE) == MEGABYTE
    return time.monotonic() - began


def _least() -> float:
    """Return how many seconds a megabyte takes at least; the burst passes at once."""
    return 0.95 * (MEGABYTE * 8 - BURST) / RATE


def _master(lab: Lab) -> None:
    lab.host.run("ip", "link", "add", "master0", "up", "type", "veth", "peer", "name", "far0")
    lab.host.run("ip", "link", "set", "far0", "up")


@pytest.mark.parametrize("direction", LIMITS)
@pytest.mark.parametrize("way", ["bridge", "routed", "macvlan"])
def test_one_direction_is_limited(lab: Lab, way: str, direction: str) -> None:
    _master(lab)
    addresses = ["10.1.0.2/24>10.1.0.1", "10.1.0.3/24>10.1.0.1"]
    limited = lab.attach(WAYS[way], addresses[0], bandwidth=LIMITS[direction])
    other = lab.attach(WAYS[way], addresses[1])
    limited.check()
    if direction == "ingress":
        assert _sent(limited, other, "10.1.0.2") > _least()
    else:
        assert _sent(other, limited, "10.1.0.3") > _least()
    # tc(8) shows one limit and none in the other direction.
    shown = lab.host.run("tc", "qdisc") + limited.container.run("tc", "qdisc")
    assert shown.count("rate 8Mbit") == 1
    before = {"master0", "far0"}
    for each in (limited, other):
        each.delete()
        assert each.container.links() == set()
    assert lab.host.links() == before


@pytest.mark.parametrize("way", WAYS)
def test_limits_end_with_the_attachment(lab: Lab, way: str) -> None:
    """Both in a container that still exists and after its end."""
    _master(lab)
    before = lab.host.links()
    for gone in (False, True):
        attached = lab.attach(WAYS[way], "10.1.0.2/24>10.1.0.1", bandwidth=BOTH)
        attached.check()
        if gone:
            attached.container.close()
            lab.call(lab.engine.delete, attached.attachment.id, attached.conf, None)
        else:
            attached.delete()
            assert attached.container.links() == set()
        assert lab.host.links() == before


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "removed", ["qdisc del dev {} root", "qdisc del dev {} ingress", "qdisc del dev {helper} root"]
)
def test_a_limit_that_is_lost_is_seen_and_put_back(lab: Lab, way: str, removed: str) -> None:
    _master(lab)
    attached = lab.attach(WAYS[way], "10.1.0.2/24>10.1.0.1", bandwidth=BOTH)
    attached.check()
    where, name = attached.container, "eth0"
    if attached.conf.iftype == "veth":
        where, name = lab.host, attached.port.name
    helper = f"ul{attached.attachment.id[:13]}"
    where.run("tc", *removed.format(name, helper=helper).split())
    with pytest.raises(CheckFailed, match="has lost the limit"):
        attached.check()
    undo = lab.stack
    lab.call(lab.engine.restore, attached.attachment, attached.conf, attached.port, undo)
    attached.check()


def test_a_container_cannot_lift_the_limits_of_its_veth(lab: Lab) -> None:
    attached = lab.attach(BRIDGED, bandwidth=BOTH)
    assert attached.container.links() == {"eth0"}
    assert "tbf" not in attached.container.run("tc", "qdisc")
    attached.delete()


@pytest.mark.parametrize(
    ("limits", "path"),
    [
        (Bandwidth(ingress_rate=7), "bandwidth.ingressRate"),
        (Bandwidth(egress_rate=40_000_000_000), "bandwidth.egressRate"),
        (Bandwidth(egress_rate=8_000, egress_burst=8_000_000), "bandwidth.egressRate"),
    ],
)
@pytest.mark.parametrize("way", ["bridge", "tap"])
def test_limits_beyond_the_kernels_are_refused_and_nothing_is_left(
    lab: Lab, way: str, limits: Bandwidth, path: str
) -> None:
    container = lab.container()
    with pytest.raises(InvalidConfig, match=path):
        lab.attach(WAYS[way], container=container, bandwidth=limits)
    assert lab.host.links() == set()
    assert container.links() == set()


# -- a tap used by an application


def _application(attached: Attached) -> int:
    """Open the tap as an application does."""

    def opened() -> int:
        tap = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        fcntl.ioctl(tap, 0x400454CA, struct.pack("16sH22x", b"eth0", 0x1002))
        return tap

    return attached.container.call(opened)


def _frame(attached: Attached, payload: int) -> bytes:
    """Return a UDP packet from the application to the container's port 7000."""
    mac = bytes.fromhex(attached.handoff.mac.replace(":", ""))
    udp = struct.pack("!HHHH", 7000, 7000, 8 + payload, 0) + bytes(payload)
    ip = struct.pack(
        "!BBHHHBBH4s4s",
        *(0x45, 0, 20 + len(udp), 0, 0, 64, 17, 0),
        socket.inet_aton("10.1.0.9"),
        socket.inet_aton("10.1.0.2"),
    )
    total = sum(struct.unpack("!10H", ip))
    total = ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF
    ip = ip[:10] + struct.pack("!H", total) + ip[12:]
    return mac + b"\x02\0\0\0\0\x09\x08\0" + ip + udp


@pytest.mark.parametrize("direction", LIMITS)
def test_a_tap_is_limited(lab: Lab, direction: str) -> None:
    attached = lab.attach(WAYS["tap"], "10.1.0.2/24", bandwidth=LIMITS[direction])
    tap = _application(attached)

    def bound() -> socket.socket:
        there = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        there.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 1 << 24)
        there.bind(("", 7000))
        there.setblocking(False)
        return there

    try:
        with attached.container.call(bound) as there:
            command = "neigh replace 10.1.0.9 lladdr 02:00:00:00:00:09 dev eth0"
            attached.container.run("ip", *command.split())
            frame = _frame(attached, 1000)
            arrived, began = 0, time.monotonic()
            while (now := time.monotonic()) - began < 1:
                # Offer far more than the limit. Neither end blocks for long.
                source = tap if direction == "ingress" else there.fileno()
                sink = there.fileno() if direction == "ingress" else tap
                if select.select([], [source], [], 0.01)[1]:
                    try:
                        if direction == "ingress":
                            os.write(tap, frame)
                        else:
                            there.sendto(bytes(1000), ("10.1.0.9", 7000))
                    except OSError:  # the queue is full
                        pass
                while select.select([sink], [], [], 0)[0]:
                    size = len(os.read(sink, 4096))
                    arrived += size if size >= 1000 else 0
            elapsed = now - began
    finally:
        os.close(tap)
    # Burst, and what waits in the queue.
    most = 1.05 * (RATE * elapsed + BURST + RATE * 0.025) / 8
    assert 0.2 * RATE / 8 < arrived < most
    attached.delete()
    assert attached.container.links() == set()
