"""Configuration of a network (:mod:`.network`) and of the node (:mod:`.settings`).

:mod:`.asked` has what a request asks for its own container, and :mod:`.recorded` reads a
configuration without judging it.
"""

from userspace_cni.config.asked import Asked, ask, pod_of, require_bandwidth
from userspace_cni.config.network import NetConf, engine_conf, engine_name, load
from userspace_cni.config.recorded import RecordedConf

__all__ = [
    "Asked",
    "NetConf",
    "RecordedConf",
    "ask",
    "engine_conf",
    "engine_name",
    "load",
    "pod_of",
    "require_bandwidth",
]
