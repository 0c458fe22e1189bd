"""The container engine ``dpdk``: an application that is given a socket, or arguments, for its port.

Such an application has its own driver, for example DPDK's for memif and virtio-user. Nothing is
configured for it: it reads the hand-over, or the agent converts the hand-over to arguments. The
engine works with every host engine and is therefore part of core.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from attrs import field, frozen

from userspace_cni.api import (
    ContainerEngine,
    EngineInfo,
    Handoff,
    InvalidConfig,
    Kernel,
    Memif,
    VhostUser,
    sections,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from userspace_cni.api import Attachment, CniError, EngineConf, HostPort

NAME = "dpdk"


@frozen(kw_only=True)
class VhostSection(sections.VhostSection):
    """``container.vhost``: only *mode* is compared with the host's part."""

    mode: Literal["client", "server"] | None = None


@frozen(kw_only=True)
class MemifSection(sections.MemifSection):
    """``container.memif``: only *role* is compared with the host's part."""

    # Networks repeat values of the host's end here.
    secret: str = field(default="", repr=False)
    buffer_size: int = 2048
    queues: int | None = None


class ApplicationEngine(ContainerEngine):
    """An application that configures itself from its hand-over."""

    info: ClassVar[EngineInfo] = EngineInfo(
        name=NAME,
        api_version=(1, 0),
        aliases=("ovs", "ovs-dpdk"),  # the predecessor's names
        summary="an application with its own driver, such as DPDK's virtio-user and memif",
        interface_types=("vhostuser", "memif"),
        network_types=("interface", "none"),
        sections={"vhost": VhostSection, "memif": MemifSection},
    )
    where: ClassVar[Literal["node", "container"]] = "container"

    def problems(self, conf: EngineConf, port: HostPort | None) -> Iterable[CniError]:
        """See :meth:`.ContainerEngine.problems`."""
        if port is None:
            return
        match port.port:
            case VhostUser(mode=role):
                given = conf.section(VhostSection).mode
                if given is not None and given != role:
                    yield _same_role("container.vhost.mode", role, given)
            case Memif(role=role):
                section = conf.section(MemifSection)
                if section.is_server is not None and section.is_server != (role == "server"):
                    yield _same_role("container.memif.role", role, section.role)
            case Kernel():
                yield InvalidConfig(
                    "container.engine",
                    f"{NAME!r} cannot use a port of iftype {conf.iftype}, which is a kernel "
                    "interface",
                    "leave container.engine out",
                )

    def prepare(self, attachment: Attachment, conf: EngineConf, port: HostPort) -> Handoff:
        """See :meth:`.ContainerEngine.prepare`."""
        for problem in self.problems(conf, port):
            raise problem
        addresses = attachment.wait_for_addresses()
        return Handoff(
            interface=attachment.interface,
            iftype=conf.iftype,
            net_type=conf.net_type,
            mac=port.mac,
            mtu=port.mtu,
            point_to_point=port.point_to_point,
            ips=addresses.ips,
            routes=addresses.routes,
            dns=addresses.dns,
            port=port.port,
        )

    def add(self, handoff: Handoff) -> None:
        """Do nothing: the application reads *handoff* itself."""

    def check(self, handoff: Handoff) -> None:
        """Do nothing: an application may start and end at any time."""


def _same_role(path: str, expected: str, given: str | None) -> InvalidConfig:
    return InvalidConfig(
        path, f"expected {expected!r}, the opposite of the host's, got {given!r}", "leave it out"
    )
