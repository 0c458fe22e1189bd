"""The engine's table ``[engines.vpp]`` in the node's settings."""

from __future__ import annotations

from pathlib import Path

from attrs import field, frozen

from userspace_cni.api.sections import seconds


@frozen(kw_only=True)
class VppSettings:
    """Where VPP is; in a container, the defaults hold."""

    #: Of the binary API.
    api_socket: Path = Path("/run/vpp/api.sock")
    #: The JSON files that describe the API.
    api_dir: Path = Path("/usr/share/vpp/api")
    #: Seconds, for each answer.
    timeout: float = field(default=10.0, validator=seconds)
