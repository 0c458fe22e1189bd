"""A VPP simulator for tests: it speaks the binary API but forwards no packets.

It implements the messages that our engine uses, with the numbering, replies, errors and ownership
rules measured on VPP 26.10-rc0. It can be killed, restarted, made to hang, to refuse or drop
connections, and to die at the n-th message. Authors of engines may use it, too::

    with Simulator(path) as vpp:
        ...
        vpp.kill_at(3)
"""

from lab.vpp_simulator.model import Model
from lab.vpp_simulator.server import Simulator

__all__ = ["Model", "Simulator"]
