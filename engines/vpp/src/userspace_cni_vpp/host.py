"""Host engine ``vpp``: controls a running VPP through its binary API."""

from __future__ import annotations

import re
import select
from contextlib import suppress
from typing import TYPE_CHECKING, ClassVar

from attrs import evolve

from userspace_cni.api import (
    CheckFailed,
    DataplaneUnavailable,
    EngineInfo,
    HostEngine,
    HostPort,
    Interface,
    InvalidConfig,
    Lifeline,
    Memif,
    VhostUser,
)
from userspace_cni.kernel import limits, veth
from userspace_cni_vpp import bridge, kernel, ports, routed, tags
from userspace_cni_vpp.connection import Refused, connect, disconnect
from userspace_cni_vpp.sections import (
    BridgeSection,
    InterfaceSection,
    MemifSection,
    VhostSection,
    VppSection,
)
from userspace_cni_vpp.settings import VppSettings
from userspace_cni_vpp.switch import Switch

if TYPE_CHECKING:
    from collections.abc import Iterable
    from contextlib import ExitStack

    from userspace_cni.api import Attachment, CniError, EngineConf
    from userspace_cni_vpp.switch import Port

_POOL = re.compile(
    r"^\S+ +\d+ +\d+ +\d+ +\d+ +(?P<total>\d+) +(?P<free>\d+) +(?P<cached>\d+)", re.MULTILINE
)


