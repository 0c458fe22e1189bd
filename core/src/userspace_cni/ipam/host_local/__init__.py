"""host-local in the process: works on the same directories as the executable of that name."""

from userspace_cni.ipam.host_local.engine import HostLocal

__all__ = ["HostLocal"]
