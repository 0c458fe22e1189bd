"""What the runtime and the engines tell one another."""

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
    """Return the id of an attachment: 16 hexadecimal digits that name everything made for it.

    A digest of the whole key, because container ids share prefixes and have no fixed length.
    """
    key = f"{network}\0{container_id}\0{ifname}"
    # JSON may hold what is no Unicode text: half of a surrogate pair.
    return sha256(key.encode(errors="surrogatepass")).hexdigest()[:16]


def mac_address(attachment_id: str, end: Literal["container", "host"]) -> str:
    """Return the MAC address of one *end* of an attachment that asks for none.

    It is the same after every restart of the switch, so that no neighbour cache goes stale.
    """
    digest = sha256(f"{attachment_id}/{end}".encode()).digest()
    # 02: locally administered, unicast (IEEE 802c).
    return ":".join(f"{byte:02x}" for byte in (0x02, *digest[:5]))


@frozen(kw_only=True)
class Pod:
    """The Kubernetes pod that an attachment is made for, where the runtime tells."""

    #: Its Kubernetes namespace.
    namespace: str
    #: Its name.
    name: str
    #: Its UID; empty where the runtime does not tell.
    uid: str = ""


@frozen(kw_only=True)
class Bandwidth:
    """Limits of an attachment, as the CNI conventions have them: seen from the container.

    Rates are in bits per second, bursts in bits; 0 is no limit.
    """

    #: Bits per second towards the container.
    ingress_rate: int = 0
    #: Bits towards the container that may be sent at once.
    ingress_burst: int = 0
    #: Bits per second from the container.
    egress_rate: int = 0
    #: Bits from the container that may be sent at once.
    egress_burst: int = 0


@frozen(kw_only=True)
class Addresses:
    """What IPAM gave an attachment; empty without IPAM."""

    #: The container's addresses.
    ips: tuple[IPConfig, ...] = ()
    #: The container's routes.
    routes: tuple[Route, ...] = ()
    #: The configuration's name servers, else IPAM's.
    dns: DNS = field(factory=DNS)


@frozen(kw_only=True, slots=False)
class Attachment:
    """One interface of one container on one network: what an engine is asked to make."""

    #: The name of the network configuration.
    network: str
    #: CNI_CONTAINERID.
    container_id: str
    #: CNI_IFNAME. With *network* and *container_id* it is the key of the attachment.
    ifname: str
    #: Path of the container's network namespace.
    netns: str
    #: Name of the interface in the container: ``if0name`` where the configuration has it, else
    #: *ifname*.
    interface: str
    #: The MAC address that the container's end must have; None leaves it to :meth:`mac_for`.
    mac: str | None = None
    #: In bytes; None leaves it to the engine.
    mtu: int | None = None
    # Themselves, or a function that waits for them.
    _addresses: Addresses | Callable[[], Addresses] = field(factory=Addresses, alias="addresses")
    #: The pod, None where the runtime does not tell.
    pod: Pod | None = None
    #: The limits that were asked for; None for none.
    bandwidth: Bandwidth | None = None
    #: What the request says beside the configuration: ``args.cni``, else CNI_ARGS. Keys are in
    #: lower case; values are the pod's choice: an engine uses those that its configuration opens.
    args: Mapping[str, str] = field(factory=dict)
    #: For sockets. It exists once the engine has asked for it; the runtime removes it.
    directory: SharedDirectory = field(eq=False, repr=False)

    def wait_for_addresses(self) -> Addresses:
        """Return what IPAM gave; in :meth:`.HostEngine.add`, wait for it.

        The IPAM plugin runs while :meth:`.HostEngine.add` does: make the port first, wait as late
        as possible, and hold no lock meanwhile. Everywhere else the addresses are known, and this
        returns at once. It may be called again.

        Raises:
            CniError: the plugin's error; leave it to the runtime.

        """
        return self._addresses() if callable(self._addresses) else self._addresses

    @cached_property
    def id(self) -> str:
        """The attachment's id, see :func:`attachment_id`."""
        return attachment_id(self.network, self.container_id, self.ifname)

    def mac_for(self, end: Literal["container", "host"]) -> str:
        """Return the MAC address of one *end*: the requested one, else :func:`mac_address`."""
        if end == "container" and self.mac:
            return self.mac
        return mac_address(self.id, end)


@frozen(kw_only=True)
class HostPort:
    """What a host engine made. It is stored, and given back to ``check``."""

    #: The port's name in the switch.
    name: str
    #: Of the container's end.
    mac: str = ""
    #: In bytes, of the container's end; 0 where it is not known.
    mtu: int = 0
    #: Nothing but the gateway is on the link, the container's own subnet included (a routed port).
    point_to_point: bool = False
    #: The host's interfaces that belong into the CNI result, such as the bridge and the veth's end.
    interfaces: tuple[Interface, ...] = ()
    #: Routes that the container needs for this port, beside those that IPAM gave.
    routes: tuple[Route, ...] = ()
    #: The :meth:`HostEngine.generation` of the switch that it was made in: in another one it has to
    #: be looked for.
    generation: str = ""
    #: How the container reaches it.
    port: Port = field(factory=Kernel)

    @property
    def socket(self) -> str:
        """Path of the port's socket on the node, empty for a port that has none."""
        return self.port.socket


@frozen(kw_only=True)
class Handoff:
    """What the container needs to use its port, from the container's point of view."""

    #: Name of the interface in the container.
    interface: str
    #: The container's interface type, such as ``memif``.
    iftype: str
    #: ``none``, ``bridge`` or ``interface``: what the container does with it.
    net_type: str
    #: The MAC address of the container's end; empty for one that has none.
    mac: str = ""
    #: In bytes; 0 where it is not known.
    mtu: int = 0
    #: See :attr:`HostPort.point_to_point`.
    point_to_point: bool = False
    #: With *net_type* ``bridge``: the bridge in the container, as the configuration names it.
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
