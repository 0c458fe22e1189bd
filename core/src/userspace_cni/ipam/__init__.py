"""IPAM, through an engine in this process if there is one, otherwise through an executable."""

from userspace_cni.ipam.allocation import Allocation
from userspace_cni.ipam.chooser import Chooser
from userspace_cni.ipam.executable import Executable
from userspace_cni.ipam.executable import Executable as Ipam
from userspace_cni.ipam.in_process import InProcess

__all__ = ["Allocation", "Chooser", "Executable", "InProcess", "Ipam"]
