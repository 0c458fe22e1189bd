"""Configuration of networks (:mod:`.network`) and settings of the node (:mod:`.settings`)."""

from userspace_cni.config.network import (
    NetConf,
    engine_conf,
    engine_name,
    load,
    pod_of,
    require_bandwidth,
)
from userspace_cni.config.recorded import RecordedConf

__all__ = [
    "NetConf",
    "RecordedConf",
    "engine_conf",
    "engine_name",
    "load",
    "pod_of",
    "require_bandwidth",
]
