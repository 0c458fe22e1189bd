"""One netlink socket: pyroute2's messages, carried synchronously.

pyroute2's own sockets start an event loop for each request, which takes several times as long as
the kernel does to answer; an ADD makes a dozen requests. Messages and attributes: netlink(7),
rtnetlink(7).
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Iterator

REQUEST = 0x1
ACK = 0x4
DUMP = 0x300
CREATE = 0x400
EXCLUSIVE = 0x200

_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr
_ATTRIBUTE = struct.Struct("=HH")  # struct nlattr
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

    def request(self, type_: int, message: Any, flags: int = 0) -> list[bytes]:
        """Send *message*, one of pyroute2's, and return the messages that the kernel answers.

        Raises:
            KernelRefusal: when the kernel refuses.
            OSError: when the socket fails.

        """
        for _ in range(_DUMP_TRIES):
            self._sequence += 1
            message["header"].update(
                type=type_, flags=REQUEST | ACK | flags, sequence_number=self._sequence, pid=0
            )
            message.reset()
            message.encode()
            self._socket.send(message.data)
            answers, whole = self._receive()
            if whole:
                return answers
        raise OSError(errno.EAGAIN, f"changed while it was read, {_DUMP_TRIES} times")

    def _receive(self) -> tuple[list[bytes], bool]:
        """Return the answers up to the last, and whether nothing changed while they were made."""
        answers: list[bytes] = []
        whole = True
        while True:
            for type_, flags, message in _split(self._socket.recv(_BUFFER), self._sequence):
                whole = whole and not flags & _DUMP_INTERRUPTED
                if type_ in (_ERROR, _DONE):
                    _raise_refusal(flags, message)
                    return answers, whole
                answers.append(message)


def attributes(message: bytes, offset: int = 0) -> dict[int, bytes]:
    """Return the attributes that fill *message* from *offset* on, by their type."""
    found = {}
    while offset + _ATTRIBUTE.size <= len(message):
        length, kind = _ATTRIBUTE.unpack_from(message, offset)
        found[kind & _ATTRIBUTE_TYPE] = message[offset + _ATTRIBUTE.size : offset + length]
        offset += max((length + 3) & ~3, _ATTRIBUTE.size)
    return found


def _split(data: bytes, sequence: int) -> Iterator[tuple[int, int, bytes]]:
    """Yield type, flags and bytes of each message in *data* that answers the request *sequence*."""
    offset = 0
    while offset + _HEADER.size <= len(data):
        length, type_, flags, answered, _ = _HEADER.unpack_from(data, offset)
        if answered == sequence:
            yield type_, flags, data[offset : offset + length]
        offset += (length + 3) & ~3


def _raise_refusal(flags: int, message: bytes) -> None:
    (status,) = struct.unpack_from("=i", message, _HEADER.size)
    if status == 0:
        return
    words = os.strerror(-status)
    if flags & _ACK_ATTRIBUTES:
        # After the status, and in NLMSG_ERROR the header of the request.
        _, type_, *_ = _HEADER.unpack_from(message)
        offset = _HEADER.size + 4 + (_HEADER.size if type_ == _ERROR else 0)
        text = attributes(message, offset).get(_ERROR_TEXT)
        if text is not None:
            words = text.rstrip(b"\0").decode(errors="replace")
    raise KernelRefusal(-status, words)
