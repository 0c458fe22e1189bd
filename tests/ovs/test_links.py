"""Open vSwitch connects only to the container's own socket."""

from __future__ import annotations

import os
import socket
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from lab.node import poll
from lab.ovs_lab import vhost

if TYPE_CHECKING:
    from pathlib import Path

    from lab.ovs_lab import OvsLab

pytestmark = pytest.mark.own_process("a lab node has namespaces of its own")


def _listening(path: Path) -> socket.socket:
    path.unlink(missing_ok=True)
    server = socket.socket(socket.AF_UNIX)
    server.settimeout(20)
    server.bind(str(path))
    server.listen()
    return server


def _has_caller(server: socket.socket) -> bool:
    server.setblocking(False)
    try:
        server.accept()[0].close()
    except BlockingIOError:
        return False
    return True


def test_a_link_to_another_container_is_not_followed(lab: OvsLab) -> None:
    """The application creates a link to its neighbour's socket instead of a socket."""
    config = vhost(host={"vhost": {"mode": "client"}})
    shared = lab.plugin.run_dir / "shared"
    victim = lab.container(config, name="victim")
    attacker = lab.container(config, name="attacker")
    for container in (victim, attacker):
        (shared / container.name).mkdir(mode=0o750, parents=True)
    with closing(_listening(shared / "victim/net1.sock")) as theirs:
        (shared / "attacker/eth0.sock").symlink_to("../victim/net1.sock")
        attacker.add()
        attacker.check().succeeded()
        # Open vSwitch tries to connect every second.
        (shared / "attacker/eth0.sock").unlink()
        with closing(_listening(shared / "attacker/eth0.sock")) as own:
            poll(lambda: _has_caller(own), "Open vSwitch to connect where it should")
        assert not _has_caller(theirs)
    (shared / "attacker/theirs").write_text("left behind")
    attacker.delete()
    assert os.listdir(shared) == ["victim"]
    (shared / "victim/net1.sock").unlink()
    (shared / "victim").rmdir()
