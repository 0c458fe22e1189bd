"""The device-info file, which describes a port to the meta-plugin."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from userspace_cni.api import Handoff, Memif, VhostUser
from userspace_cni.cni.errors import CniError, InvalidConfig
from userspace_cni.handover import device_info

INFO = {"type": "vhost-user", "version": "1.1.0", "vhost-user": {"mode": "server", "path": "/a/b"}}
VHOST = VhostUser(mode="server", socket="/node/net1.sock")


def _read(path: Path) -> Any:
    return json.loads(path.read_text())


def test_it_speaks_from_the_container_s_side() -> None:
    memif = Handoff(
        interface="net1",
        iftype="memif",
        net_type="none",
        port=Memif(role="client", socket="/node/net1.sock", secret="s3cret"),
    )
    assert device_info.describe(memif, "/mnt/net1.sock") == {
        "type": "memif",
        "version": "1.1.0",
        "memif": {"role": "slave", "path": "/mnt/net1.sock", "mode": "ethernet"},
    }
    handoff = Handoff(interface="n", iftype="vhostuser", net_type="none", port=VHOST)
    assert device_info.describe(handoff, "/a/b") == INFO
    kernel = Handoff(interface="n", iftype="veth", net_type="none")
    assert device_info.describe(kernel, "") is None


def test_it_is_made_with_its_directory_and_removed(tmp_path: Path) -> None:
    path = tmp_path / "devinfo/cni/net1"
    assert device_info.write(str(path), INFO) is None
    assert _read(path) == INFO
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o755
    device_info.restore(str(path), None, VHOST)
    assert os.listdir(path.parent) == []
    device_info.remove(str(path), VHOST)
    device_info.remove(str(tmp_path / "absent/file"), VHOST)


def test_what_a_device_plugin_left_is_completed_and_put_back(tmp_path: Path) -> None:
    path = tmp_path / "net1"
    left = {"type": "vhost-user", "version": "1.0.0", "vendor": 1, "vhost-user": {"extra": 2}}
    path.write_text(json.dumps(left))
    assert device_info.write(str(path), INFO) == left
    section = {"mode": "server", "path": "/a/b", "extra": 2}
    assert _read(path) == INFO | {"vendor": 1, "vhost-user": section}
    device_info.restore(str(path), left, VHOST)
    assert _read(path) == left


def test_a_device_of_another_type_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "net1"
    path.write_text(json.dumps({"type": "pci", "pci": {"pci-address": "0000:00:03.0"}}))
    device_info.write(str(path), INFO)
    assert _read(path) == INFO


@pytest.mark.parametrize("trap", ["link", "hard link", "fifo", "garbage"])
def test_a_trap_in_its_place_is_replaced(tmp_path: Path, trap: str) -> None:
    precious, path = tmp_path / "precious", tmp_path / "net1"
    precious.write_text("precious")
    match trap:
        case "link":
            path.symlink_to(precious)
        case "hard link":
            path.hardlink_to(precious)
        case "fifo":
            os.mkfifo(path)
        case "garbage":
            path.write_text("{")
    device_info.write(str(path), INFO)
    assert not path.is_symlink()
    assert _read(path) == INFO
    assert precious.read_text() == "precious"


def test_somebody_else_s_file_is_not_removed(tmp_path: Path) -> None:
    path = tmp_path / "net1"
    path.write_text(json.dumps({"type": "pci"}))
    device_info.remove(str(path), VHOST)
    assert path.exists()


@pytest.mark.parametrize(
    "path",
    [
        *("relative", "/a/../b", "/a/./b", "/a/", "/a\0b", "/a\nb", 7, ["/a"]),
        *("/a/" + "n" * 256, "/" + "ü" * 128, "/" + "a/" * 2048 + "b"),
    ],
)
def test_a_path_that_is_none_is_refused(path: object) -> None:
    with pytest.raises(InvalidConfig, match=r"runtimeConfig\.CNIDeviceInfoFile"):
        device_info.path_of({"CNIDeviceInfoFile": path})


def test_the_longest_path_is_one(tmp_path: Path) -> None:
    path = f"{tmp_path}/{'n' * 255}"
    assert device_info.path_of({"CNIDeviceInfoFile": path}) == path
    device_info.write(path, INFO)
    assert _read(Path(path)) == INFO
    device_info.remove(path, VHOST)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("config", [{}, {"CNIDeviceInfoFile": ""}, {"CNIDeviceInfoFile": None}])
def test_no_path_is_no_error(config: dict[str, Any]) -> None:
    assert device_info.path_of(config) == ""


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CniError, match=f"{tmp_path}/file/net1 cannot be written"):
        device_info.write(f"{tmp_path}/file/net1", INFO)
