"""The objects that core and engines exchange."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from hashlib import sha256
from typing import Literal

from attrs import field, frozen

from userspace_cni.api.directory import SharedDirectory
from userspace_cni.api.ports import Kernel, Port
from userspace_cni.cni.result import DNS, Interface, IPConfig, Route


def attachment_id(network: str, container_id: str, ifname: str) -> str:
    """Return the id of an attachment: 16 hexadecimal digits that identify everything made for it.

    The id is a digest of the whole key, because container ids share prefixes and have no fixed
    length.

    Args:
        network: The name of the network.
        container_id: CNI_CONTAINERID.
        ifname: CNI_IFNAME.

    """
    key = f"{network}\0{container_id}\0{ifname}"
    # JSON may contain invalid Unicode, such as half of a surrogate pair.
    return sha256(key.encode(errors="surrogatepass")).hexdigest()[:16]


def mac_address(attachment_id: str, end: Literal["container", "host"]) -> str:
    """Return the default MAC address of one *end* of an attachment.

    The address is derived from the id. It stays the same after a restart of the switch, so that
    neighbour caches remain valid.

    Args:
        attachment_id: The id of the attachment.
        end: The container's end or the host's end.

    """
    digest = sha256(f"{attachment_id}/{end}".encode()).digest()
    # 02: locally administered, unicast (IEEE 802c).
    return ":".join(f"{byte:02x}" for byte in (0x02, *digest[:5]))


@frozen(kw_only=True)
class Pod:
    """The Kubernetes pod of an attachment, if the runtime passes it."""

    #: The Kubernetes namespace.
    namespace: str
    #: The name.
    name: str
    #: The UID; empty if the runtime does not pass it.
    uid: str = ""


@frozen(kw_only=True)
class Bandwidth:
    """The rate limits of an attachment, seen from the container, as in the CNI conventions.

    Rates are in bits per second, bursts in bits; 0 means no limit.
    """

    #: Rate of the traffic to the container, in bits per second.
    ingress_rate: int = 0
    #: Burst of the traffic to the container, in bits.
    ingress_burst: int = 0
    #: Rate of the traffic from the container, in bits per second.
    egress_rate: int = 0
    #: Burst of the traffic from the container, in bits.
    egress_burst: int = 0


@frozen(kw_only=True)
class Addresses:
    """The result of the IPAM plugin for an attachment; empty without IPAM."""

    #: The container's addresses.
    ips: tuple[IPConfig, ...] = ()
    #: The container's routes.
    routes: tuple[Route, ...] = ()
    #: The name servers of the configuration, otherwise those of IPAM.
    dns: DNS = field(factory=DNS)


@frozen(kw_only=True, slots=False)
class Attachment:
    """One interface of one container on one network, which an engine has to make."""

    #: The name of the network configuration.
    network: str
    #: CNI_CONTAINERID.
    container_id: str
    #: CNI_IFNAME. With *network* and *container_id* it is the key of the attachment.
    ifname: str
    #: The path of the container's network namespace.
    netns: str
    #: The name that the interface must have in the container. The host engine that makes an
    #: interface of the kernel moves it to the container and gives it this name.
    interface: str
    #: The requested MAC address of the container's end; None if none is requested. Use
    #: :meth:`mac_for`.
    mac: str | None = None
    #: The requested MTU in bytes; None: the engine decides.
    mtu: int | None = None
    # The addresses, or a function that waits for them.
    _addresses: Addresses | Callable[[], Addresses] = field(factory=Addresses, alias="addresses")
    #: The pod; None if the runtime does not pass it.
    pod: Pod | None = None
    #: The requested limits; None if there are none.
    bandwidth: Bandwidth | None = None
    #: Further arguments of the request: ``args.cni`` of the configuration, otherwise CNI_ARGS, with
    #: keys in lower case. A pod can choose the values, so an engine must only use those that the
    #: network's configuration permits.
    args: Mapping[str, str] = field(factory=dict)
    #: The shared directory for sockets. It exists after the engine has called its ``provide``; core
    #: removes it.
    directory: SharedDirectory = field(eq=False, repr=False)

    def wait_for_addresses(self) -> Addresses:
        """Return the addresses; in :meth:`.HostEngine.add`, wait for the IPAM plugin.

        The plugin runs at the same time as :meth:`.HostEngine.add`. Make the port first, call this
        as late as possible, and do not hold a lock meanwhile. Everywhere else the addresses are
        known, and this returns at once. It may be called several times.

        Raises:
            CniError: the plugin's error. Do not catch it.

        """
        return self._addresses() if callable(self._addresses) else self._addresses

    @cached_property
    def id(self) -> str:
        """The attachment's id, see :func:`attachment_id`."""
        return attachment_id(self.network, self.container_id, self.ifname)

    def mac_for(self, end: Literal["container", "host"]) -> str:
        """Return the MAC address of one *end*: the requested one, otherwise :func:`mac_address`.

        Args:
            end: The container's end or the host's end.

        """
        if end == "container" and self.mac:
            return self.mac
        return mac_address(self.id, end)


@frozen(kw_only=True)
class HostPort:
    """A port that a host engine made. Core stores it and passes it to ``check`` and ``restore``."""

    #: The port's name in the switch.
    name: str
    #: The MAC address of the container's end.
    mac: str = ""
    #: The MTU of the container's end, in bytes; 0 if unknown.
    mtu: int = 0
    #: Whether the gateway is the only other station on the link, as with a routed port.
    point_to_point: bool = False
    #: The host's interfaces for the CNI result, such as the bridge and the host's end of a veth
    #: pair. Core adds the container's interface.
    interfaces: tuple[Interface, ...] = ()
    #: Routes that the container needs for this port, in addition to those from IPAM.
    routes: tuple[Route, ...] = ()
    #: The :meth:`HostEngine.generation` of the switch in which it was made. The daemon checks the
    #: port when the generation changes.
    generation: str = ""
    #: How the container reaches the port.
    port: Port = field(factory=Kernel)

    @property
    def socket(self) -> str:
        """Path of the port's socket on the node, empty for a port that has none."""
        return self.port.socket


@frozen(kw_only=True)
class Handoff:
    """What the container needs to use its port, from the container's point of view."""

    #: The name of the interface in the container.
    interface: str
    #: The container's interface type, such as ``memif``.
    iftype: str
    #: How the container uses the interface: ``interface`` sets addresses on it, ``bridge`` adds it
    #: to a bridge, ``none`` does neither.
    net_type: str
    #: The MAC address of the container's end; empty if it has none.
    mac: str = ""
    #: The MTU in bytes; 0 if unknown.
    mtu: int = 0
    #: See :attr:`HostPort.point_to_point`.
    point_to_point: bool = False
    #: The name of the bridge in the container, with *net_type* ``bridge``.
    bridge: str = ""
    #: The container's addresses.
    ips: tuple[IPConfig, ...] = ()
    #: The container's routes.
    routes: tuple[Route, ...] = ()
    #: The container's name servers.
    dns: DNS = field(factory=DNS)
    #: How the container reaches it.
    port: Port = field(factory=Kernel)

    @property
    def socket(self) -> str:
        """Path of the port's socket on the node, empty for a port that has none."""
        return self.port.socket
