"""The arguments that give a DPDK application its ports.

Sources: DPDK 22.11, "Memif Poll Mode Driver" and "Virtio_user for Container Networking".
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import count

from userspace_cni.api import Handoff, Memif, VhostUser
from userspace_cni.cni.errors import CniError, Code
from userspace_cni.handover import Document
from userspace_cni.handover.document import ABSTRACT

#: sockaddr_un.sun_path is 108 bytes, the final NUL included (unix(7)).
_SOCKET_PATH_MAX = 107
#: Characters that end a value for DPDK, or an argument for a shell.
_SEPARATORS = frozenset(", \t\n\"'\\$`[]*?")


def arguments(documents: Iterable[Document]) -> list[str]:
    """Return the arguments of DPDK's environment abstraction layer (EAL) for *documents*.

    The application numbers its ports in this order.

    Raises:
        CniError: DPDK cannot use one of them.

    """
    memifs, virtio_users = count(), count()
    devices, single_file = [], False
    for document in documents:
        handoff = document.handoff
        match handoff.port:
            case Memif() as memif:
                devices.append(f"net_memif{next(memifs)},{_joined(_memif(handoff, memif))}")
                # With zero copy, the server maps the memory of the client's packets.
                single_file |= memif.zero_copy and memif.role == "client"
            case VhostUser() as vhost_user:
                values = _joined(_virtio_user(handoff, vhost_user))
                devices.append(f"net_virtio_user{next(virtio_users)},{values}")
                # A vhost-user message can carry eight files, and each huge page would be one.
                single_file = True
            case _:
                raise CniError(
                    Code.INVALID_NETWORK_CONFIG,
                    f"{handoff.interface} is of iftype {handoff.iftype}: this agent knows no "
                    "argument of DPDK for it",
                    "use an iftype that it knows, vhostuser or memif; or give the application its "
                    "arguments yourself, from: userspace-cni-agent env",
                )
    vdevs = [f"--vdev={device}" for device in devices]
    return [*vdevs, "--single-file-segments"] if single_file else vdevs


def _memif(handoff: Handoff, memif: Memif) -> Iterator[tuple[str, object]]:
    if memif.mode != "ethernet":
        raise CniError(
            Code.INVALID_NETWORK_CONFIG,
            f"{handoff.interface} is a memif of mode {memif.mode}, DPDK has ethernet alone",
            'set memif.mode to "ethernet" in the network',
        )
    abstract = memif.socket.startswith(ABSTRACT)
    yield "role", memif.role
    yield "id", memif.id
    yield "socket", _path(handoff, memif.socket.removeprefix(ABSTRACT))
    yield "socket-abstract", "yes" if abstract else "no"
    if handoff.mac:
        yield "mac", handoff.mac
    yield "rsize", memif.ring_size.bit_length() - 1
    yield "bsize", memif.buffer_size
    if memif.zero_copy and memif.role == "client":
        yield "zero-copy", "yes"
    if memif.secret:
        yield "secret", memif.secret


def _virtio_user(handoff: Handoff, vhost_user: VhostUser) -> Iterator[tuple[str, object]]:
    if handoff.mac:
        yield "mac", handoff.mac
    yield "path", _path(handoff, vhost_user.socket)
    yield "queues", vhost_user.queues
    if vhost_user.mode == "server":
        yield "server", 1


def _path(handoff: Handoff, path: str) -> str:
    if len(path.encode(errors="surrogateescape")) > _SOCKET_PATH_MAX:
        raise CniError(
            Code.INVALID_NETWORK_CONFIG,
            f"the path of {handoff.interface}'s socket is longer than {_SOCKET_PATH_MAX} bytes: "
            f"{path}",
            "mount the directory at a shorter path",
        )
    return path


def _joined(values: Iterator[tuple[str, object]]) -> str:
    pairs = []
    for key, value in values:
        if _SEPARATORS & {*str(value)}:
            shown = "its value" if key == "secret" else repr(value)
            raise CniError(
                Code.INVALID_NETWORK_CONFIG,
                f"DPDK's {key} cannot have {shown}: it would be cut",
                "choose a path without it: sharedDir or socketfile in the network",
            )
        pairs.append(f"{key}={value}")
    return ",".join(pairs)
