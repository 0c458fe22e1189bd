"""Ports in Open vSwitch's terms: the columns of their Interface, Port and QoS rows."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import TYPE_CHECKING

from attrs import evolve, field, frozen

from userspace_cni.api import Bandwidth, InvalidConfig, Memif, VhostUser
from userspace_cni_ovs import tags
from userspace_cni_ovs.ovsdb import a_map, a_set
from userspace_cni_ovs.sections import BridgeSection, MemifSection, OvsSection, VhostSection

if TYPE_CHECKING:
    from collections.abc import Iterable

    from userspace_cni.api import Attachment, CniError, EngineConf, SharedDirectory
    from userspace_cni_ovs.ovsdb import Row

#: Interface types driven by DPDK; they need a bridge of the userspace datapath.
DPDK = ("vhostuser", "memif")
#: Default MTU in bytes.
MTU = 1500
#: Largest MTU of a DPDK port (lib/netdev-dpdk.c: NETDEV_DPDK_MAX_PKT_LEN minus Ethernet header, two
#: VLAN tags and checksum). Open vSwitch reports a larger one only in its log.
_DPDK_MTU_MAX = 9702
#: Default bridge of netType none, for controllers: OVN's integration bridge.
_CONTROLLERS_BRIDGE = "br-int"
_CHARACTERS_OF_DEVARGS = ",="


@frozen(kw_only=True)
class PortSpec:
    """The wanted configuration of a port."""

    name: str
    #: The Interface's type in Open vSwitch; empty for a kernel device.
    type: str
    bridge: BridgeSection
    external_ids: Mapping[str, str]
    options: Mapping[str, str] = field(factory=dict)
    #: In bytes; None for the default of Open vSwitch.
    mtu_request: int | None = None
    bandwidth: Bandwidth | None = None

    def interface(self) -> Row:
        """Return the columns of the Interface row."""
        row: Row = {
            "name": self.name,
            "type": self.type,
            "options": a_map(self.options),
            "external_ids": a_map(self.external_ids),
        }
        if self.mtu_request is not None:
            row["mtu_request"] = self.mtu_request
        if self.bridge.ofport_request is not None:
            row["ofport_request"] = self.bridge.ofport_request
        row["ingress_policing_rate"], row["ingress_policing_burst"] = self.policing
        return row

    def port(self) -> Row:
        """Return the columns of the Port row, without the references to other rows."""
        row: Row = {"name": self.name, "external_ids": a_map(self.external_ids)}
        if self.bridge.vlan_mode:
            row["vlan_mode"] = self.bridge.vlan_mode
            row["trunks"] = a_set(self.bridge.trunks)
            if self.bridge.vlan_id is not None:
                row["tag"] = self.bridge.vlan_id
        return row

    @property
    def policing(self) -> tuple[int, int]:
        """Limit of what the container sends: rate in kbit/s and burst in kbit; 0 for none.

        Open vSwitch calls this ingress, because the traffic enters the switch.
        """
        limits = self.bandwidth
        if limits is None or not limits.egress_rate:
            return 0, 0
        return max(1, limits.egress_rate // 1000), max(1, limits.egress_burst // 1000)

    def qos(self) -> Row | None:
        """Return the QoS row that limits what the container receives, or None without a limit.

        The policer of the userspace datapath, ``egress-policer``, takes bytes per second and bytes.
        """
        limits = self.bandwidth
        if limits is None or not limits.ingress_rate:
            return None
        # The default burst is a tenth of a second; less than one frame would block all traffic.
        burst = max((limits.ingress_burst or limits.ingress_rate // 10) // 8, 2 * MTU)
        return {
            "type": "egress-policer",
            "other_config": a_map(
                {"cir": str(max(1, limits.ingress_rate // 8)), "cbs": str(burst)}
            ),
            "external_ids": a_map({tags.ID: self.external_ids[tags.ID]}),
        }


def bridge_section(conf: EngineConf) -> BridgeSection:
    """Return ``host.bridge`` with the bridge's final name in ``bridge_name``."""
    section = conf.section(BridgeSection)
    name = section.name or (_CONTROLLERS_BRIDGE if conf.net_type == "none" else "")
    return evolve(section, bridge_name=name, bridge_id=None)


def problems(conf: EngineConf) -> Iterable[CniError]:
    """Yield the problems of *conf* for :meth:`.HostEngine.problems`."""
    yield from _problems_of_bridge(conf, conf.section(BridgeSection))
    yield from _problems_of_port(conf)


def _problems_of_bridge(conf: EngineConf, bridge: BridgeSection) -> Iterable[CniError]:
    if conf.net_type == "none":
        for key, given in (
            ("vlanId", bridge.vlan_id is not None),
            ("trunk", bridge.trunk),
            ("create", bridge.create),
        ):
            if given:
                yield InvalidConfig(
                    f"host.bridge.{key}",
                    'cannot be used with netType "none", which leaves the port to a controller',
                    'set netType to "bridge"',
                )
    elif not bridge.name:
        yield InvalidConfig(
            "host.bridge.bridgeName",
            f'missing, and netType "{conf.net_type}" needs it',
            'for example: "bridge": {"bridgeName": "br0"}',
        )
    if bridge.native_tagged and bridge.vlan_mode != "native-tagged":
        yield InvalidConfig(
            "host.bridge.nativeTagged",
            "needs both vlanId and trunk, got true without them",
            "add them, or leave it out",
        )
    if conf.iftype in DPDK and bridge.create and bridge.datapath_type != "netdev":
        yield InvalidConfig(
            "host.bridge.datapathType",
            f"iftype {conf.iftype} needs the userspace datapath, got {bridge.datapath_type!r}",
            'leave it out, or set it to "netdev"',
        )


