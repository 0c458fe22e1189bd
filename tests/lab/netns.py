"""Private network namespaces, and traffic between them.

A namespace exists as long as this process holds a file descriptor of it. Nothing is mounted, so
nothing is left when a test dies.
"""

from __future__ import annotations

import ctypes
import errno
import os
import select
import socket
import struct
import subprocess
import threading
import time
from contextlib import contextmanager
from ipaddress import ip_address
from typing import TYPE_CHECKING, ParamSpec, Self, TypeVar

from userspace_cni import netns

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_P = ParamSpec("_P")
_T = TypeVar("_T")

_CLONE_NEWNET = 0x40000000
_IP_MTU_DISCOVER = 10
_IPV6_MTU_DISCOVER = 23
_PMTUDISC_PROBE = 3  # do not fragment, and ignore the path MTU


class Namespace:
    """A new network namespace with its loopback up; a context manager that releases it."""

    def __init__(self) -> None:
        opened: list[int] = []

        def unshare() -> None:
            if ctypes.CDLL(None, use_errno=True).unshare(_CLONE_NEWNET) == 0:
                opened.append(os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC))

        thread = threading.Thread(target=unshare)
        thread.start()
        thread.join()
        if not opened:
            raise PermissionError("cannot make a network namespace: run as root")
        self._descriptor = opened[0]
        self.path = f"/proc/{os.getpid()}/fd/{self._descriptor}"
        self.run("ip", "link", "set", "lo", "up")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the namespace; the kernel removes it when nothing else uses it."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def call(self, function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """Call *function* in the namespace and return its result."""
        return netns.call(self.path, function, *args, **kwargs)

    def run(self, *command: str) -> str:
        """Run *command* in the namespace and return its output; raise CalledProcessError."""
        return subprocess.run(
            ["nsenter", f"--net={self.path}", *command], check=True, capture_output=True, text=True
        ).stdout

    def links(self) -> set[str]:
        """Return the names of all interfaces except the loopback."""
        names = {name for _, name in self.call(socket.if_nameindex)}
        return names - {"lo"}

    def ping(self, address: str, size: int = 56, timeout: float = 10.0) -> bool:
        """Return whether *address* answers an unfragmented ICMP echo with *size* payload bytes."""
        return self.call(_ping, address, size, timeout)


def _ping(address: str, size: int, timeout: float) -> bool:
    six = ip_address(address).version == 6
    family = socket.AF_INET6 if six else socket.AF_INET
    protocol = socket.IPPROTO_ICMPV6 if six else socket.IPPROTO_ICMP
    identifier = threading.get_native_id() & 0xFFFF
    deadline = time.monotonic() + timeout
    with socket.socket(family, socket.SOCK_RAW, protocol) as raw:
        if six:
            raw.setsockopt(socket.IPPROTO_IPV6, _IPV6_MTU_DISCOVER, _PMTUDISC_PROBE)
        else:
            raw.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _PMTUDISC_PROBE)
        sequence = 0
        while time.monotonic() < deadline:
            sequence += 1
            request = _echo(128 if six else 8, identifier, sequence, bytes(size))
            try:
                raw.sendto(request, (address, 0))
            except OSError as error:
                if error.errno in (errno.EMSGSIZE, errno.ENETUNREACH):
                    return False
                # EHOSTUNREACH: address resolution was too slow for an earlier packet.
            # Retry, because a first packet may be lost to address resolution.
            if _answered(raw, 129 if six else 0, identifier, six, min(0.3, timeout / 3)):
                return True
    return False


def _echo(kind: int, identifier: int, sequence: int, payload: bytes) -> bytes:
    header = struct.pack("!BBHHH", kind, 0, 0, identifier, sequence)
    total = sum(struct.unpack(f"!{(len(header) + len(payload)) // 2}H", header + payload))
    total = (total & 0xFFFF) + (total >> 16)
    # RFC 1071; the kernel overwrites it for IPv6.
    return struct.pack("!BBHHH", kind, 0, ~total & 0xFFFF, identifier, sequence) + payload


def _answered(raw: socket.socket, kind: int, identifier: int, six: bool, timeout: float) -> bool:
    deadline = time.monotonic() + timeout
    while (left := deadline - time.monotonic()) > 0:
        if not select.select([raw], [], [], left)[0]:
            return False
        packet = raw.recv(65536)
        if not six:
            packet = packet[(packet[0] & 0xF) * 4 :]
        found, _, _, whose = struct.unpack_from("!BBHH", packet)
        if (found, whose) == (kind, identifier):
            return True
    return False


def transfer(server: Namespace, client: Namespace, address: str, amount: int) -> int:
    """Send *amount* bytes by TCP from *client* to *address* in *server*; return what arrived."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET

    def listen() -> socket.socket:
        listener = socket.create_server((address, 0), family=family)
        listener.settimeout(5)
        return listener

    def send(port: int) -> None:
        with socket.create_connection((address, port), timeout=5) as connection:
            connection.sendall(bytes(amount))

    with server.call(listen) as listener:
        # A socket stays in the namespace in which it was opened.
        thread = threading.Thread(target=client.call, args=(send, listener.getsockname()[1]))
        thread.start()
        try:
            connection, _ = listener.accept()
            with connection:
                connection.settimeout(5)
                received = 0
                while chunk := connection.recv(65536):
                    received += len(chunk)
        finally:
            thread.join()
    return received


@contextmanager
def sniffing(namespace: Namespace, interface: str) -> Iterator[Callable[[float], list[bytes]]]:
    """Record frames that arrive at *interface*; yield a function that waits and returns them."""

    def listen() -> socket.socket:
        every_protocol = socket.htons(0x0003)
        raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, every_protocol)
        raw.bind((interface, 0x0003))
        return raw

    with namespace.call(listen) as raw:

        def frames(seconds: float) -> list[bytes]:
            seen = []
            deadline = time.monotonic() + seconds
            while (left := deadline - time.monotonic()) > 0:
                if select.select([raw], [], [], left)[0]:
                    seen.append(raw.recv(65536))
            return seen

        yield frames
