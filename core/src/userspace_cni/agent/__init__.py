"""The container's side: finds the hand-overs of a container, for programs that run in it.

``userspace-cni-agent`` is the command (:mod:`.command`); Python programs use :func:`interfaces`.
The package imports nothing from the node's side.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from userspace_cni.handover import Document

__all__ = ["interfaces"]


def interfaces(directory: str = "", annotations: str = "") -> list[Document]:
    """Return the interfaces that were handed over to this container, in the order of their names.

    The paths of their sockets are paths in the container.

    Args:
        directory: The directory that the container shares with the node, or several, separated by
            ``:``. The default is USERSPACE_CNI_DIRECTORY if set, otherwise /var/run/userspace-cni.
        annotations: The file with the pod's annotations (Kubernetes' Downward API). The default is
            USERSPACE_CNI_ANNOTATIONS if set, otherwise /etc/podnetinfo/annotations.

    Raises:
        CniError: a hand-over cannot be used; the text names the file and the reason.

    """
    from userspace_cni.agent import sources
    from userspace_cni.cni.errors import CniError, Code

    found = sources.read(sources.locate(directory, annotations))
    if found.problems:
        raise CniError(Code.DECODING_FAILURE, "; ".join(found.problems))
    return list(found.documents)
