"""Frames of the shim's protocol, version 1, used on the socket and in the queue.

All functions are pure. docs/daemon.md describes the format.
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
#: Size of the longest request in bytes.
REQUEST_MAX = _PREFIX.size + _LENGTHS.size + ENVIRONMENT_MAX + STDIN_MAX

#: Returns exactly the given number of bytes, or raises :class:`BadFrame`.
Reader = Callable[[int], bytes]


class BadFrame(CniError):
    """The received data is not a request of this protocol."""

    def __init__(self, problem: str, code: Code = Code.DECODING_FAILURE) -> None:
        super().__init__(code, f"the daemon cannot read this request: {problem}")


class Reply(NamedTuple):
    """The daemon's answer: exit status, standard output and standard error."""

    status: int
    out: bytes
    err: bytes


def read_request(read: Reader) -> tuple[dict[str, str], bytes]:
    """Return the environment and the standard input of the request that *read* supplies.

    Raises:
        BadFrame: if the frame is too long, malformed, or of another version.

    """
    magic, version = _PREFIX.unpack(read(_PREFIX.size))
    if magic != MAGIC:
        raise BadFrame(f"it begins with {magic!r}, expected {MAGIC!r}")
    if version != VERSION:
        raise BadFrame(
            f"protocol version {version}, but this daemon supports {VERSION}; reinstall the shim",
            Code.INCOMPATIBLE_VERSION,
        )
    environment, stdin = _LENGTHS.unpack(read(_LENGTHS.size))
    for what, length, limit in (
        ("environment", environment, ENVIRONMENT_MAX),
        ("standard input", stdin, STDIN_MAX),
    ):
        if length > limit:
            raise BadFrame(f"{length} bytes of {what}, at most {limit} are accepted")
    return _environ(read(environment)), read(stdin)


def load_request(frame: bytes) -> tuple[dict[str, str], bytes]:
    """Return the environment and the standard input in a complete *frame*.

    Raises:
        BadFrame: the errors of :func:`read_request`, or the frame is too short or too long.

    """
    position = 0

    def read(length: int) -> bytes:
        nonlocal position
        position += length
        if position > len(frame):
            raise BadFrame("it ends early")
        return frame[position - length : position]

    request = read_request(read)
    if position != len(frame):
        raise BadFrame(f"{len(frame) - position} extra bytes follow it")
    return request


def network_of(stdin: bytes) -> str:
    """Return the network's name from a request's standard input; empty if there is none."""
    try:
        name = json.loads(stdin)["name"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return ""
    return name if isinstance(name, str) else ""


def dump_request(environ: Mapping[str, str], stdin: bytes) -> bytes:
    """Encode a request."""
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
    """Encode an answer."""
    lengths = len(reply.out), len(reply.err)
    return _ANSWER.pack(MAGIC, VERSION, reply.status, *lengths) + reply.out + reply.err


def load_reply(frame: bytes) -> Reply:
    """Decode an answer.

    Raises:
        ValueError: if *frame* is not exactly one answer of this version.

    """
    if len(frame) < _ANSWER.size:
        raise ValueError(f"an answer of {len(frame)} bytes")
    magic, version, status, out, err = _ANSWER.unpack_from(frame)
    body = frame[_ANSWER.size :]
    if (magic, version, out + err) != (MAGIC, VERSION, len(body)):
        raise ValueError(f"not an answer of version {VERSION}: {frame[: _ANSWER.size]!r}")
    return Reply(status, body[:out], body[out:])


def _environ(text: bytes) -> dict[str, str]:
    """Decode the environment; if a name occurs twice, the first one counts, as in Python."""
    if text and not text.endswith(b"\0"):
        raise BadFrame("the last variable of its environment is not terminated")
    environ: dict[str, str] = {}
    for pair in text.split(b"\0"):
        name, equals, value = pair.partition(b"=")
        if equals:
            environ.setdefault(os.fsdecode(name), os.fsdecode(value))
    return environ
