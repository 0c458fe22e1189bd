"""How a container learns what it was given.

A file beside the sockets, in a directory that container and node share (:mod:`.document`,
:mod:`.directory`); where the runtime asks, also the device-info file (:mod:`.device_info`), and
where the network asks, what the first plugin wrote (:mod:`.legacy`).
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
