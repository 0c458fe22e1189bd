"""Engine settings: the table ``[engines.vpp]`` of the node's settings."""

from __future__ import annotations

from pathlib import Path

from attrs import field, frozen

from userspace_cni.api.sections import seconds


@frozen(kw_only=True)
class VppSettings:
    """How to reach VPP. The container engine uses the defaults."""

    #: Socket of the binary API.
    api_socket: Path = Path("/run/vpp/api.sock")
    #: Directory with the JSON files that describe the API.
    api_dir: Path = Path("/usr/share/vpp/api")
    #: In seconds, for each answer.
    timeout: float = field(default=10.0, validator=seconds)
