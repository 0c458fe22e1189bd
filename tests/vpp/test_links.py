"""VPP connects only to the container's own socket."""

from __future__ import annotations

import socket
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from lab.node import poll
from lab.vpp_lab import conf
from userspace_cni.handover import ContainerDirectory
from userspace_cni_vpp.sections import MemifSection, VhostSection

if TYPE_CHECKING:
    from pathlib import Path

    from lab.vpp_lab import VppLab
    from userspace_cni.api import EngineConf


def _listening(path: Path, kind: socket.SocketKind) -> socket.socket:
    server = socket.socket(socket.AF_UNIX, kind)
    server.bind(str(path))
    server.listen()
    server.setblocking(False)
    return server


def _has_caller(server: socket.socket) -> bool:
    try:
        server.accept()[0].close()
    except BlockingIOError:
        return False
    return True


@pytest.mark.parametrize(
    ("host", "kind"),
    [
        (conf("vhostuser", vhost=VhostSection(mode="client")), socket.SOCK_STREAM),
        (conf("memif", memif=MemifSection(role="client")), socket.SOCK_SEQPACKET),
    ],
    ids=["vhostuser", "memif"],
)
def test_a_link_to_another_container_is_not_followed(
    traffic_lab: VppLab, host: EngineConf, kind: socket.SocketKind
) -> None:
    """The application creates a link to its neighbour's socket instead of a socket."""
    lab = traffic_lab
    base, views = lab.dir / "shared", lab.dir / "run/s"
    victim, attacker = base / "victim", base / "attacker"
    for directory in (victim, attacker):
        directory.mkdir(mode=0o750, parents=True)
    with closing(_listening(victim / "net1.sock", kind)) as theirs:
        (attacker / "eth0.sock").symlink_to("../victim/net1.sock")
        shared = ContainerDirectory(base, "attacker", views)
        a = lab.attach(host, container_id="attacker", directory=shared)
        shared.require_view()
        a.check()
        # VPP tries to connect every few seconds.
        (attacker / "eth0.sock").unlink()
        with closing(_listening(attacker / "eth0.sock", kind)) as own:
            poll(lambda: _has_caller(own), "VPP to connect where it should")
        assert not _has_caller(theirs)
    a.delete()
    assert not [*views.iterdir()]
    lab.assert_clean()
