"""Helpers for tests of the daemon itself."""

from __future__ import annotations

import json
import socket
import time
from contextlib import closing, suppress
from typing import TYPE_CHECKING, Any

from lab.plugin import Outcome
from userspace_cni import frames

if TYPE_CHECKING:
    from pathlib import Path

    from core.example_lab import ExampleLab
    from lab.daemon import Daemon


def started(lab: ExampleLab, settings: str = "watch_interval = 3600") -> Daemon:
    """Start the daemon of *lab* with *settings* added to its table [daemon]."""
    daemon = daemon_of(lab)
    lab.plugin.settings(f'[daemon]\nsocket = "{daemon.socket}"\n{settings}\n')
    daemon.start()
    return daemon


def daemon_of(lab: ExampleLab) -> Daemon:
    assert lab.plugin.daemon is not None
    return lab.plugin.daemon


def environ(lab: ExampleLab, command: str, container: str = "c1", **more: str) -> dict[str, str]:
    return {
        "CNI_COMMAND": command,
        "CNI_CONTAINERID": container,
        "CNI_NETNS": lab.netns,
        "CNI_IFNAME": "eth0",
        "CNI_PATH": str(lab.plugin.bin_dir),
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
        **more,
    }


def frame(lab: ExampleLab, command: str, config: object, container: str = "c1") -> bytes:
    return frames.dump_request(environ(lab, command, container), json.dumps(config).encode())


def connected(path: Path, timeout: float = 60) -> socket.socket:
    """Return a socket that is connected to the daemon."""
    end = socket.socket(socket.AF_UNIX)
    end.settimeout(timeout)
    try:
        end.connect(str(path))
    except BaseException:
        end.close()
        raise
    return end


def exchanged(path: Path, request: bytes) -> Outcome:
    """Send the bytes *request*, close the sending direction, and return the answer."""
    with closing(connected(path)) as end:
        end.sendall(request)
        end.shutdown(socket.SHUT_WR)
        return answered(end)


def answered(end: socket.socket) -> Outcome:
    frame = bytearray()
    # The daemon may reset the connection after answering, as it did not read everything.
    with suppress(ConnectionResetError):
        while chunk := end.recv(1 << 16):
            frame += chunk
    reply = frames.load_reply(bytes(frame))
    return Outcome(status=reply.status, out=reply.out.decode(), err=reply.err.decode())


def queued(lab: ExampleLab, content: bytes, number: int) -> Path:
    """Put a file into the queue, as the shim does; return its path."""
    directory = lab.plugin.state_dir / "queue"
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = directory / f"{time.time_ns() + number:020}-{number}.del"
    draft = path.with_name(f".{path.name}")
    draft.write_bytes(content)
    return draft.rename(path)


def rss(pid: int) -> int:
    """Return the resident memory of a process in bytes."""
    with open(f"/proc/{pid}/status") as file:
        (line,) = (line for line in file if line.startswith("VmRSS"))
    return int(line.split()[1]) * 1024


def lines(daemon: Daemon, word: str) -> list[dict[str, Any]]:
    """Return the fields of the log lines that contain *word*."""
    return [
        dict(pair.split("=", 1) for pair in line.split() if "=" in pair)
        for line in daemon.said().splitlines()
        if word in line
    ]
