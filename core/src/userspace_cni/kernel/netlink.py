"""Netlink socket and message encoding: netlink(7)."""

from __future__ import annotations

import errno
import os
import socket
import struct
import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING, Self

from userspace_cni.cni.errors import DataplaneError, DataplaneUnavailable

if TYPE_CHECKING:
    from collections.abc import Iterator

DUMP = 0x300
CREATE = 0x400
EXCLUSIVE = 0x200

_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr
_REQUEST = 0x1
_ACK = 0x4
_ATTRIBUTE = struct.Struct("=HH")  # struct nlattr
_ATTRIBUTE_TYPE = 0x3FFF  # NLA_TYPE_MASK
_ERROR = 2
_DONE = 3
_DUMP_INTERRUPTED = 0x10
_ACK_ATTRIBUTES = 0x200
_ERROR_TEXT = 1  # NLMSGERR_ATTR_MSG
_SOL_NETLINK = 270
# NETLINK_CAP_ACK: errors do not repeat the request. NETLINK_EXT_ACK: errors carry a text.
# NETLINK_GET_STRICT_CHK: strict checks, which allow a dump to be limited to one interface.
_OPTIONS = (10, 11, 12)
_BUFFER = 1 << 16  # bytes; a dump returns at most 32 KiB per recv(2)
_DUMP_TRIES = 5
_KERNEL = 0  # the kernel's port ID, netlink(7)


class Refused(DataplaneError):
    """The kernel refused a netlink request; :attr:`errno` holds the reason."""

    def __init__(self, action: str, number: int, words: str) -> None:
        name = errno.errorcode.get(number, str(number))
        super().__init__(f"cannot {action}", f"the kernel says: {words} ({name})")
        self.errno = number


class Netlink:
    """A netlink socket in the network namespace of the thread that opened it.

    The socket is not thread-safe. It is a context manager that closes it.

    Raises:
        DataplaneUnavailable: if the socket cannot be opened.

    """

    def __init__(self) -> None:
        self._sequence = 0
        try:
            with ExitStack() as stack:
                self._socket = stack.enter_context(
                    socket.socket(
                        socket.AF_NETLINK,
                        socket.SOCK_RAW | socket.SOCK_CLOEXEC,
                        socket.NETLINK_ROUTE,
                    )
                )
                self._socket.bind((0, 0))
                for option in _OPTIONS:
                    self._socket.setsockopt(_SOL_NETLINK, option, 1)
                stack.pop_all()
        except OSError as error:
            reason = error.strerror or str(error)
            raise DataplaneUnavailable("cannot open a netlink socket", reason) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def request(self, action: str, type_: int, body: bytes, flags: int = 0) -> list[bytes]:
        """Send a message and return the bodies of the kernel's answers.

        Args:
            action: description for error messages, which put "cannot" before it.
            type_: the message type, such as ``RTM_NEWLINK``.
            body: the message without its netlink header.
            flags: :data:`DUMP`, or :data:`CREATE` and :data:`EXCLUSIVE`.

        Raises:
            Refused: if the kernel refuses; nothing has changed.
            DataplaneUnavailable: if the socket fails; the kernel may have executed the request.

        """
        try:
            for _ in range(_DUMP_TRIES):
                self._sequence += 1
                length = _HEADER.size + len(body)
                header = _HEADER.pack(length, type_, _REQUEST | _ACK | flags, self._sequence, 0)
                self._socket.send(header + body)
                answers, complete = self._receive(action)
                if complete:
                    return answers
        except OSError as error:
            raise DataplaneUnavailable(
                f"cannot {action}: the netlink socket failed", error.strerror or str(error)
            ) from error
        raise Refused(action, errno.EAGAIN, f"changed while it was read, {_DUMP_TRIES} times")

    def _receive(self, action: str) -> tuple[list[bytes], bool]:
        """Return all answers, and whether they are consistent (no change during the dump)."""
        answers: list[bytes] = []
        complete = True
        while True:
            data, (sender, _) = self._socket.recvfrom(_BUFFER)
            if sender != _KERNEL:
                continue  # a container with CAP_NET_ADMIN can send to a socket in its namespace
            for type_, flags, body in _messages(data, self._sequence):
                complete = complete and not flags & _DUMP_INTERRUPTED
                if type_ not in (_ERROR, _DONE):
                    answers.append(body)
                elif refusal := _refusal(type_, flags, body):
                    raise Refused(action, *refusal)
                else:
                    return answers, complete


def attribute(kind: int, value: bytes | str | int) -> bytes:
    """Encode one attribute: bytes as they are, text with a final NUL, a number as 32 bits."""
    if isinstance(value, int):
        value = (value & 0xFFFFFFFF).to_bytes(4, sys.byteorder)
    elif isinstance(value, str):
        value = value.encode(errors="surrogateescape") + b"\0"
    length = _ATTRIBUTE.size + len(value)
    return _ATTRIBUTE.pack(length, kind) + value + bytes(-length % 4)


def attributes(body: bytes, offset: int = 0) -> dict[int, bytes]:
    """Decode the attributes in *body* from *offset* on; return their values by type."""
    found = {}
    while offset + _ATTRIBUTE.size <= len(body):
        length, kind = _ATTRIBUTE.unpack_from(body, offset)
        found[kind & _ATTRIBUTE_TYPE] = body[offset + _ATTRIBUTE.size : offset + length]
        offset += max((length + 3) & ~3, _ATTRIBUTE.size)
    return found


def number(value: bytes | None) -> int:
    """Decode an integer attribute of any size; return 0 for None."""
    return int.from_bytes(value or b"", sys.byteorder)


def text(value: bytes | None) -> str:
    """Decode a text attribute; return an empty string for None."""
    return (value or b"").rstrip(b"\0").decode(errors="surrogateescape")


def _messages(data: bytes, sequence: int) -> Iterator[tuple[int, int, bytes]]:
    """Yield type, flags and body of each message in *data* that answers the request *sequence*."""
    offset = 0
    while offset + _HEADER.size <= len(data):
        length, type_, flags, answered, _ = _HEADER.unpack_from(data, offset)
        if answered == sequence:
            yield type_, flags, data[offset + _HEADER.size : offset + length]
        offset += (length + 3) & ~3


def _refusal(type_: int, flags: int, body: bytes) -> tuple[int, str] | None:
    """Return the errno and the text of a final message, or None for success."""
    (status,) = struct.unpack_from("=i", body)
    if status == 0:
        return None
    told = b""
    if flags & _ACK_ATTRIBUTES:
        # The attributes follow the status; NLMSG_ERROR has the request's header in between.
        offset = 4 + (_HEADER.size if type_ == _ERROR else 0)
        told = attributes(body, offset).get(_ERROR_TEXT, b"")
    return -status, text(told) or os.strerror(-status)
