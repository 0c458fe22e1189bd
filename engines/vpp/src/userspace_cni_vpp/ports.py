"""The host's interface of an attachment, for each interface type."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from typing import TYPE_CHECKING

from userspace_cni.api import CheckFailed, CniError, Code, InvalidConfig, Kernel, Memif, VhostUser
from userspace_cni.kernel import limits, veth
from userspace_cni.kernel.links import Links
from userspace_cni.kernel.namespace import Namespace
from userspace_cni.kernel.tags import short_name
from userspace_cni_vpp import kernel, tags
from userspace_cni_vpp.sections import MemifSection, VhostSection
from userspace_cni_vpp.switch import NONE, mac_bytes

if TYPE_CHECKING:
    from collections.abc import Iterable
    from contextlib import ExitStack

    from userspace_cni.api import Attachment, EngineConf, HostPort
    from userspace_cni.api import Port as PortKind
    from userspace_cni_vpp.switch import Port, Switch

MTU = 1500
"""Default MTU in bytes."""

#: The requests that an interface type needs; VPP has them if the type's plugin is loaded.
REQUESTS = {
    "memif": ("memif_create_v2", "memif_delete", "memif_socket_filename_add_del_v2"),
    "vhostuser": ("create_vhost_user_if_v2", "delete_vhost_user_if"),
    "tap": ("tap_create_v3", "tap_delete_v2"),
    "veth": ("af_packet_create_v3", "af_packet_delete"),
}
_ABSTRACT = "@"
_AF_PACKET_ETHERNET = 1  # AF_PACKET_API_MODE_ETHERNET
_TAP_NAMESPACE_MAX = 63
_SOCKET_NAME_MAX = 107
_GRANTED = 0o660  # the mode that SharedDirectory.grant gives


def port_of(attachment: Attachment, conf: EngineConf) -> PortKind:
    """Return the container's view of the port."""
    match conf.iftype:
        case "memif":
            return memif_of(attachment, conf)
        case "vhostuser":
            return vhost_user_of(attachment, conf)
        case _:
            return Kernel()


def memif_of(attachment: Attachment, conf: EngineConf) -> Memif:
    """Return the container's view of a memif."""
    section = conf.section(MemifSection)
    if section.socket == "abstract":
        socket = f"{_ABSTRACT}userspace-cni-{attachment.id}"
    else:
        socket = f"{attachment.directory.path}/{socket_name(attachment, conf)}"
    return Memif(
        role=section.peer_role,
        socket=socket,
        mode=section.mode,
        id=section.id,
        secret=section.secret,
        # The container's receive queues are the host's transmit queues, and vice versa.
        rx_queues=section.tx_queues,
        tx_queues=section.rx_queues,
        ring_size=section.ring_size,
        buffer_size=section.buffer_size,
        zero_copy=section.zero_copy,
    )


def vhost_user_of(attachment: Attachment, conf: EngineConf) -> VhostUser:
    """Return the container's view of a vhost-user port."""
    section = conf.section(VhostSection)
    return VhostUser(
        mode=section.peer_mode,
        socket=f"{attachment.directory.path}/{socket_name(attachment, conf)}",
        queues=section.queues,
    )


def socket_name(attachment: Attachment, conf: EngineConf) -> str:
    """Return the socket's file name in the container's directory."""
    section: VhostSection | MemifSection = (
        conf.section(VhostSection) if conf.iftype == "vhostuser" else conf.section(MemifSection)
    )
    return section.socketfile or f"{attachment.ifname}.sock"


def vpp_socket(socket: str, netns: str = "") -> str:
    """Return a memif's *socket* in VPP's notation; *netns* is the namespace of an abstract one."""
    if not socket.startswith(_ABSTRACT):
        return socket
    name = f"abstract:{socket.removeprefix(_ABSTRACT)}"
    return f"{name},netns_name={netns}" if netns else name


