"""The engine's table ``[engines.ovs]`` in the node's settings."""

from __future__ import annotations

from pathlib import Path

from attrs import field, frozen

from userspace_cni.api.sections import seconds
from userspace_cni_ovs.sections import endpoint


@frozen(kw_only=True)
class OvsSettings:
    """Where Open vSwitch is."""

    #: ``unix:PATH``, a bare path, ``tcp:HOST:PORT`` or ``ssl:HOST:PORT``.
    db: str = field(default="unix:/run/openvswitch/db.sock", validator=endpoint)
    #: Seconds, for the database and for ovs-vswitchd each.
    timeout: float = field(default=10.0, validator=seconds)
    #: For a database at ``ssl:``, like the two that follow.
    private_key: Path | None = None
    certificate: Path | None = None
    ca_cert: Path | None = None
    #: Where ovs-vswitchd makes the sockets that it serves; by default the database tells.
    vhost_socket_dir: Path | None = None
