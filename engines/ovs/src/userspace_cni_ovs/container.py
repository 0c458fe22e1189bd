"""The container engine ``dpdk``: an application with a DPDK driver of its own for the port.

The names ``ovs`` and ``ovs-dpdk`` mean the same; the predecessor called it so.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from userspace_cni.api import ContainerEngine, EngineInfo, Handoff, InvalidConfig
from userspace_cni_ovs.sections import MemifSection, VhostSection

if TYPE_CHECKING:
    from collections.abc import Iterable

    from userspace_cni.api import Attachment, CniError, EngineConf, HostPort


class DpdkContainerEngine(ContainerEngine):
    """The application configures itself, from what it is handed over."""

    info: ClassVar[EngineInfo] = EngineInfo(
        name="dpdk",
        api_version=(1, 0),
        aliases=("ovs", "ovs-dpdk"),
        summary="a DPDK application: virtio-user or memif",
        interface_types=("vhostuser", "memif"),
        network_types=("interface", "none"),
        sections={"vhost": VhostSection, "memif": MemifSection},
    )
    where: ClassVar[Literal["node", "container"]] = "container"

    def problems(self, conf: EngineConf, port: HostPort | None) -> Iterable[CniError]:
        """See :meth:`.ContainerEngine.problems`."""
        if port is None:
            return
        if port.vhost_user is not None:
            mode = conf.section(VhostSection).mode
            if mode is not None and mode != port.vhost_user.mode:
                yield InvalidConfig(
                    "container.vhost.mode",
                    f"expected {port.vhost_user.mode!r}, the opposite of the host's, got {mode!r}",
                    "leave it out",
                )
        elif port.memif is not None:
            section = conf.section(MemifSection)
            server = section.is_server
            if server is not None and server != (port.memif.role == "server"):
                yield InvalidConfig(
                    "container.memif.role",
                    f"expected {port.memif.role!r}, the opposite of the host's, "
                    f"got {section.role!r}",
                    "leave it out",
                )
        else:
            yield InvalidConfig(
                "container.engine",
                f"'dpdk' cannot use a port of iftype {conf.iftype}, which is a kernel interface",
                "leave container.engine out",
            )

    def prepare(self, attachment: Attachment, conf: EngineConf, port: HostPort) -> Handoff:
        """See :meth:`.ContainerEngine.prepare`."""
        for problem in self.problems(conf, port):
            raise problem
        return Handoff(
            interface=attachment.interface,
            iftype=conf.iftype,
            net_type=conf.net_type,
            mac=port.mac,
            mtu=port.mtu,
            point_to_point=port.point_to_point,
            ips=attachment.ips,
            routes=attachment.routes,
            dns=attachment.dns,
            memif=port.memif,
            vhost_user=port.vhost_user,
        )

    def add(self, handoff: Handoff) -> None:
        """Do nothing: the application reads *handoff* itself."""

    def check(self, handoff: Handoff) -> None:
        """Do nothing: an application may come and go as it likes."""
