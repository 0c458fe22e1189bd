"""Host engine ``ovs``, also called ``ovs-dpdk``: controls Open vSwitch through its database."""

from __future__ import annotations

import os
import select
import stat
from contextlib import suppress
from typing import TYPE_CHECKING, ClassVar

from attrs import evolve

from userspace_cni.api import (
    CheckFailed,
    CniError,
    DataplaneError,
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
from userspace_cni.kernel.links import Links
from userspace_cni.kernel.tags import short_name
from userspace_cni_ovs import kernel, ports, process, switch, tags
from userspace_cni_ovs.ovsdb import Pool, mapping, members, optional
from userspace_cni_ovs.ports import DPDK, MTU, PortSpec
from userspace_cni_ovs.sections import BridgeSection, MemifSection, OvsSection, VhostSection
from userspace_cni_ovs.settings import OvsSettings

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from contextlib import AbstractContextManager, ExitStack

    from userspace_cni.api import Attachment, EngineConf, EngineContext
    from userspace_cni_ovs.ovsdb import Ovsdb, Row
    from userspace_cni_ovs.process import Process

_VHOST_CLIENT = "dpdkvhostuserclient"
_VHOST_SERVER = "dpdkvhostuser"
_RESTART = "see ovs-vswitchd.log for the cause, and restart ovs-vswitchd: DPDK cannot retry"
_GRANTED = 0o660  # the mode that SharedDirectory.grant gives


class OvsHostEngine(HostEngine):
    """Ports on the bridges of an Open vSwitch instance."""

    info: ClassVar[EngineInfo] = EngineInfo(
        name="ovs",
        api_version=(1, 0),
        aliases=("ovs-dpdk",),
        summary="Open vSwitch: vhost-user and memif through DPDK, veth and tap",
        interface_types=("vhostuser", "memif", "veth", "tap"),
        network_types=("bridge", "none"),
        sections={
            "bridge": BridgeSection,
            "vhost": VhostSection,
            "memif": MemifSection,
            "ovs": OvsSection,
        },
        settings=OvsSettings,
        container_engines={"vhostuser": "dpdk", "memif": "dpdk", "veth": "linux", "tap": "linux"},
        bandwidth=("vhostuser", "memif", "veth", "tap"),
    )

    def problems(self, conf: EngineConf) -> Iterable[CniError]:
        """See :meth:`.HostEngine.problems`."""
        return ports.problems(conf)

    def outline(self, conf: EngineConf) -> HostPort:
        """See :meth:`.HostEngine.outline`."""
        match conf.iftype:
            case "memif":
                return HostPort(name="", port=Memif(role="client", socket=""))
            case "vhostuser":
                mode = conf.section(VhostSection).peer_mode
                return HostPort(name="", port=VhostUser(mode=mode, socket=""))
            case _:
                return HostPort(name="")

    def status(self, conf: EngineConf) -> None:
        """See :meth:`.HostEngine.status`."""
        section = ports.bridge_section(conf)
        with self._database(conf) as db:
            switch.require_alive(db, self._settings.timeout)
            _require_features(switch.settings(db), conf)
            bridge = switch.find_bridge(db, section.name)
            if bridge is None and not section.create:
                raise DataplaneUnavailable(
                    f"the bridge {section.name} does not exist, and host.bridge.create is not set",
                    f"make it with: ovs-vsctl add-br {section.name} -- set bridge {section.name} "
                    f"datapath_type={section.datapath_type}",
                )
            if bridge is not None:
                try:
                    switch.require_fit(bridge, needs_netdev=conf.iftype in DPDK)
                except DataplaneError as error:
                    raise DataplaneUnavailable(error.msg, error.details) from error

    def __init__(self, context: EngineContext) -> None:
        """See :meth:`.HostEngine.__init__`."""
        super().__init__(context)
        self._settings: OvsSettings = context.settings
        self._connections = Pool(context.settings)
        #: Generations of ovs-vswitchd that have recreated their ports.
        self._settled: set[str] = set()
        #: Pid files that have been held by a running ovs-vswitchd.
        self._seen: set[str] = set()

    def add(self, attachment: Attachment, conf: EngineConf, undo: ExitStack) -> HostPort:
        """See :meth:`.HostEngine.add`."""
        with self._database(conf) as db:
            found = self._process(conf)
            settings = _settings_for(db, conf)
            spec, port = _plan(attachment, conf, settings)
            if spec.bridge.datapath_type == "system" and spec.bridge.create:
                kernel.require_kernel_datapath()
            if conf.iftype == "veth":
                veth.create_for_switch(attachment, port.mtu, kernel.TAGS, undo)
            if conf.iftype in DPDK:
                self._prepare(attachment, conf, spec, settings)
            self._make(db, attachment, conf, spec, undo)
            self._share(attachment, conf, spec, settings)
        return self._made_by(found, port)

    def delete(self, attachment_id: str, conf: EngineConf, netns: str | None) -> None:
        """See :meth:`.HostEngine.delete`."""
        self._remove_port(attachment_id, conf, conf.section(BridgeSection).name)
        if conf.iftype == "vhostuser":
            self._discard_sockets(conf, short_name(attachment_id))
        if conf.iftype == "veth":
            veth.remove(attachment_id, kernel.TAGS)
        if conf.iftype not in DPDK:
            limits.remove_inside(netns, attachment_id, kernel.TAGS)

    def check(self, attachment: Attachment, conf: EngineConf, port: HostPort) -> None:
        """See :meth:`.HostEngine.check`. An application that has not connected yet is fine."""
        with self._database(conf) as db:
            settings = _settings_for(db, conf)
            spec, wanted = _plan(attachment, conf, settings)
            found = switch.find_port(db, attachment.id)
        if found is None:
            raise CheckFailed(
                f"the port {port.name} is gone from Open vSwitch, or has lost its tag",
                f"expected external_ids:{tags.ID}={attachment.id}; DEL and ADD create it again",
            )
        if spec.type == _VHOST_SERVER and (problem := _spoiled(found)):
            raise CheckFailed(problem, _RESTART)
        _compare(found, spec)
        _require_mtu(found, spec)
        if (
            isinstance(port.port, Memif)
            and isinstance(wanted.port, Memif)
            and wanted.port.rx_queues > port.port.rx_queues
        ):
            raise CheckFailed(
                f"the switch sends to {wanted.port.rx_queues} queues of the memif {port.name}, "
                f"which has {port.port.rx_queues}",
                "pmd-cpu-mask was changed; DEL and ADD create the port with more queues",
            )
        if conf.iftype == "veth":
            with Links() as links:
                veth.check(links, attachment, kernel.TAGS)
        if conf.iftype not in DPDK:
            limits.check_inside(attachment)
        if problem := self._problem_of_socket(attachment, conf, spec, settings):
            raise CheckFailed(
                f"no application can connect to the port {port.name}: {problem}",
                "ovs-vswitchd was restarted, or the socket was changed; the daemon repairs it, and "
                "so do DEL and ADD",
            )

    def attachments(self, network: str, conf: EngineConf) -> Iterable[str]:
        """See :meth:`.HostEngine.attachments`."""
        with self._database(conf) as db:
            return switch.attachments(db, network)

    def switch_key(self, conf: EngineConf) -> str:
        """See :meth:`.HostEngine.switch_key`. The key is the database's address."""
        return self._endpoint(conf)

    def generation(self, conf: EngineConf) -> str:
        """See :meth:`.HostEngine.generation`. It identifies the pid file of ovs-vswitchd.

        If the file is not visible from here, the generation is empty and only :meth:`check` notices
        a restart.
        """
        with self._database(conf) as db:
            switch.require_database(db)
            found = self._process(conf)
            if found is None:
                return ""
            if found.generation not in self._settled:
                # Until ovs-vswitchd has recreated its ports, the database describes the old ones.
                switch.require_alive(db, self._settings.timeout)
                self._settled.add(found.generation)
        return found.generation

    def lifeline(self, conf: EngineConf) -> Lifeline | None:
        """See :meth:`.HostEngine.lifeline`. It is a pidfd of ovs-vswitchd."""
        found = self._process(conf)
        if found is None or not found.pid:
            return None
        try:
            return Lifeline(os.pidfd_open(found.pid), select.POLLIN)
        except OSError as error:
            raise DataplaneUnavailable("ovs-vswitchd has just ended", str(error)) from error

    def restore(
        self,
        attachment: Attachment,
        conf: EngineConf,
        port: HostPort,  # noqa: ARG002  the port is planned anew from the configuration
        undo: ExitStack,
    ) -> HostPort:
        """See :meth:`.HostEngine.restore`. A veth pair is kept because the container uses it."""
        with self._database(conf) as db:
            found = self._process(conf)
            settings = _settings_for(db, conf)
            spec, wanted = _plan(attachment, conf, settings)
            there = switch.find_port(db, attachment.id)
            if spec.type == _VHOST_SERVER and there and (problem := _spoiled(there)):
                raise DataplaneError(problem, _RESTART)
            lost = _serves(spec) and not self._is_served(attachment, conf, spec, settings)
            if conf.iftype not in DPDK:
                limits.mend_inside(attachment, kernel.TAGS)
            if conf.iftype == "veth" and not veth.revive(attachment.id, kernel.TAGS):
                veth.create_for_switch(attachment, wanted.mtu, kernel.TAGS, undo)
                lost = True  # the switch still uses the old pair
            if lost or not _is_made(there, spec):
                # This also removes remains of the port, such as its QoS row.
                switch.remove_port(db, attachment.id, spec.bridge.name)
                if conf.iftype in DPDK:
                    self._prepare(attachment, conf, spec, settings)
                self._make(db, attachment, conf, spec, undo)
            if self._problem_of_socket(attachment, conf, spec, settings):
                self._share(attachment, conf, spec, settings)
        return self._made_by(found, wanted)

    def close(self) -> None:
        """See :meth:`.HostEngine.close`."""
        self._connections.close()

    # -- steps

    def _prepare(
        self, attachment: Attachment, conf: EngineConf, spec: PortSpec, settings: Row
    ) -> None:
        """Create the directory for the port's socket, and remove stale sockets from it."""
        user, group = _owner(conf)
        directory = attachment.directory
        directory.provide(user=user, group=group)
        # A killed switch leaves its sockets behind, and the new one could not create its own.
        if _serves(spec):
            directory.make_way(ports.socket_name(attachment, conf))
        if spec.type == _VHOST_SERVER:
            self.context.directory(self._vhost_sockets(conf, settings)).discard_stale(spec.name)

    def _make(
        self, db: Ovsdb, attachment: Attachment, conf: EngineConf, spec: PortSpec, undo: ExitStack
    ) -> None:
        """Add the port to the switch and wait until the switch has created it."""
        try:
            interface = switch.add_port(db, spec, needs_netdev=conf.iftype in DPDK)
        except DataplaneUnavailable:
            # The answer was lost, but the port may exist.
            undo.callback(self._remove_port, attachment.id, conf, spec.bridge.name)
            raise
        undo.callback(self._remove_port, attachment.id, conf, spec.bridge.name)
        switch.await_port(db, spec, interface, self._settings.timeout)
        if conf.iftype == "tap":
            kernel.move_tap(attachment, spec.name, attachment.mtu or MTU, undo)

    def _share(
        self, attachment: Attachment, conf: EngineConf, spec: PortSpec, settings: Row
    ) -> None:
        """Give the application access to a socket that the switch created."""
        if not _serves(spec):
            return
        directory = attachment.directory
        name = ports.socket_name(attachment, conf)
        own = self._own_socket(conf, spec, settings)
        if own and os.path.lexists(own):
            directory.discard_stale(name)
            # Move the socket, so that a killed switch does not leave it in the next one's way.
            directory.take(own, name)
        user, group = _owner(conf)
        directory.grant(name, user=user, group=group)

    def _own_socket(self, conf: EngineConf, spec: PortSpec, settings: Row) -> str:
        """Return the path of a socket that is moved after its creation; empty for other ports."""
        if spec.type != _VHOST_SERVER:
            return ""
        return f"{self._vhost_sockets(conf, settings)}/{spec.name}"

    def _is_served(
        self, attachment: Attachment, conf: EngineConf, spec: PortSpec, settings: Row
    ) -> bool:
        """Return whether the switch listens on the port's socket, moved already or not."""
        if attachment.directory.is_served(ports.socket_name(attachment, conf)):
            return True
        directory, name = os.path.split(self._own_socket(conf, spec, settings))
        return bool(name) and self.context.directory(directory).is_served(name)

    def _problem_of_socket(
        self, attachment: Attachment, conf: EngineConf, spec: PortSpec, settings: Row
    ) -> str:
        """Return why no application can use the socket that the switch serves; empty if it can."""
        if not _serves(spec):
            return ""
        directory, name = attachment.directory, ports.socket_name(attachment, conf)
        path = f"{directory.path}/{name}"
        own = self._own_socket(conf, spec, settings)
        if own and os.path.lexists(own):
            return f"the switch has created its socket at {own} instead of {path}"
        try:
            mode = os.lstat(path).st_mode
        except OSError:
            return f"its socket {path} is gone"
        if not directory.is_served(name):
            return f"{path} is not a socket, or nobody listens on it"
        if stat.S_IMODE(mode) != _GRANTED:
            return f"its socket {path} has lost its owner"
        return ""

    def _remove_port(self, attachment_id: str, conf: EngineConf, bridge: str) -> None:
        with self._database(conf) as db:
            switch.remove_port(db, attachment_id, bridge)

    def _discard_sockets(self, conf: EngineConf, *names: str) -> None:
        """Remove sockets that a killed ovs-vswitchd left behind, by default of all our ports.

        There are few of them, because each socket is moved to its container after its creation.
        """
        with suppress(CniError), self._database(conf) as db:
            if left := names or switch.vhost_servers(db):
                directory = self.context.directory(self._vhost_sockets(conf, switch.settings(db)))
                for name in left:
                    directory.discard_stale(name)

    # -- settings

    def _database(self, conf: EngineConf) -> AbstractContextManager[Ovsdb]:
        return self._connections.connection(self._endpoint(conf))

    def _endpoint(self, conf: EngineConf) -> str:
        """Return the address of the database, with its scheme."""
        endpoint = conf.section(OvsSection).db or self._settings.db
        return f"unix:{endpoint}" if endpoint.startswith("/") else endpoint

    def _run_directory(self, conf: EngineConf) -> str:
        """Return Open vSwitch's run directory, which contains the database's socket."""
        endpoint = self._endpoint(conf)
        path = endpoint.removeprefix("unix:")
        if not path.startswith("/"):
            raise InvalidConfig(
                "[engines.ovs] vhost_socket_dir",
                "missing in the node's settings; a vhost-user server needs it with the database "
                f"{endpoint}",
                "set it to Open vSwitch's run directory, such as /run/openvswitch",
            )
        return os.path.dirname(path)

    def _process(self, conf: EngineConf) -> Process | None:
        """Return the running ovs-vswitchd, or None if it cannot be observed from here.

        Raises:
            DataplaneUnavailable: if it has ended.

        """
        try:
            path = f"{self._run_directory(conf)}/ovs-vswitchd.pid"
        except InvalidConfig:
            return None
        found = process.of(path)
        if found is not None:
            self._seen.add(path)
        elif path in self._seen or os.path.exists(path):
            # Do this now: the next ovs-vswitchd tries only once to create each socket, and fails
            # if an old one is in its way.
            self._discard_sockets(conf)
            raise DataplaneUnavailable(
                "ovs-vswitchd is not running",
                f"no process holds its pid file {path}: start it, and see ovs-vswitchd.log",
            )
        return found

    def _made_by(self, found: Process | None, port: HostPort) -> HostPort:
        """Return *port* with the generation of the ovs-vswitchd that created it."""
        if found is None:
            return port
        self._settled.add(found.generation)
        return evolve(port, generation=found.generation)

    def _vhost_sockets(self, conf: EngineConf, settings: Row) -> str:
        """Return the directory in which Open vSwitch creates vhost-user server sockets."""
        if self._settings.vhost_socket_dir is not None:
            return str(self._settings.vhost_socket_dir)
        below = mapping(settings["other_config"]).get("vhost-sock-dir", "")
        return os.path.join(self._run_directory(conf), below).rstrip("/")


def _settings_for(db: Ovsdb, conf: EngineConf) -> Row:
    """Return the switch's settings if the port needs DPDK, otherwise an empty row."""
    return switch.settings(db) if conf.iftype in DPDK else {}


def _plan(attachment: Attachment, conf: EngineConf, settings: Row) -> tuple[PortSpec, HostPort]:
    """Return the wanted port, as the switch sees it and as the container sees it."""
    name = short_name(attachment.id)
    mtu = attachment.mtu or MTU
    spec = PortSpec(
        name=name,
        type="internal" if conf.iftype == "tap" else "",
        bridge=ports.bridge_section(conf),
        external_ids=ports.external_ids(attachment, conf),
        # For kernel interfaces the kernel enforces the limits.
        bandwidth=attachment.bandwidth if conf.iftype in DPDK else None,
    )
    port = HostPort(
        name=name,
        mac=attachment.mac_for("container"),
        mtu=mtu,
        interfaces=(_host_interface(attachment, conf, name, mtu),),
    )
    if conf.iftype not in DPDK:
        return spec, port
    _require_features(settings, conf)
    directory = attachment.directory
    address = directory.socket(ports.socket_name(attachment, conf))
    if conf.iftype == "memif":
        memif = ports.memif(attachment, conf, directory, _transmit_queues(settings))
        return (
            evolve(
                spec,
                type="dpdk",
                options=ports.memif_options(attachment.id, memif, address),
            ),
            evolve(port, port=memif),
        )
    vhost_user = ports.vhost_user(attachment, conf, directory)
    serves = vhost_user.mode == "server"
    return (
        evolve(
            spec,
            type=_VHOST_CLIENT if serves else _VHOST_SERVER,
            options={"vhost-server-path": address} if serves else {},
            mtu_request=mtu,
        ),
        evolve(port, port=vhost_user),
    )


def _host_interface(attachment: Attachment, conf: EngineConf, name: str, mtu: int) -> Interface:
    if conf.iftype == "veth":
        return Interface(name=name, mac=attachment.mac_for("host"), mtu=mtu)
    return Interface(name=name, mtu=mtu)


def _owner(conf: EngineConf) -> tuple[str, str]:
    section = ports.socket_section(conf)
    return section.user, section.group


def _transmit_queues(settings: Row) -> int:
    """Return how many queues the switch sends to: one per PMD thread and one for its main thread.

    Without a mask there is one PMD thread per NUMA node (Open vSwitch documentation, "PMD
    Threads").
    """
    mask = mapping(settings["other_config"]).get("pmd-cpu-mask", "")
    try:
        threads = int(mask, 16).bit_count() if mask else 0
    except ValueError:
        threads = 0
    return (threads or _numa_nodes()) + 1


def _numa_nodes() -> int:
    try:
        return (
            sum(
                entry.startswith("node") and entry[4:].isdecimal()
                for entry in os.listdir("/sys/devices/system/node")
            )
            or 1
        )
    except OSError:
        return 1


def _require_features(settings: Row, conf: EngineConf) -> None:
    """Raise DataplaneUnavailable unless the switch supports ports of this interface type."""
    if conf.iftype not in DPDK:
        return
    if not settings["dpdk_initialized"] and optional(settings["dpdk_version"]) in (None, "none"):
        raise DataplaneUnavailable(
            f"iftype {conf.iftype} needs Open vSwitch with DPDK, and this ovs-vswitchd is built "
            "without it",
            "install a package with DPDK (Debian: openvswitch-switch-dpdk and "
            "librte-mempool-ring23), and select its ovs-vswitchd with update-alternatives",
        )
    if not settings["dpdk_initialized"]:
        raise DataplaneUnavailable(
            f"iftype {conf.iftype} needs DPDK, which this Open vSwitch has not initialized",
            "turn it on with: ovs-vsctl set Open_vSwitch . other_config:dpdk-init=true; then "
            "restart ovs-vswitchd, and see its log if that was not enough",
        )


def _compare(found: switch.Port, spec: PortSpec) -> None:
    """Raise CheckFailed unless the port *found* matches *spec*."""
    if found.bridge != spec.bridge.name:
        raise CheckFailed(
            f"the port {spec.name} is in another bridge",
            f"expected {spec.bridge.name}, found {found.bridge or 'none'}",
        )
    row, interface = found.port, found.interface
    problem = optional(interface["error"])
    if problem or optional(interface["ofport"]) == -1:
        raise CheckFailed(
            f"Open vSwitch reports an error of the port {spec.name}",
            switch.without_secret(problem or "it has no OpenFlow port"),
        )
    section = spec.bridge
    options = _comparable(mapping(interface["options"]))
    for what, wanted, there in (
        ("VLAN tag", section.vlan_id, optional(row["tag"])),
        ("trunk", section.trunks, sorted(members(row["trunks"]))),
        ("VLAN mode", section.vlan_mode, optional(row["vlan_mode"]) or ""),
        ("type", spec.type, interface["type"]),
        ("rate limit", spec.policing[0], interface["ingress_policing_rate"]),
        ("MTU", spec.mtu_request, optional(interface["mtu_request"])),
        *((key, value, options.get(key)) for key, value in _comparable(spec.options).items()),
    ):
        if wanted != there:
            raise CheckFailed(
                f"the port {spec.name} has another {what}",
                switch.without_secret(f"expected {wanted}, found {there}"),
            )


def _require_mtu(found: switch.Port, spec: PortSpec) -> None:
    """Raise CheckFailed if the port's MTU is not the requested one.

    A port has no MTU until an application has connected.
    """
    mtu = optional(found.interface["mtu"]) or spec.mtu_request
    if spec.mtu_request is not None and mtu != spec.mtu_request:
        raise CheckFailed(
            f"Open vSwitch did not set the requested MTU on the port {spec.name}",
            f"expected {spec.mtu_request}, found {mtu}; see ovs-vswitchd.log for the reason",
        )


def _spoiled(found: switch.Port) -> str:
    """Return a message if the switch could not create a vhost-user server's socket, else "".

    After a failed attempt DPDK 22.11 keeps the descriptor number and closes it again with each
    further attempt. By then the number may belong to the socket of another port or to a descriptor
    of Open vSwitch itself, which then waits forever. Therefore the port must not be retried.
    """
    if optional(found.interface["ofport"]) != -1:
        return ""
    return f"ovs-vswitchd could not create the socket of the port {found.interface['name']}"


def _is_made(found: switch.Port | None, spec: PortSpec) -> bool:
    """Return whether the port *found* exists and matches *spec*."""
    if found is None:
        return False
    try:
        _compare(found, spec)
    except CheckFailed:
        return False
    return True


def _serves(spec: PortSpec) -> bool:
    """Return whether the switch creates the port's socket."""
    return spec.type in ("dpdk", _VHOST_SERVER)


def _comparable(options: Mapping[str, str]) -> dict[str, str]:
    """Return *options* without the name of the DPDK device, which differs each time."""
    if "dpdk-devargs" not in options:
        return dict(options)
    return {**options, "dpdk-devargs": ports.device_arguments(options)}