def _problems_of_port(conf: EngineConf) -> Iterable[CniError]:
    memif = conf.section(MemifSection)
    if memif.is_server is False:
        yield InvalidConfig(
            "host.memif.role",
            f"Open vSwitch is always the server of a memif, got {memif.role!r}",
            "leave it out; as a client it would not connect again after a restart of the "
            "application",
        )
    if memif.mode != "ethernet":
        yield InvalidConfig(
            "host.memif.mode",
            f"Open vSwitch switches only Ethernet frames, got {memif.mode!r}",
            "leave it out",
        )
    if conf.iftype == "memif" and conf.mtu not in (None, MTU):
        yield InvalidConfig(
            "mtu",
            f"a memif port of Open vSwitch carries {MTU} bytes and no other MTU, got {conf.mtu}",
            "its DPDK driver (net_memif) cannot change it; use iftype vhostuser for larger frames",
        )
    if conf.iftype in DPDK and conf.mtu is not None and conf.mtu > _DPDK_MTU_MAX:
        yield InvalidConfig(
            "mtu",
            f"a DPDK port of Open vSwitch carries at most {_DPDK_MTU_MAX} bytes, got {conf.mtu}",
            "ask for a smaller one",
        )


def external_ids(attachment: Attachment, conf: EngineConf) -> dict[str, str]:
    """Return the port's tags, with the logical port's name if the pod may and does give it."""
    ids = tags.of(attachment)
    if conf.section(OvsSection).iface_id_from_args:
        logical = attachment.args.get("ovnport") or attachment.args.get("ifaceid")
        if logical:
            ids["iface-id"] = logical
    return ids


def socket_name(attachment: Attachment, conf: EngineConf) -> str:
    """Return the socket's file name in the container's directory."""
    return socket_section(conf).socketfile or f"{attachment.ifname}.sock"


def socket_section(conf: EngineConf) -> VhostSection | MemifSection:
    """Return the section that describes the port's socket."""
    if conf.iftype == "vhostuser":
        return conf.section(VhostSection)
    return conf.section(MemifSection)


def vhost_user(attachment: Attachment, conf: EngineConf, directory: SharedDirectory) -> VhostUser:
    """Return the container's view of a vhost-user port."""
    section = conf.section(VhostSection)
    return VhostUser(
        mode=section.peer_mode,
        socket=f"{directory.path}/{socket_name(attachment, conf)}",
        queues=section.queues,
    )


def memif(
    attachment: Attachment, conf: EngineConf, directory: SharedDirectory, queues: int
) -> Memif:
    """Return the container's view of a memif port.

    Args:
        attachment: the port's attachment.
        conf: the engine's configuration.
        directory: the container's shared directory.
        queues: the number of queues that the switch sends to.

    Raises:
        InvalidConfig: if the network configures fewer queues.

    """
    section = conf.section(MemifSection)
    if section.queues is not None and section.queues < queues:
        raise InvalidConfig(
            "host.memif.queues",
            f"expected at least {queues}, got {section.queues}",
            f"each of Open vSwitch's PMD threads ({queues - 1}) and its main thread sends into a "
            "queue of its own, and what it sends into one that does not exist is lost",
        )
    count = section.queues or queues
    return Memif(
        role="client",
        socket=f"{directory.path}/{socket_name(attachment, conf)}",
        id=section.id,
        secret=section.secret,
        rx_queues=count,
        tx_queues=count,
        ring_size=section.ring_size,
        buffer_size=section.buffer_size,
        zero_copy=section.zero_copy,
    )


def memif_device(attachment_id: str) -> str:
    """Return a new DPDK device name: the name of a device that failed stays taken (DPDK 22.11)."""
    return f"net_memif{attachment_id}x{secrets.token_hex(4)}"


def device_arguments(options: Mapping[str, str]) -> str:
    """Return a DPDK device's arguments without its name; empty for other ports."""
    return options.get("dpdk-devargs", "").partition(",")[2]


def memif_options(attachment_id: str, port: Memif, address: str) -> dict[str, str]:
    """Return the Interface's options for a memif port.

    Args:
        attachment_id: the attachment's ID.
        port: the container's view of the port.
        address: path at which the switch creates the socket.

    Raises:
        InvalidConfig: if the path contains characters that a device argument cannot contain.

    """
    if any(character in address for character in _CHARACTERS_OF_DEVARGS):
        raise InvalidConfig(
            "sharedDir",
            f"a memif's socket cannot have ',' or '=' in its path, got {address!r}",
            "choose another sharedDir or socketfile",
        )
    arguments = {
        "role": "server",
        "socket": address,
        # An abstract socket would be visible only in the switch's own network namespace.
        "socket-abstract": "no",
        "id": str(port.id),
        "rsize": str(port.ring_size.bit_length() - 1),
        "bsize": str(port.buffer_size),
    }
    if port.secret:
        arguments["secret"] = port.secret
    return {
        "dpdk-devargs": ",".join(
            (memif_device(attachment_id), *(f"{key}={value}" for key, value in arguments.items()))
        ),
        # The link stays down unless this equals the number of queues that the application sends on.
        "n_rxq": str(port.tx_queues),
    }
