"""IPAM, through an engine in this process if there is one, otherwise through an executable."""

from userspace_cni.ipam.allocation import Allocation
from userspace_cni.ipam.chooser import Chooser, Ipam
from userspace_cni.ipam.executable import Executable

__all__ = ["Allocation", "Chooser", "Executable", "Ipam"]
