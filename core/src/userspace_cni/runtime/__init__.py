"""The runtime: the implementation of ADD, DEL, CHECK, STATUS and GC for all engines."""

from userspace_cni.runtime.commands import Runtime
from userspace_cni.runtime.shared import Busy, Phase

__all__ = ["Busy", "Phase", "Runtime"]
