"""The contract for authors of engines.

An engine imports from core only this package, :mod:`.sections` with base classes for configuration
sections, :mod:`userspace_cni.kernel` for work on interfaces of the Linux kernel, and
:mod:`userspace_cni.testing` with the tests that an engine must pass. Everything else in core is
private and may change at any time.
"""

from userspace_cni.api.directory import (
    SharedDirectory,
)
from userspace_cni.api.engine import (
    CONTAINER_ENGINES,
    HOST_ENGINES,
    ContainerEngine,
    EngineConf,
    EngineContext,
    HostEngine,
    Lifeline,
)
from userspace_cni.api.info import (
    EngineInfo,
)
from userspace_cni.api.ipam import (
    IPAM_ENGINES,
    IpamEngine,
    IpamInfo,
    IpamRequest,
)
from userspace_cni.api.model import (
    Addresses,
    Attachment,
    Bandwidth,
    Handoff,
    HostPort,
    Pod,
    attachment_id,
    mac_address,
)
from userspace_cni.api.ports import (
    CustomPort,
    Kernel,
    Memif,
    Port,
    Role,
    VhostUser,
)
from userspace_cni.api.version import (
    API_VERSION,
)
from userspace_cni.cni.errors import (
    CheckFailed,
    CniError,
    Code,
    DataplaneError,
    DataplaneUnavailable,
    InvalidConfig,
    did_you_mean,
)
from userspace_cni.cni.result import (
    DNS,
    Interface,
    IPAddress,
    IPConfig,
    IPInterface,
    IPNetwork,
    Result,
    Route,
)

__all__ = [
    "API_VERSION",
    "CONTAINER_ENGINES",
    "DNS",
    "HOST_ENGINES",
    "IPAM_ENGINES",
    "Addresses",
    "Attachment",
    "Bandwidth",
    "CheckFailed",
    "CniError",
    "Code",
    "ContainerEngine",
    "CustomPort",
    "DataplaneError",
    "DataplaneUnavailable",
    "EngineConf",
    "EngineContext",
    "EngineInfo",
    "Handoff",
    "HostEngine",
    "HostPort",
    "IPAddress",
    "IPConfig",
    "IPInterface",
    "IPNetwork",
    "Interface",
    "InvalidConfig",
    "IpamEngine",
    "IpamInfo",
    "IpamRequest",
    "Kernel",
    "Lifeline",
    "Memif",
    "Pod",
    "Port",
    "Result",
    "Role",
    "Route",
    "SharedDirectory",
    "VhostUser",
    "attachment_id",
    "did_you_mean",
    "mac_address",
]
