"""One netlink socket, and the attributes of its messages: netlink(7).

By hand, because an ADD makes a dozen requests: a library's event loop and its decoding of all that
the kernel tells took longer than the kernel, and its import longer than the rest of the program.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import sys
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Iterator

DUMP = 0x300
CREATE = 0x400
EXCLUSIVE = 0x200

_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr
_REQUEST = 0x1
_ACK = 0x4
_ATTRIBUTE = struct.Struct("=HH")  # struct nlattr
_NUMBER = struct.Struct("=I")
_ATTRIBUTE_TYPE = 0x3FFF  # NLA_TYPE_MASK
_ERROR = 2
_DONE = 3
_DUMP_INTERRUPTED = 0x10
_ACK_ATTRIBUTES = 0x200
_ERROR_TEXT = 1  # NLMSGERR_ATTR_MSG
_SOL_NETLINK = 270
# One refusal in words, without the request that it answers; and no dump of what was not asked for.
_OPTIONS = {"NETLINK_CAP_ACK": 10, "NETLINK_EXT_ACK": 11, "NETLINK_GET_STRICT_CHK": 12}
#: What the kernel fills at most for one recv(2) of a dump is 32 KiB.
_BUFFER = 1 << 16
_DUMP_TRIES = 5
_KERNEL = 0  # the port id, netlink(7)


class KernelRefusal(OSError):
    """The kernel's answer to a request: errno, and in ``strerror`` its own words if it had any."""


class Netlink:
    """A socket of the network namespace of the thread that made it; used by one at a time."""

    def __init__(self) -> None:
        """Open the socket.

        Raises:
            OSError: when that is not possible.

        """
        self._sequence = 0
        self._socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE
        )
        try:
            self._socket.bind((0, 0))
            for option in _OPTIONS.values():
                self._socket.setsockopt(_SOL_NETLINK, option, 1)
        except BaseException:
            self._socket.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def request(self, type_: int, body: bytes, flags: int = 0) -> list[bytes]:
        """Send a message and return the bodies of those that the kernel answers.

        Raises:
            KernelRefusal: when the kernel refuses.
            OSError: when the socket fails.

        """
        for _ in range(_DUMP_TRIES):
            self._sequence += 1
            length = _HEADER.size + len(body)
            header = _HEADER.pack(length, type_, _REQUEST | _ACK | flags, self._sequence, 0)
            self._socket.send(header + body)
            answers, whole = self._receive()
            if whole:
                return answers
        raise OSError(errno.EAGAIN, f"changed while it was read, {_DUMP_TRIES} times")

    def _receive(self) -> tuple[list[bytes], bool]:
        """Return the answers up to the last, and whether nothing changed while they were made."""
        answers: list[bytes] = []
        whole = True
        while True:
            data, (sender, _) = self._socket.recvfrom(_BUFFER)
            if sender != _KERNEL:
                continue  # a container with CAP_NET_ADMIN can send to a socket in its namespace
            for type_, flags, body in _split(data, self._sequence):
                whole = whole and not flags & _DUMP_INTERRUPTED
                if type_ in (_ERROR, _DONE):
                    _raise_refusal(type_, flags, body)
                    return answers, whole
                answers.append(body)


def attribute(kind: int, value: bytes | str | int) -> bytes:
    """Return one attribute: bytes as they are, a text with a final NUL, a number of 32 bits."""
    if isinstance(value, int):
        value = _NUMBER.pack(value & 0xFFFFFFFF)
    elif isinstance(value, str):
        value = value.encode(errors="surrogateescape") + b"\0"
    length = _ATTRIBUTE.size + len(value)
    return _ATTRIBUTE.pack(length, kind) + value + bytes(-length % 4)


def listed(body: bytes, offset: int = 0) -> list[tuple[int, bytes]]:
    """Return type and value of the attributes that fill *body* from *offset* on."""
    found = []
    while offset + _ATTRIBUTE.size <= len(body):
        length, kind = _ATTRIBUTE.unpack_from(body, offset)
        found.append((kind & _ATTRIBUTE_TYPE, body[offset + _ATTRIBUTE.size : offset + length]))
        offset += max((length + 3) & ~3, _ATTRIBUTE.size)
    return found


def attributes(body: bytes, offset: int = 0) -> dict[int, bytes]:
    """Do as :func:`listed`, for attributes of which each comes once, by their type."""
    return dict(listed(body, offset))


def number(value: bytes | None) -> int:
    """Return an attribute's number, of any size; 0 where there is none."""
    return int.from_bytes(value or b"", sys.byteorder)


def text(value: bytes | None) -> str:
    """Return an attribute's text, empty where there is none."""
    return (value or b"").rstrip(b"\0").decode(errors="surrogateescape")


def _split(data: bytes, sequence: int) -> Iterator[tuple[int, int, bytes]]:
    """Yield type, flags and body of each message in *data* that answers the request *sequence*."""
    offset = 0
    while offset + _HEADER.size <= len(data):
        length, type_, flags, answered, _ = _HEADER.unpack_from(data, offset)
        if answered == sequence:
            yield type_, flags, data[offset + _HEADER.size : offset + length]
        offset += (length + 3) & ~3


def _raise_refusal(type_: int, flags: int, body: bytes) -> None:
    (status,) = struct.unpack_from("=i", body)
    if status == 0:
        return
    words = os.strerror(-status)
    if flags & _ACK_ATTRIBUTES:
        # After the status, and in NLMSG_ERROR the header of the request.
        told = attributes(body, 4 + (_HEADER.size if type_ == _ERROR else 0)).get(_ERROR_TEXT)
        words = text(told) or words
    raise KernelRefusal(-status, words)
