"""Container images without a registry: Debian's busybox in the `docker save` format.

The packages busybox-static and busybox conflict; either may be installed. Libraries are included.
"""

from __future__ import annotations

import hashlib
import io
import json
import platform
import re
import subprocess
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from lab.node import tool

if TYPE_CHECKING:
    from collections.abc import Sequence

BUSYBOX = "lab.invalid/busybox:1"
PAUSE = "lab.invalid/pause:1"
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
# PID 1 ignores signals without a handler, so without the trap every stop would run into a timeout.
WAIT = ("/bin/sh", "-c", "trap 'exit 0' TERM INT; while :; do sleep 3600 & wait; done")


@attrs.frozen
class Images:
    """Image archives that containerd and podman load."""

    busybox: Path
    pause: Path


def make(directory: Path) -> Images:
    """Write both images."""
    layer = _layer()
    return Images(
        busybox=_image(directory / "busybox.tar", BUSYBOX, layer, ["/bin/sh"]),
        pause=_image(directory / "pause.tar", PAUSE, layer, WAIT),
    )


def _layer() -> bytes:
    busybox = tool("busybox", "busybox-static")
    listed = subprocess.run([busybox, "--list"], check=True, capture_output=True, text=True)
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name in ("bin", "dev", "etc", "proc", "sys", "tmp", "root"):
            entry = tarfile.TarInfo(name)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(entry)
        _file(tar, "etc/passwd", b"root:x:0:0:root:/root:/bin/sh\n")
        _file(tar, "etc/group", b"root:x:0:\n")
        _file(tar, "bin/busybox", Path(busybox).read_bytes(), 0o755)
        for library in _libraries(busybox):
            _file(tar, library.lstrip("/"), Path(library).read_bytes(), 0o755)
        for applet in listed.stdout.split():
            if applet != "busybox":
                entry = tarfile.TarInfo(f"bin/{applet}")
                entry.type, entry.linkname = tarfile.SYMTYPE, "busybox"
                tar.addfile(entry)
    return out.getvalue()


def _libraries(program: str) -> list[str]:
    """Return the paths of a program's libraries and loader; empty if it is static."""
    listed = subprocess.run(["ldd", program], check=False, capture_output=True, text=True)
    return re.findall(r"(/\S+) \(0x", listed.stdout)


def _file(tar: tarfile.TarFile, name: str, content: bytes, mode: int = 0o644) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(content), mode
    tar.addfile(entry, io.BytesIO(content))


def _image(path: Path, reference: str, layer: bytes, command: Sequence[str]) -> Path:
    config = json.dumps(
        {
            "architecture": _ARCHITECTURES[platform.machine()],
            "os": "linux",
            "config": {"Env": ["PATH=/bin"], "Cmd": list(command)},
            "rootfs": {
                "type": "layers",
                "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}"],
            },
        }
    ).encode()
    name = f"{hashlib.sha256(config).hexdigest()}.json"
    manifest = [{"Config": name, "RepoTags": [reference], "Layers": ["layer.tar"]}]
    with tarfile.open(path, "w") as tar:
        _file(tar, name, config)
        _file(tar, "layer.tar", layer)
        _file(tar, "manifest.json", json.dumps(manifest).encode())
    return path
