"""Host engine ``linux``: dispatches on the interface type and the network type."""

from __future__ import annotations

from contextlib import nullcontext, suppress
from typing import TYPE_CHECKING, ClassVar, TypeVar

from userspace_cni.api import (
    CheckFailed,
    DataplaneError,
    DataplaneUnavailable,
    EngineInfo,
    HostEngine,
    HostPort,
    Interface,
    InvalidConfig,
    Route,
)
from userspace_cni.kernel import limits, sysctl, veth
from userspace_cni.kernel.bridges import has_ports
from userspace_cni.kernel.links import Links
from userspace_cni.kernel.namespace import Namespace
from userspace_cni.kernel.tags import network_id
from userspace_cni_linux import bridge, inside, macvlan, routed, tap
from userspace_cni_linux.inside import TAGS
from userspace_cni_linux.sections import BridgeSection, MacvlanSection, TapSection

if TYPE_CHECKING:
    from collections.abc import Iterable
    from contextlib import ExitStack

    from userspace_cni.api import Attachment, CniError, EngineConf, IPInterface
    from userspace_cni.kernel.links import Link

_Section = TypeVar("_Section")


class LinuxHostEngine(HostEngine):
    """Ports of the kernel that this process runs on: veth, tap and macvlan."""

    info: ClassVar[EngineInfo] = EngineInfo(
        name="linux",
        api_version=(1, 0),
        summary="the Linux kernel: veth into a bridge or routed, tap, macvlan",
        interface_types=("veth", "tap", "macvlan"),
        network_types=("none", "bridge", "interface"),
        sections={"bridge": BridgeSection, "tap": TapSection, "macvlan": MacvlanSection},
        bandwidth=("veth", "tap", "macvlan"),
    )

    def problems(self, conf: EngineConf) -> Iterable[CniError]:
        """See :meth:`.HostEngine.problems`."""
        if conf.iftype != "veth" and conf.net_type != "none":
            reason = (
                "the other end of a tap is an application in the container, not a network"
                if conf.iftype == "tap"
                else "a macvlan is connected by its master alone"
            )
            yield InvalidConfig(
                "host.netType",
                f'expected "none" with iftype {conf.iftype}, got "{conf.net_type}"',
                f"leave out netType and bridge: {reason}",
            )
        elif conf.net_type == "bridge" and _section(conf, BridgeSection) is None:
            yield _no_bridge()

    def outline(self, conf: EngineConf) -> HostPort:  # noqa: ARG002
        """See :meth:`.HostEngine.outline`. Every port is a kernel interface."""
        return HostPort(name="")

    def status(self, conf: EngineConf) -> None:
        """See :meth:`.HostEngine.status`."""
        if conf.iftype == "tap":
            tap.require_device()
        with Links() as links:
            try:
                if conf.iftype == "macvlan":
                    macvlan.require_master(links, conf.section(MacvlanSection))
                elif conf.net_type == "bridge":
                    section = _bridge_section(conf)
                    # A missing bridge that the engine may create is not a problem.
                    if not section.create or links.find(section.bridge_name) is not None:
                        bridge.require(links, section)
            except DataplaneError as error:
                raise DataplaneUnavailable(error.msg, error.details) from error

    def add(self, attachment: Attachment, conf: EngineConf, undo: ExitStack) -> HostPort:
        """See :meth:`.HostEngine.add`."""
        if conf.iftype == "tap":
            return _port_inside(tap.create(attachment, conf.section(TapSection), undo))
        with Links() as links:
            if conf.iftype == "macvlan":
                master, link = macvlan.create(links, attachment, conf.section(MacvlanSection), undo)
                return _port_inside(link, _told(master))
            with Namespace(attachment.netns) as container:
                if conf.net_type == "bridge":
                    section = _bridge_section(conf)
                    return self._add_bridged(links, container, attachment, section, undo)
                return self._add_alone(links, container, attachment, conf, undo)

    def switch_key(self, conf: EngineConf) -> str:  # noqa: ARG002
        """See :meth:`.HostEngine.switch_key`. A node has one kernel."""
        return ""

    def delete(self, attachment_id: str, conf: EngineConf, netns: str | None) -> None:
        """See :meth:`.HostEngine.delete`."""
        # The bridge to remove is the one that the port is in. If the port is already gone together
        # with its namespace, it is the one that the configuration names.
        section = _section(conf, BridgeSection)
        bridge_name = section.bridge_name if section else None
        with Links() as links:
            port = veth.find(links, attachment_id, TAGS)
            if port is not None:
                master = links.at(port.master) if port.master else None
                if master is not None:
                    bridge_name = master.name
                links.remove(port)  # also removes the container's end
                if master is not None and has_ports(master):
                    # The request that removes the last port removes the bridge. Checking this
                    # under the lock would serialize requests while the kernel removes ports.
                    bridge_name = None
            limits.remove(links, attachment_id, TAGS)
        if port is None and netns is not None:
            inside.remove(netns, attachment_id)
        if bridge_name is not None:
            self._remove_bridge(bridge_name)

    def check(self, attachment: Attachment, conf: EngineConf, port: HostPort) -> None:  # noqa: ARG002
        """See :meth:`.HostEngine.check`."""
        if conf.iftype != "veth":
            inside.check(attachment)
            limits.check_inside(attachment)
            return
        with Links() as links:
            link = veth.check(links, attachment, TAGS)
            if conf.net_type == "bridge":
                _check_bridged(links, link, attachment, _bridge_section(conf))
            elif conf.net_type == "interface":
                routed.check(links, link, attachment.wait_for_addresses().ips)
            limits.check(attachment, link.name, host_end=True)

    def attachments(self, network: str, conf: EngineConf) -> Iterable[str]:  # noqa: ARG002
        """See :meth:`.HostEngine.attachments`.

        Taps and macvlans are not listed: they exist only in the container's namespace and
        disappear with it.
        """
        id_ = network_id(network)
        with Links() as links:
            found = [TAGS.parse(link.alias) for link in links.all()]
        return [tag.id for tag in found if tag is not None and tag.network == id_]

    def restore(
        self, attachment: Attachment, conf: EngineConf, port: HostPort, undo: ExitStack
    ) -> HostPort:
        """See :meth:`.HostEngine.restore`.

        An existing veth pair is kept. A tap or macvlan that the container has renamed is not
        created again, because undoing that would remove the renamed interface.
        """
        if conf.iftype != "veth":
            limits.mend_inside(attachment, TAGS)
            with suppress(CheckFailed):
                self.check(attachment, conf, port)
                return port
            inside.require_gone(attachment)
        with Links() as links:
            link = veth.find(links, attachment.id, TAGS) if conf.iftype == "veth" else None
            if link is None:
                return super().restore(attachment, conf, port, undo)
            # Taking the port down and out of its bridge removes its former VLANs and routes.
            links.change(link, master=0, up=False)
            if conf.net_type == "bridge":
                self._join_again(links, link, attachment, _bridge_section(conf), undo)
            limits.apply(attachment, link.name, TAGS, host_end=True)
            with Namespace(attachment.netns) as container:
                veth.activate(links, container, attachment, TAGS)
            if conf.net_type == "interface":
                routed.configure(links, link.name, attachment.wait_for_addresses().ips)
        return port

    def _join_again(
        self,
        links: Links,
        link: Link,
        attachment: Attachment,
        section: BridgeSection,
        undo: ExitStack,
    ) -> None:
        addresses = _gateways(attachment) if section.gateway else ()
        with self.context.lock(bridge.lock_name(section.bridge_name)):
            master = bridge.ensure(links, section, undo, self._remove_bridge)
            bridge.provide_gateways(links, master, section, addresses)
            links.change(link, master=master.index)
        bridge.configure_port(links, link.name, section)

    def _add_bridged(
        self,
        links: Links,
        container: Namespace,
        attachment: Attachment,
        section: BridgeSection,
        undo: ExitStack,
    ) -> HostPort:
        there = links.find(section.bridge_name) if section.gateway else None
        if there is not None and not bridge.is_ours(there):
            # The check under the lock needs the addresses; wait for IPAM before taking the lock.
            _gateways(attachment)
        with self.context.lock(bridge.lock_name(section.bridge_name)):
            master = bridge.ensure(links, section, undo, self._remove_bridge)
            if section.gateway and not bridge.is_ours(master):
                # Check before adding the port, which could change the bridge's MAC address.
                addresses = _gateways(attachment)
                bridge.require_gateways(links, master, section, addresses)
            mtu = attachment.mtu or master.mtu
            # From here on the port keeps the bridge from being removed.
            name = veth.create(
                links, container, attachment, mtu=mtu, tags=TAGS, undo=undo, master=master
            )
        bridge.configure_port(links, name, section)
        _limit(attachment, name, undo)
        veth.activate(links, container, attachment, TAGS)
        routes = _default_routes(attachment) if section.default_route else ()
        if section.gateway:
            addresses = _gateways(attachment)
            if bridge.is_ours(master):
                # The port keeps the bridge; the lock is for creating a VLAN sub-interface.
                lock = self.context.lock(bridge.lock_name(section.bridge_name))
                with lock if section.vlan_id is not None else nullcontext():
                    bridge.provide_gateways(links, master, section, addresses)
            sysctl.forward({address.version for address in addresses})
        return HostPort(
            name=name,
            mac=attachment.mac_for("container"),
            mtu=mtu,
            interfaces=(_told(master), _host_end(attachment, name, mtu)),
            routes=routes,
        )

    def _add_alone(
        self,
        links: Links,
        container: Namespace,
        attachment: Attachment,
        conf: EngineConf,
        undo: ExitStack,
    ) -> HostPort:
        point_to_point = conf.net_type == "interface"
        mtu = attachment.mtu or veth.DEFAULT_MTU
        name = veth.create(links, container, attachment, mtu=mtu, tags=TAGS, undo=undo)
        sysctl.ignore_router_advertisements(name)
        if point_to_point:
            sysctl.trust_own_addresses(name)
        _limit(attachment, name, undo)
        veth.activate(links, container, attachment, TAGS)
        if point_to_point:
            ips = attachment.wait_for_addresses().ips
            routed.require_gateways(ips)
            routed.configure(links, name, ips)
        return HostPort(
            name=name,
            mac=attachment.mac_for("container"),
            mtu=mtu,
            point_to_point=point_to_point,
            interfaces=(_host_end(attachment, name, mtu),),
        )

    def _remove_bridge(self, name: str) -> None:
        with self.context.lock(bridge.lock_name(name)), Links() as links:
            bridge.remove_if_unused(links, name)


