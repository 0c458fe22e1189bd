"""Plans: validated requests with their engines, made before anything is changed."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

from attrs import evolve, frozen

from userspace_cni import config, handover, registry
from userspace_cni.api import (
    Attachment,
    ContainerEngine,
    EngineConf,
    EngineInfo,
    Handoff,
    HostEngine,
    HostPort,
)
from userspace_cni.cni.errors import CniError, Problems
from userspace_cni.cni.request import Caller, Request, Target
from userspace_cni.config import Asked, NetConf
from userspace_cni.log import logger
from userspace_cni.runtime.engines import Engines
from userspace_cni.runtime.shared import UNUSABLE
from userspace_cni.store import Record, State


@frozen(kw_only=True)
class Plan:
    """A validated request with the engines that its network names."""

    target: Target
    conf: NetConf
    asked: Asked
    host: HostEngine
    host_conf: EngineConf
    container: ContainerEngine
    container_conf: EngineConf
    #: The name of the IPAM plugin; empty if the network has none.
    ipam_type: str
    #: Writes the hand-over to the pod's annotations, like :func:`.handover.publish`.
    annotate: Callable[[Attachment, Handoff, NetConf, str, ExitStack], None] | None = None
    #: Path of the pod's volume if that is the shared directory, otherwise empty.
    volume: str = ""

    def record(self, caller: Caller, state: State = "adding", namespace: str = "") -> Record:
        """Return the attachment's record for the store, before anything is changed."""
        target = self.target
        return Record(
            network=target.network,
            container_id=target.container_id,
            ifname=target.ifname,
            netns=target.netns,
            namespace=namespace,
            engine=self.host_conf.engine,
            state=state,
            config=dict(target.config),
            args=target.args,
            path=caller.path,
            directory=self.volume,
            container_dir=self.conf.container_dir or "",
        )

    def handoff(self, attachment: Attachment, port: HostPort) -> Handoff:
        """Return the container's hand-over for *port*."""
        return self.container.prepare(attachment, self.container_conf, port)


class Planner:
    """Makes plans."""

    def __init__(self, engines: Engines) -> None:
        """Plan with the host engines of *engines*."""
        self._engines = engines

    def plan(self, request: Request) -> Plan:
        """Return the plan for *request*, which is checked here and nowhere else.

        Raises:
            CniError: all problems of the configuration together; the switch is not contacted.

        """
        return self._plan(request.target, request.command)

    def recorded(self, record: Record, otherwise: Target | None = None) -> Plan:
        """Return the plan of a recorded ADD.

        Because an ADD has succeeded with the configuration, only errors that make it unusable are
        raised.

        Args:
            record: the attachment.
            otherwise: planned instead if the recorded configuration has become unusable.

        Raises:
            CniError: if the configuration is unusable and there is no other.

        """
        try:
            return self._plan(record.target)
        except CniError as error:
            if otherwise is None or error.code not in UNUSABLE:
                raise
            logger.warning("the recorded configuration is no longer usable: %s", error)
            return self._plan(otherwise)

    def _plan(self, target: Target, command: str = "") -> Plan:
        """Implement :meth:`plan` or, without a *command*, :meth:`recorded`."""
        problems = Problems()
        conf = config.load(target, problems)
        asked = config.ask(conf, target, problems, command)
        if command in ("ADD", "STATUS"):
            with problems:
                handover.require_possible(conf)
        host_class: type[HostEngine] | None = None
        host: HostEngine | None = None
        host_conf: EngineConf | None = None
        container_class: type[ContainerEngine] | None = None
        container_conf: EngineConf | None = None
        host_name = ""
        with problems:
            host_name = config.engine_name(conf, "host")
            host_class = registry.host_engine(host_name)
        if host_class is not None or "engine" in conf.container:
            info = host_class.info if host_class else None
            with problems:
                name = config.engine_name(conf, "container", info)
                container_class = registry.container_engine(name)
        if host_class is not None:
            with problems:
                host_conf = config.engine_conf(conf.host, "host", host_class.info, {})
                host_conf = evolve(host_conf, mtu=conf.mtu, bandwidth=asked.bandwidth)
                config.require_bandwidth(conf, asked, host_class.info, host_conf.iftype)
        if container_class is not None:
            defaults = _container_defaults(conf, container_class.info, host_conf)
            with problems:
                container_conf = config.engine_conf(
                    conf.container, "container", container_class.info, defaults
                )
        if host_class is not None:
            with problems:
                host = self._engines.get(host_name, host_class)
        if command:
            _judge(problems, host, host_conf, container_class, container_conf)
        problems.settle()
        assert host is not None  # noqa: S101  the problems were told
        assert host_conf is not None  # noqa: S101
        assert container_class is not None  # noqa: S101
        assert container_conf is not None  # noqa: S101
        return Plan(
            target=target,
            conf=conf,
            asked=asked,
            host=host,
            host_conf=host_conf,
            container=registry.make(container_class),
            container_conf=container_conf,
            ipam_type=conf.ipam_type,
        )


def _container_defaults(
    conf: NetConf, info: EngineInfo, host_conf: EngineConf | None
) -> dict[str, str]:
    """Return the defaults for the container's part of the network."""
    asked, known = conf.host.get("iftype"), info.interface_types
    return {
        # Avoid a second error for the container if the host's iftype is already wrong.
        "iftype": str(asked) if host_conf or asked in known else known[0],
        # With IPAM there is always an address.
        "netType": "interface" if conf.ipam_type else "none",
    }


def _judge(
    problems: Problems,
    host: HostEngine | None,
    host_conf: EngineConf | None,
    container: type[ContainerEngine] | None,
    container_conf: EngineConf | None,
) -> None:
    """Add the engines' own validation errors, as far as their parts are known."""
    port: HostPort | None = None
    if host is not None and host_conf is not None:
        problems.add(*host.problems(host_conf))
        with problems:
            port = host.outline(host_conf)
    if container is not None and container_conf is not None:
        with problems:
            problems.add(*registry.make(container).problems(container_conf, port))
