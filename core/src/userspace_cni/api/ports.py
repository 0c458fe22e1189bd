"""Ports that a container reaches without an interface of the kernel."""

from __future__ import annotations

from typing import Literal

from attrs import field, frozen


@frozen(kw_only=True)
class Memif:
    """A shared memory packet interface, from the container's point of view."""

    #: Who the container is: the ``server`` makes the socket, the ``client`` connects to it.
    role: Literal["server", "client"]
    #: Path of the socket on the node; ``@NAME`` is an abstract socket in the container's network
    #: namespace.
    socket: str
    #: What the packets begin with.
    mode: Literal["ethernet", "ip", "inject-punt"] = "ethernet"
    #: Tells the interfaces on one socket apart.
    id: int = 0
    #: Both ends must have the same.
    secret: str = field(default="", repr=False)
    #: How many receive queues the container must have at least: the switch may use any of them,
    #: and what it puts into one that does not exist is lost.
    rx_queues: int = 1
    #: How many transmit queues it may have at most.
    tx_queues: int = 1
    #: Entries of a ring, a power of two.
    ring_size: int = 1024
    #: Bytes of a packet buffer.
    buffer_size: int = 2048
    #: Whether the client lends its own packet buffers.
    zero_copy: bool = False


@frozen(kw_only=True)
class VhostUser:
    """A vhost-user interface, from the container's point of view."""

    #: Who the container is: the ``server`` makes the socket, the ``client`` connects to it.
    mode: Literal["server", "client"]
    #: Path of the socket on the node.
    socket: str
    #: Pairs of queues.
    queues: int = 1