class VppHostEngine(HostEngine):
    """Ports on a VPP instance."""

    info: ClassVar[EngineInfo] = EngineInfo(
        name="vpp",
        api_version=(1, 0),
        summary="VPP: memif, vhost-user, tap and veth, bridged or routed",
        interface_types=("memif", "vhostuser", "veth", "tap"),
        network_types=("bridge", "interface", "none"),
        sections={
            "bridge": BridgeSection,
            "interface": InterfaceSection,
            "memif": MemifSection,
            "vhost": VhostSection,
            "vpp": VppSection,
        },
        settings=VppSettings,
        container_engines={"vhostuser": "dpdk", "veth": "linux", "tap": "linux"},
        bandwidth=("veth", "tap"),
    )

    def problems(self, conf: EngineConf) -> Iterable[CniError]:
        """See :meth:`.HostEngine.problems`."""
        bridged, routed_by = conf.section(BridgeSection), conf.section(InterfaceSection)
        if conf.net_type == "bridge":
            yield from bridge.problems(conf, "host")
        else:
            for key, value in (("vlanId", bridged.vlan_id), ("gateway", bridged.gateway)):
                if value:
                    yield InvalidConfig(
                        f"host.bridge.{key}",
                        f'needs netType "bridge", got "{conf.net_type}"',
                        'set netType to "bridge", or leave it out',
                    )
        if conf.net_type != "interface" and routed_by != InterfaceSection():
            yield InvalidConfig(
                "host.interface",
                f'needs netType "interface", got "{conf.net_type}"',
                'set netType to "interface", or leave it out',
            )
        if conf.iftype == "memif" and conf.net_type == "bridge" and not ports.has_mac(conf):
            yield InvalidConfig(
                "host.memif.mode",
                f'a bridge needs mode "ethernet", got "{conf.section(MemifSection).mode}"',
                'use netType "interface", which routes',
            )

    def outline(self, conf: EngineConf) -> HostPort:
        """See :meth:`.HostEngine.outline`."""
        memif, vhost = conf.section(MemifSection), conf.section(VhostSection)
        match conf.iftype:
            case "memif":
                offered = Memif(role=memif.peer_role, mode=memif.mode, socket="")
                return HostPort(name="", port=offered)
            case "vhostuser":
                return HostPort(name="", port=VhostUser(mode=vhost.peer_mode, socket=""))
            case _:
                return HostPort(name="")

    def status(self, conf: EngineConf) -> None:
        """See :meth:`.HostEngine.status`."""
        switch = self._switch(conf)
        switch.api.require(*ports.REQUESTS[conf.iftype])
        if conf.iftype == "tap":
            kernel.require_vhost_net()
        _require_buffers(switch, conf)

    def add(self, attachment: Attachment, conf: EngineConf, undo: ExitStack) -> HostPort:
        """See :meth:`.HostEngine.add`."""
        switch = self._switch(conf)
        switch.api.require(*ports.REQUESTS[conf.iftype])
        ports.require_new(attachment, conf, switch)
        return self._make(attachment, conf, switch, undo)

    def delete(self, attachment_id: str, conf: EngineConf, netns: str | None) -> None:
        """See :meth:`.HostEngine.delete`."""
        self._remove(attachment_id, conf)
        if conf.iftype in self.info.bandwidth:
            limits.remove_inside(netns, attachment_id, kernel.TAGS)
        if conf.iftype == "veth":
            veth.remove(attachment_id, kernel.TAGS)

    def check(self, attachment: Attachment, conf: EngineConf, port: HostPort) -> None:
        """See :meth:`.HostEngine.check`. A peer that has not connected yet is fine."""
        switch = self._switch(conf)
        found = switch.named(port.name)
        if found is None or found.tag != tags.of(attachment):
            raise CheckFailed(
                f"the interface {port.name} is gone from VPP, or has lost its tag",
                f"expected the tag {tags.of(attachment)!r}; DEL and ADD create it again",
            )
        if not found.up:
            raise CheckFailed(
                f"the interface {found.name} is down",
                f"set it up with: vppctl set interface state {found.name} up",
            )
        mac = tags.host_mac(attachment.id).hex(":")
        if ports.has_mac(conf) and found.mac != mac:
            raise CheckFailed(
                f"the interface {found.name} has another MAC address",
                f"mend it with: vppctl set interface mac address {found.name} {mac}",
            )
        mtu = attachment.mtu or ports.MTU
        if found.mtu != mtu:
            raise CheckFailed(
                f"the interface {found.name} has another MTU", f"expected {mtu}, found {found.mtu}"
            )
        ports.check(attachment, conf, port)
        if conf.net_type == "bridge":
            bridge.check(switch, found, attachment, *bridge.section_of(conf))
        elif conf.net_type == "interface":
            ips = attachment.wait_for_addresses().ips
            routed.check(switch, found, ips, conf.section(InterfaceSection))

    def attachments(self, network: str, conf: EngineConf) -> Iterable[str]:
        """See :meth:`.HostEngine.attachments`."""
        network_id = tags.network_id(network)
        found = self._switch(conf).ports(containing=[network_id.encode()])
        parsed = [tags.parse(port.tag) for port in found]
        return [tag.id for tag in parsed if tag is not None and tag.network == network_id]

    def switch_key(self, conf: EngineConf) -> str:
        """See :meth:`.HostEngine.switch_key`. The key is the API socket's path."""
        settings: VppSettings = self.context.settings
        return conf.section(VppSection).api_socket or str(settings.api_socket)

    def generation(self, conf: EngineConf) -> str:
        """See :meth:`.HostEngine.generation`. It identifies the connection, which ends with VPP."""
        api = self._switch(conf).api
        api.call("control_ping")
        return api.id

    def lifeline(self, conf: EngineConf) -> Lifeline | None:
        """See :meth:`.HostEngine.lifeline`. It is a duplicate of the API connection."""
        return Lifeline(self._switch(conf).api.duplicate(), select.POLLRDHUP)

    def restore(
        self, attachment: Attachment, conf: EngineConf, port: HostPort, undo: ExitStack
    ) -> HostPort:
        """See :meth:`.HostEngine.restore`. Names derive from the attachment's ID and stay."""
        switch = self._switch(conf)
        if conf.iftype in self.info.bandwidth:
            limits.mend_inside(attachment, kernel.TAGS)
        found = switch.named(port.name)
        if found is not None and found.tag == tags.of(attachment):
            # Keep the interface if repairing it is enough, because the peer is connected to it.
            with suppress(CheckFailed, Refused):
                self._mend(attachment, conf, switch, found)
                self._configure(attachment, conf, switch, found.index)
                self.check(attachment, conf, port)
                return evolve(port, generation=switch.api.id)
        self._remove(attachment.id, conf)
        return self._make(attachment, conf, switch, undo, again=True)

    def close(self) -> None:
        """See :meth:`.HostEngine.close`."""
        disconnect()

    # -- steps

    def _make(
        self,
        attachment: Attachment,
        conf: EngineConf,
        switch: Switch,
        undo: ExitStack,
        *,
        again: bool = False,
    ) -> HostPort:
        # The undo step finds interfaces by tag, so it also works if creation stops half way.
        undo.callback(self._remove, attachment.id, conf)
        index = ports.create(attachment, conf, switch, undo, again=again)
        self._configure(attachment, conf, switch, index)
        return self._port(attachment, conf, switch, index)

    def _configure(
        self, attachment: Attachment, conf: EngineConf, switch: Switch, index: int
    ) -> None:
        """Set the MTU of interface *index*, bridge or route it as *conf* says, and set it up."""
        switch.set_mtu(index, attachment.mtu or ports.MTU)
        if conf.net_type == "bridge":
            section, domain = bridge.section_of(conf)
            gateways = []
            if section.gateway:
                gateways = bridge.gateways(attachment.wait_for_addresses().ips)
            with self.context.lock(bridge.lock_name(domain)):
                bridge.join(switch, index, section, domain)
                if gateways:
                    bridge.provide_gateways(switch, section, domain, gateways)
        elif conf.net_type == "interface":
            routing, ips = conf.section(InterfaceSection), attachment.wait_for_addresses().ips
            routed.require_gateways(ips, routing)
            mac = attachment.mac_for("container") if ports.has_mac(conf) else ""
            with self.context.lock(routed.LOCK):
                routed.configure(switch, index, ips, routing, mac)
        switch.up(index)

    def _mend(self, attachment: Attachment, conf: EngineConf, switch: Switch, found: Port) -> None:
        """Repair what :meth:`_configure` does not set because a new port has it right."""
        mac = tags.host_mac(attachment.id)
        if ports.has_mac(conf) and found.mac != mac.hex(":"):
            switch.set_mac(found.index, mac)
        if conf.net_type == "bridge":
            section, domain = bridge.section_of(conf)
            with self.context.lock(bridge.lock_name(domain)):
                bridge.mend(switch, section, domain)

    def _remove(self, attachment_id: str, conf: EngineConf) -> None:
        """Remove the attachment's interface and the engine's shared objects that are now unused."""
        switch = self._switch(conf)
        found = ports.find(switch, attachment_id, conf)
        if conf.net_type == "interface":
            with self.context.lock(routed.LOCK):
                for port in found:
                    routed.clean_up(switch, port)
                    switch.remove(port)
                routed.remove_unused(switch, conf.section(InterfaceSection).vrf)
        for port in found if conf.net_type != "interface" else ():
            switch.remove(port)
        if conf.iftype == "memif" and not found:
            # An ADD that was killed before it created the interface leaves the socket behind.
            switch.remove_memif_socket(tags.number(attachment_id))
        if conf.net_type == "bridge":
            section, domain = bridge.section_of(conf)
            with self.context.lock(bridge.lock_name(domain)):
                bridge.remove_if_unused(switch, section, domain)

    def _port(
        self, attachment: Attachment, conf: EngineConf, switch: Switch, index: int
    ) -> HostPort:
        name = ports.name_of(attachment.id, conf) or switch.port(index).name
        mtu = attachment.mtu or ports.MTU
        mac = tags.host_mac(attachment.id).hex(":") if ports.has_mac(conf) else ""
        return HostPort(
            name=name,
            mac=attachment.mac_for("container") if ports.has_mac(conf) else "",
            mtu=mtu,
            generation=switch.api.id,
            point_to_point=conf.net_type == "interface",
            interfaces=(Interface(name=name, mac=mac, mtu=mtu),),
            port=ports.port_of(attachment, conf),
        )

    # -- settings

    def _switch(self, conf: EngineConf) -> Switch:
        settings: VppSettings = self.context.settings
        section = conf.section(VppSection)
        return Switch(
            connect(
                section.api_socket or str(settings.api_socket),
                settings.timeout,
                section.api_dir or str(settings.api_dir),
            )
        )


def _require_buffers(switch: Switch, conf: EngineConf) -> None:
    """Raise DataplaneUnavailable if VPP lacks free packet buffers for one more port."""
    needed = conf.section(MemifSection).ring_size if conf.iftype == "memif" else 256
    shown = switch.api.call("cli_inband", cmd="show buffers").reply
    free = [int(pool["free"]) + int(pool["cached"]) for pool in _POOL.finditer(shown)]
    if free and max(free) < needed:
        raise DataplaneUnavailable(
            f"VPP has {max(free)} packet buffers left, and the next port may need {needed}",
            "raise buffers-per-numa in the buffers section of VPP's startup.conf, and restart it",
        )
