"""How a container learns what it was given: a file and sockets in a directory that it shares."""

from userspace_cni.handover.directory import ContainerDirectory, published
from userspace_cni.handover.document import dump

__all__ = ["ContainerDirectory", "dump", "published"]
