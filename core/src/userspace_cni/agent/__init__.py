"""In the container: what it was handed over, for programs there.

``userspace-cni-agent`` is the program (:mod:`.command`); :func:`interfaces` is for programs in
Python. Nothing of the node's side is needed or imported.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from userspace_cni.handover import Document

__all__ = ["interfaces"]


def interfaces(directory: str = "", annotations: str = "") -> list[Document]:
    """Return the interfaces that this container was handed over, in the order of their names.

    The paths of their sockets are the container's.

    Args:
        directory: The directory that the container shares with the node; several with ``:`` between
            them. By default what USERSPACE_CNI_DIRECTORY says, else /var/run/userspace-cni.
        annotations: The file of the pod's annotations (Kubernetes' Downward API). By default what
            USERSPACE_CNI_ANNOTATIONS says, else /etc/podnetinfo/annotations.

    Raises:
        CniError: something was handed over that cannot be used; the text names the file and why.

    """
    from userspace_cni.agent import sources
    from userspace_cni.cni.errors import CniError, Code

    found = sources.read(sources.locate(directory, annotations))
    if found.problems:
        raise CniError(Code.DECODING_FAILURE, "; ".join(found.problems))
    return list(found.documents)
