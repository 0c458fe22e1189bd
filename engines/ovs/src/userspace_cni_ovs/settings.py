"""Engine settings: the table ``[engines.ovs]`` of the node's settings."""

from __future__ import annotations

from pathlib import Path

from attrs import field, frozen

from userspace_cni.api.sections import seconds
from userspace_cni_ovs.sections import endpoint


@frozen(kw_only=True)
class OvsSettings:
    """How to reach Open vSwitch."""

    #: ``unix:PATH``, a bare path, ``tcp:HOST:PORT`` or ``ssl:HOST:PORT``.
    db: str = field(default="unix:/run/openvswitch/db.sock", validator=endpoint)
    #: In seconds, for the database and for ovs-vswitchd separately.
    timeout: float = field(default=10.0, validator=seconds)
    #: PEM file for an ``ssl:`` database, like the next two.
    private_key: Path | None = None
    certificate: Path | None = None
    ca_cert: Path | None = None
    #: Directory of vhost-user server sockets; by default it is read from the database.
    vhost_socket_dir: Path | None = None
