"""A client of the node daemon, as small as an executable in Python can be."""

from __future__ import annotations

import sys
from pathlib import Path

from userspace_cni.cni.versions import SUPPORTED

_PROGRAM = r"""
import os, socket, struct, sys
if not os.environ.get("CNI_COMMAND"):
    sys.stderr.write("userspace: CNI " + ABOUT)
    sys.exit(0)
environment = b"".join(n + b"=" + v + b"\0" for n, v in os.environb.items())
try:
    stdin = sys.stdin.buffer.read()
except (OSError, AttributeError):
    print('{"cniVersion": "1.1.0", "code": 5, "msg": "standard input cannot be read"}')
    sys.exit(1)
try:
    with socket.socket(socket.AF_UNIX) as daemon:
        daemon.connect(SOCKET)
        daemon.sendall(struct.pack(">4sIII", b"ucni", 1, len(environment), len(stdin)))
        daemon.sendall(environment + stdin)
        with daemon.makefile("rb") as file:
            frame = file.read()
    _, _, status, out, err = struct.unpack_from(">4sIIII", frame)
except (OSError, struct.error):
    print('{"cniVersion": "1.1.0", "code": 11, "msg": "the node daemon does not answer"}')
    sys.exit(1)
sys.stdout.buffer.write(frame[20:20 + out])
sys.stderr.buffer.write(frame[20 + out:])
sys.stdout.flush()
sys.stderr.flush()
os._exit(status)
"""


def install(directory: Path, name: str, socket: Path) -> None:
    """Write the executable *name*, which calls the daemon at *socket*."""
    program = directory / name
    about = ", ".join(SUPPORTED)
    program.write_text(
        f"#!{sys.executable} -IS\nSOCKET, ABOUT = {str(socket)!r}, {about!r}\n{_PROGRAM}"
    )
    program.chmod(0o755)
