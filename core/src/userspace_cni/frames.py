"""The frames of the shim, version 1: to and from the daemon, and in the queue. See docs/daemon.md.

Pure functions: bytes in, bytes out.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable, Mapping
from typing import NamedTuple

from userspace_cni.cni.errors import CniError, Code

MAGIC = b"ucni"
VERSION = 1
ENVIRONMENT_MAX = 2 << 20  # bytes
STDIN_MAX = 16 << 20  # bytes

_PREFIX = struct.Struct(">4sI")
_LENGTHS = struct.Struct(">II")
_ANSWER = struct.Struct(">4sIIII")
#: The longest request there is.
REQUEST_MAX = _PREFIX.size + _LENGTHS.size + ENVIRONMENT_MAX + STDIN_MAX

#: Returns exactly so many bytes, or raises :class:`BadFrame`.
Reader = Callable[[int], bytes]


class BadFrame(CniError):
    """What came is no request of this protocol."""

    def __init__(self, problem: str, code: Code = Code.DECODING_FAILURE) -> None:
        super().__init__(code, f"the daemon cannot read this request: {problem}")


class Reply(NamedTuple):
    """What the daemon answers: the end of a process."""

    status: int
    out: bytes
    err: bytes


def read_request(read: Reader) -> tuple[dict[str, str], bytes]:
    """Return the environment and the standard input that *read* brings.

    Raises:
        BadFrame: for a frame that is too long, another version's, or none at all.

    """
    magic, version = _PREFIX.unpack(read(_PREFIX.size))
    if magic != MAGIC:
        raise BadFrame(f"it begins with {magic!r}, expected {MAGIC!r}")
    if version != VERSION:
        raise BadFrame(
            f"protocol version {version}, this daemon speaks {VERSION}; install the shim again",
            Code.INCOMPATIBLE_VERSION,
        )
    environment, stdin = _LENGTHS.unpack(read(_LENGTHS.size))
    for what, length, limit in (
        ("environment", environment, ENVIRONMENT_MAX),
        ("standard input", stdin, STDIN_MAX),
    ):
        if length > limit:
            raise BadFrame(f"{length} bytes of {what}, at most {limit} are served")
    return _environ(read(environment)), read(stdin)


def load_request(frame: bytes) -> tuple[dict[str, str], bytes]:
    """Return the environment and the standard input of a whole *frame*; raises BadFrame."""
    position = 0

    def read(length: int) -> bytes:
        nonlocal position
        position += length
        if position > len(frame):
            raise BadFrame("it ends early")
        return frame[position - length : position]

    request = read_request(read)
    if position != len(frame):
        raise BadFrame(f"{len(frame) - position} bytes follow it")
    return request


def network_of(stdin: bytes) -> str:
    """Return the name of the network that a request's standard input is about, if it has one."""
    try:
        name = json.loads(stdin)["name"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return ""
    return name if isinstance(name, str) else ""


def dump_request(environ: Mapping[str, str], stdin: bytes) -> bytes:
    """Return the frame of a request."""
    environment = b"".join(
        os.fsencode(name) + b"=" + os.fsencode(value) + b"\0" for name, value in environ.items()
    )
    return (
        _PREFIX.pack(MAGIC, VERSION)
        + _LENGTHS.pack(len(environment), len(stdin))
        + environment
        + stdin
    )


def dump_reply(reply: Reply) -> bytes:
    """Return the frame of an answer."""
    lengths = len(reply.out), len(reply.err)
    return _ANSWER.pack(MAGIC, VERSION, reply.status, *lengths) + reply.out + reply.err


def load_reply(frame: bytes) -> Reply:
    """Return the answer that *frame* holds.

    Raises:
        ValueError: it is not one whole answer of this version.

    """
    if len(frame) < _ANSWER.size:
        raise ValueError(f"an answer of {len(frame)} bytes")
    magic, version, status, out, err = _ANSWER.unpack_from(frame)
    body = frame[_ANSWER.size :]
    if (magic, version, out + err) != (MAGIC, VERSION, len(body)):
        raise ValueError(f"no answer of version {VERSION}: {frame[: _ANSWER.size]!r}")
    return Reply(status, body[:out], body[out:])


def _environ(text: bytes) -> dict[str, str]:
    """Read the variables as Python reads its own: of a name that comes twice, the first."""
    if text and not text.endswith(b"\0"):
        raise BadFrame("the last variable of its environment has no end")
    environ: dict[str, str] = {}
    for pair in text.split(b"\0"):
        name, equals, value = pair.partition(b"=")
        if equals:
            environ.setdefault(os.fsdecode(name), os.fsdecode(value))
    return environ
