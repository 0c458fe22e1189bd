"""The runtime: what ADD, DEL, CHECK, STATUS and GC do, for every engine alike."""

from userspace_cni.runtime.commands import Runtime
from userspace_cni.runtime.shared import Busy, Phase

__all__ = ["Busy", "Phase", "Runtime"]