def create(
    attachment: Attachment, conf: EngineConf, switch: Switch, undo: ExitStack, *, again: bool
) -> int:
    """Create and tag the interface of *attachment*, and return its index.

    Args:
        attachment: the attachment.
        conf: the engine's configuration.
        switch: the VPP instance.
        undo: receives undo steps.
        again: whether this is a restoration; an existing veth pair is then kept.

    Raises:
        CniError: code 103 if the container already has an interface of that name.
        InvalidConfig: if VPP does not support a value, such as too long a path.
        DataplaneError: if VPP or the kernel refuses.
        DataplaneUnavailable: if VPP does not answer.

    """
    match conf.iftype:
        case "memif":
            return _create_memif(attachment, conf, switch)
        case "vhostuser":
            return _create_vhost_user(attachment, conf, switch)
        case "tap":
            return _create_tap(attachment, switch, undo)
        case _:
            if not (again and veth.revive(attachment.id, kernel.TAGS)):
                veth.create_for_switch(attachment, attachment.mtu or MTU, kernel.TAGS, undo)
            return _create_af_packet(attachment, switch, short_name(attachment.id))


def require_new(attachment: Attachment, conf: EngineConf, switch: Switch) -> None:
    """Raise CniError 103 if VPP already has an interface of *attachment*.

    That interface may be in use, and undoing this request would remove it.
    """
    name = name_of(attachment.id, conf)
    found = switch.named(name) if name else None
    tag = tags.parse(found.tag) if found else None
    if found is not None and tag is not None and tag.id == attachment.id:
        raise CniError(
            Code.ALREADY_ATTACHED,
            f"the attachment already has the interface {found.name} in VPP",
            "DEL it first",
        )


def find(switch: Switch, attachment_id: str, conf: EngineConf) -> list[Port]:
    """Return the interfaces of an attachment, including those that are not tagged yet.

    An interface without a tag is recognized by its name or MAC address, which are derived from the
    attachment's ID.
    """
    name, mac = name_of(attachment_id, conf), tags.host_mac(attachment_id)

    def is_ours(port: Port) -> bool:
        if port.tag:
            tag = tags.parse(port.tag)
            return tag is not None and tag.id == attachment_id
        return port.name == name or port.mac == mac.hex(":")

    # Look up the name first: with a thousand interfaces VPP takes milliseconds to list them all.
    named = filter(is_ours, switch.ports(name=name) if name else ())
    return [*named] or [*filter(is_ours, switch.ports(containing=[attachment_id.encode(), mac]))]


def has_mac(conf: EngineConf) -> bool:
    """Return whether the port carries Ethernet frames and so has a MAC address."""
    return conf.iftype != "memif" or conf.section(MemifSection).mode == "ethernet"


def check(attachment: Attachment, conf: EngineConf, port: HostPort) -> None:
    """Raise CheckFailed unless *port* matches *conf* and its socket or veth pair exists.

    This does not query VPP, which cannot change these properties of an existing interface.
    """
    match port.port:
        case Memif() as memif:
            _compare(port, memif_of(attachment, conf), ("role", "mode", "id", "socket"))
            if memif.role == "client" and not memif.socket.startswith(_ABSTRACT):
                _check_socket(port)
        case VhostUser(mode=mode):
            _compare(port, vhost_user_of(attachment, conf), ("mode", "socket"))
            if mode == "client":
                _check_socket(port)
        case _:
            if conf.iftype == "veth":
                with Links() as links:
                    veth.check(links, attachment, kernel.TAGS)
            limits.check_inside(attachment)


def _compare(port: HostPort, wanted: PortKind, what: Iterable[str]) -> None:
    for name in what:
        want, have = getattr(wanted, name), getattr(port.port, name)
        if want != have:
            raise CheckFailed(
                f"the container's end of {port.name} has another {name}",
                f"expected {want}, found {have}",
            )


def _check_socket(port: HostPort) -> None:
    """Raise CheckFailed unless VPP's socket exists and the application may use it."""
    with suppress(OSError):
        mode = os.lstat(port.socket).st_mode
        if stat.S_ISSOCK(mode) and stat.S_IMODE(mode) == _GRANTED:
            return
    raise CheckFailed(f"the socket of {port.name} is gone, or lost its owner: {port.socket}")


# -- making