def _limit(attachment: Attachment, host_end: str, undo: ExitStack) -> None:
    """Set the rate limits on the host's end, where the container cannot remove them."""
    if attachment.bandwidth is not None:
        undo.callback(_lift, attachment.id)
        limits.apply(attachment, host_end, TAGS, host_end=True)


def _lift(attachment_id: str) -> None:
    with Links() as links:
        limits.remove(links, attachment_id, TAGS)


def _section(conf: EngineConf, kind: type[_Section]) -> _Section | None:
    return next((value for value in conf.sections.values() if isinstance(value, kind)), None)


def _bridge_section(conf: EngineConf) -> BridgeSection:
    section = _section(conf, BridgeSection)
    if section is None:
        raise _no_bridge()
    return section


def _no_bridge() -> InvalidConfig:
    return InvalidConfig(
        "host.bridge.bridgeName",
        'missing, and netType "bridge" needs it',
        'for example: "bridge": {"bridgeName": "br0"}',
    )


def _gateways(attachment: Attachment) -> tuple[IPInterface, ...]:
    return bridge.gateways(attachment.wait_for_addresses().ips, "host.bridge.gateway")


def _default_routes(attachment: Attachment) -> tuple[Route, ...]:
    """Return a default route for each address family without a default route from IPAM."""
    addresses = attachment.wait_for_addresses()
    gateways = bridge.gateways(addresses.ips, "host.bridge.defaultRoute")
    given = {route.dst.version for route in addresses.routes if route.dst.prefixlen == 0}
    routes: dict[int, Route] = {}
    for gateway in gateways:
        if gateway.version not in given | routes.keys():
            everything = type(gateway.network)((0, 0))
            routes[gateway.version] = Route(dst=everything, gw=gateway.ip)
    return tuple(routes.values())


def _check_bridged(
    links: Links, link: Link, attachment: Attachment, section: BridgeSection
) -> None:
    master = links.at(link.master) if link.master else None
    if master is None or master.name != section.bridge_name:
        raise CheckFailed(
            f"the host's interface {link.name} is not a port of its bridge",
            f"expected {section.bridge_name}, found {master.name if master else 'none'}; mend it "
            f"with: ip link set {link.name} master {section.bridge_name}",
        )
    if not master.up:
        raise CheckFailed(
            f"the bridge {master.name} is down", f"set it up with: ip link set {master.name} up"
        )
    bridge.check_port(link, section)
    if section.gateway:
        addresses = _gateways(attachment)
        bridge.check_gateways(links, master, section, addresses)


def _port_inside(link: Link, *interfaces: Interface) -> HostPort:
    return HostPort(name=link.name, mac=link.mac, mtu=link.mtu, interfaces=interfaces)


def _told(link: Link) -> Interface:
    return Interface(name=link.name, mac=link.mac, mtu=link.mtu)


def _host_end(attachment: Attachment, name: str, mtu: int) -> Interface:
    return Interface(name=name, mac=attachment.mac_for("host"), mtu=mtu)
