"""IPAM engine ``host-local``, which shares its directories with the executable of that name."""

from userspace_cni.ipam.host_local.engine import HostLocal

__all__ = ["HostLocal"]