def _create_memif(attachment: Attachment, conf: EngineConf, switch: Switch) -> int:
    memif = memif_of(attachment, conf)
    server = memif.role == "client"
    directory = attachment.directory
    section = conf.section(MemifSection)
    is_file = not memif.socket.startswith(_ABSTRACT)
    name = socket_name(attachment, conf)
    if is_file:
        socket = directory.socket(name)
    else:
        socket = vpp_socket(memif.socket, attachment.netns)
        if len(socket) > _SOCKET_NAME_MAX:
            raise InvalidConfig(
                "host.memif.socket",
                f"the path of the network namespace is too long for VPP: {attachment.netns}",
                'use "path", or a shorter path',
            )
    directory.provide(user=section.user, group=section.group, sockets=is_file)
    if is_file and server:
        directory.make_way(name)
    index = switch.create_memif(
        socket,
        number=tags.number(attachment.id),
        server=server,
        mode=memif.mode,
        id=memif.id,
        secret=memif.secret,
        ring_size=memif.ring_size,
        buffer_size=memif.buffer_size,
        rx_queues=memif.tx_queues,
        tx_queues=memif.rx_queues,
        zero_copy=memif.zero_copy,
        mac=tags.host_mac(attachment.id),
    )
    switch.tag(index, tags.of(attachment))
    if is_file and server:
        directory.grant(name, user=section.user, group=section.group)
    return index


def _create_vhost_user(attachment: Attachment, conf: EngineConf, switch: Switch) -> int:
    section = conf.section(VhostSection)
    directory, name = attachment.directory, socket_name(attachment, conf)
    socket = directory.socket(name)
    directory.provide(user=section.user, group=section.group)
    server = section.mode == "server"
    if server:
        directory.make_way(name)
    reply = switch.api.call(
        "create_vhost_user_if_v2",
        subject=f"the vhost-user port on {directory.path}/{name}",
        is_server=server,
        sock_filename=socket,
        renumber=True,
        custom_dev_instance=tags.number(attachment.id),
        use_custom_mac=True,
        mac_address=tags.host_mac(attachment.id),
        tag=tags.of(attachment),
    )
    if server:
        directory.grant(name, user=section.user, group=section.group)
    return int(reply.sw_if_index)


def _create_tap(attachment: Attachment, switch: Switch, undo: ExitStack) -> int:
    if len(attachment.netns) > _TAP_NAMESPACE_MAX:
        raise InvalidConfig(
            "host.iftype",
            f"VPP's tap takes {_TAP_NAMESPACE_MAX} characters for the network namespace, got "
            f"{attachment.netns}",
            "use iftype veth",
        )
    kernel.require_vhost_net()
    reply = switch.api.call(
        "tap_create_v3",
        subject=f"the tap {attachment.interface}",
        id=NONE,
        use_random_mac=False,
        mac_address=tags.host_mac(attachment.id),
        num_rx_queues=1,
        num_tx_queues=1,
        tx_ring_sz=256,
        rx_ring_sz=256,
        host_mtu_set=True,
        host_mtu_size=attachment.mtu or MTU,
        host_mac_addr_set=True,
        host_mac_addr=mac_bytes(attachment.mac_for("container")),
        host_namespace_set=True,
        host_namespace=attachment.netns,
        host_if_name_set=True,
        host_if_name=attachment.interface,
        tag=tags.of(attachment),
    )
    with Namespace(attachment.netns) as container:
        limits.apply_inside(container, attachment, kernel.TAGS, undo)
    return int(reply.sw_if_index)


def _create_af_packet(attachment: Attachment, switch: Switch, name: str) -> int:
    reply = switch.api.call(
        "af_packet_create_v3",
        subject=f"the port on {name}",
        mode=_AF_PACKET_ETHERNET,
        hw_addr=tags.host_mac(attachment.id),
        use_random_hw_addr=False,
        host_if_name=name,
        num_rx_queues=1,
        num_tx_queues=1,
    )
    index = int(reply.sw_if_index)
    switch.tag(index, tags.of(attachment))
    return index


def name_of(attachment_id: str, conf: EngineConf) -> str:
    """Return the name of the attachment's interface in VPP; empty for taps, which VPP numbers."""
    number = tags.number(attachment_id)
    match conf.iftype:
        case "memif":
            return f"memif{number}/{conf.section(MemifSection).id}"
        case "vhostuser":
            return f"VirtualEthernet0/0/{number}"
        case "veth":
            return f"host-{short_name(attachment_id)}"
        case _:
            return ""
