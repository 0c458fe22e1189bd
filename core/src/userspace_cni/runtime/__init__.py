"""The runtime: what ADD, DEL, CHECK, STATUS and GC do, for every engine alike."""

from userspace_cni.runtime.commands import Busy, Phase, Runtime

__all__ = ["Busy", "Phase", "Runtime"]
