"""Configuration: that of a network (:mod:`.network`), and the node's (:mod:`.settings`)."""

from userspace_cni.config.network import (
    NetConf,
    engine_conf,
    engine_name,
    load,
    pod_of,
    require_bandwidth,
)

__all__ = [
    "NetConf",
    "engine_conf",
    "engine_name",
    "load",
    "pod_of",
    "require_bandwidth",
]
