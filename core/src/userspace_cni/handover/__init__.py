"""The hand-over: describes a port to the container.

The hand-over is a file next to the sockets, in a directory that container and node share
(:mod:`.document`, :mod:`.directory`). If the runtime requests it, there is also a device-info file
(:mod:`.device_info`), and if the network requests it, the file of the first userspace CNI plugin
(:mod:`.legacy`).
"""

from userspace_cni.handover.directory import ContainerDirectory, published
from userspace_cni.handover.document import Document, dump, load
from userspace_cni.handover.publication import (
    container_socket,
    publish,
    require,
    require_possible,
    withdraw,
)

__all__ = [
    "ContainerDirectory",
    "Document",
    "container_socket",
    "dump",
    "load",
    "publish",
    "published",
    "require",
    "require_possible",
    "withdraw",
]
