"""Bridges and ports in the Open vSwitch database. Each change is one transaction.

There are no locks. Each transaction contains the conditions that it relies on; if one no longer
holds, the transaction fails and is retried.
"""

from __future__ import annotations

import logging
import re
import time
from typing import TYPE_CHECKING

from attrs import frozen

from userspace_cni.api import CniError, Code, DataplaneError, DataplaneUnavailable
from userspace_cni_ovs import tags
from userspace_cni_ovs.ovsdb import (
    Refused,
    Row,
    a_map,
    a_set,
    delete,
    has,
    insert,
    mapping,
    members,
    mutate,
    named,
    optional,
    select,
    update,
    wait,
)

if TYPE_CHECKING:
    from userspace_cni_ovs.ovsdb import Json, Operation, Ovsdb
    from userspace_cni_ovs.ports import PortSpec
    from userspace_cni_ovs.sections import BridgeSection

_log = logging.getLogger(__name__)

_RACES = 10  # how often a change is retried after a concurrent change
_WHO_ELSE = (
    "see the changes with: ovsdb-client monitor Open_vSwitch Bridge name,ports; stop the program "
    "that creates and removes it, and try again"
)
_TIMED_OUT = "timed out"
_CONSTRAINT = "constraint violation"
#: How long a removal waits for ovs-vswitchd, in seconds. The database is already changed by then.
_SETTLE = 3.0


@frozen(kw_only=True)
class Bridge:
    """A bridge as stored in the database."""

    uuid: str
    name: str
    datapath_type: str
    ours: bool


@frozen(kw_only=True)
class Port:
    """A port of the engine and its interface, as stored in the database."""

    uuid: str
    port: Row
    interface: Row
    #: Name of the port's bridge; empty if it has none.
    bridge: str


def find_bridge(db: Ovsdb, name: str) -> Bridge | None:
    """Return the bridge *name*, or None if it does not exist."""
    (found,) = db.transact(
        f"look for the bridge {name}",
        select(
            "Bridge",
            ["name", "==", name],
            columns=_BRIDGE_COLUMNS,
        ),
    )
    return next((_bridge(row) for row in found["rows"]), None)


def add_port(db: Ovsdb, spec: PortSpec, *, needs_netdev: bool) -> str:
    """Add a port to its bridge, and create the bridge if the network asks for that.

    Args:
        db: the database.
        spec: the port.
        needs_netdev: whether the port needs the userspace datapath.

    Returns:
        The UUID of the port's Interface row.

    Raises:
        CniError: code 103 if the attachment already has a port.
        DataplaneError: if the bridge is missing or unsuitable, or the name is taken.

    """
    for _ in range(_RACES):
        bridge = find_bridge(db, spec.bridge.name)
        if bridge is None and not spec.bridge.create:
            raise _missing(spec.bridge)
        if bridge is not None:
            require_fit(bridge, needs_netdev=needs_netdev)
        try:
            answers = db.transact(
                f"add the port {spec.name} to the bridge {spec.bridge.name}",
                *_additions(spec, bridge),
            )
        except Refused as error:
            if error.error == _CONSTRAINT:
                _require_free(db, spec)
            elif error.error != _TIMED_OUT:
                raise
            _log.debug("the bridge was changed meanwhile: %s", error)
            continue
        # The first insert operation is that of the Interface.
        return str(next(answer["uuid"][1] for answer in answers if "uuid" in answer))
    raise DataplaneError(
        f"other programs keep changing the bridge {spec.bridge.name}",
        _WHO_ELSE,
    )


def await_port(db: Ovsdb, spec: PortSpec, interface: str, timeout: float) -> None:
    """Wait until ovs-vswitchd has created the port.

    Args:
        db: the database.
        spec: the port.
        interface: the UUID that :func:`add_port` returned.
        timeout: in seconds.

    Raises:
        DataplaneUnavailable: if the port is not created in time.
        DataplaneError: if ovs-vswitchd could not create it; the message contains the reason.

    """
    row = ["_uuid", "==", ["uuid", interface]]
    try:
        _, found = db.transact(
            f"wait for the port {spec.name}",
            wait("Interface", row, column="ofport", until="!=", value=a_set(()), timeout=timeout),
            select("Interface", row, columns=("ofport", "error")),
            timeout=timeout + 5,
        )
    except Refused as error:
        if error.error != _TIMED_OUT:
            raise
        raise DataplaneUnavailable(
            f"ovs-vswitchd has not created the port {spec.name} within {timeout:g} s",
            "is it running, and is its log free of errors about the bridge "
            f"{spec.bridge.name}? (ovs-appctl version; the log is ovs-vswitchd.log)",
        ) from error
    (state,) = found["rows"]
    problem = optional(state["error"])
    if problem or optional(state["ofport"]) == -1:
        raise DataplaneError(
            f"Open vSwitch cannot create the port {spec.name}: "
            f"{without_secret(problem or 'it gives no reason')}",
            "see ovs-vswitchd.log for the cause",
        )


def find_port(db: Ovsdb, attachment_id: str) -> Port | None:
    """Return the port with the attachment's tag, or None."""
    (found,) = db.transact(
        "look for the port",
        select("Port", has("external_ids", {tags.ID: attachment_id}), columns=_PORT_COLUMNS),
    )
    for row in found["rows"]:
        interfaces = [["_uuid", "==", uuid] for uuid in members(row["interfaces"])]
        rows, bridges = db.transact(
            f"read the port {row['name']}",
            select("Interface", *interfaces[:1], columns=_INTERFACE_COLUMNS),
            select("Bridge", ["ports", "includes", a_set([row["_uuid"]])], columns=("name",)),
        )
        return Port(
            uuid=row["_uuid"][1],
            port=row,
            interface=rows["rows"][0],
            bridge=next((bridge["name"] for bridge in bridges["rows"]), ""),
        )
    return None


def remove_port(db: Ovsdb, attachment_id: str, bridge_name: str) -> None:
    """Remove the attachment's port and, if the engine created it and it is now empty, the bridge.

    Args:
        db: the database.
        attachment_id: the attachment's ID.
        bridge_name: the bridge to consider if the port is already gone.

    Raises:
        DataplaneError: if other programs keep changing the bridge.

    """
    for _ in range(_RACES):
        ours = has("external_ids", {tags.ID: attachment_id})
        found, limits = db.transact(
            "look for the port",
            *(select(table, ours, columns=("_uuid",)) for table in ("Port", "QoS")),
        )
        ports = [row["_uuid"] for row in found["rows"]]
        operations = _removals(db, ports, bridge_name)
        if limits["rows"]:
            # A QoS row cannot be deleted while a port refers to it, even a port in the same
            # transaction.
            operations += [
                *(update("Port", ["_uuid", "==", port], row={"qos": a_set(())}) for port in ports),
                delete("QoS", ours),
            ]
        if not operations:
            return
        try:
            *_, settled = db.transact("remove the port", *operations, *_next_configuration())
        except Refused as error:
            if error.error != _TIMED_OUT:
                raise
            continue
        target = settled["rows"][0]["next_cfg"]
        if not _await_configuration(db, target, min(_SETTLE, db.timeout)):
            _log.warning(
                "the port is removed from the database, but ovs-vswitchd has not applied the "
                "change; is it running?"
            )
        if ports:
            # Look again for an empty bridge: if two requests remove the last two ports at the same
            # time, each one still sees the other's port.
            remove_port(db, attachment_id, bridge_name)
        return
    raise DataplaneError(
        f"the port of the attachment {attachment_id} cannot be removed: other programs keep "
        "changing its bridge",
        _WHO_ELSE,
    )


def attachments(db: Ovsdb, network: str) -> list[str]:
    """Return the IDs of the attachments of *network* that have a port."""
    (found,) = db.transact(
        f"list the ports of the network {network}",
        select("Port", has("external_ids", {tags.NETWORK: network}), columns=("external_ids",)),
    )
    ids = (mapping(row["external_ids"]).get(tags.ID, "") for row in found["rows"])
    return [id_ for id_ in ids if id_]


def vhost_servers(db: Ovsdb) -> list[str]:
    """Return the names of the engine's vhost-user servers; their sockets have the same names."""
    (found,) = db.transact(
        "list the vhost-user servers",
        select("Interface", ["type", "==", "dpdkvhostuser"], columns=("name", "external_ids")),
    )
    return [row["name"] for row in found["rows"] if tags.ID in mapping(row["external_ids"])]


def settings(db: Ovsdb) -> Row:
    """Return the switch's settings and DPDK state."""
    (found,) = db.transact(
        "read the switch's settings",
        select(
            "Open_vSwitch",
            columns=("other_config", "dpdk_initialized", "dpdk_version"),
        ),
    )
    return dict(found["rows"][0]) if found["rows"] else {}


def require_database(db: Ovsdb) -> None:
    """Raise DataplaneUnavailable unless the database answers."""
    db.transact("ask for a sign of life", select("Open_vSwitch", columns=("cur_cfg",)))


def require_alive(db: Ovsdb, timeout: float) -> None:
    """Raise DataplaneUnavailable unless ovs-vswitchd answers within *timeout* seconds."""
    *_, settled = db.transact("ask ovs-vswitchd for a sign of life", *_next_configuration())
    if not _await_configuration(db, settled["rows"][0]["next_cfg"], timeout):
        raise DataplaneUnavailable(
            f"ovs-vswitchd does not answer within {timeout:g} s",
            "the database answers, but ovs-vswitchd is not running or is stuck: start it, and see "
            "ovs-vswitchd.log",
        )


def require_fit(bridge: Bridge, *, needs_netdev: bool) -> None:
    """Raise DataplaneError if the port needs the userspace datapath and *bridge* has another."""
    if needs_netdev and bridge.datapath_type != "netdev":
        raise DataplaneError(
            f"the bridge {bridge.name} uses the kernel's datapath, which has no DPDK ports",
            "use another bridge, or change it with: "
            f"ovs-vsctl set bridge {bridge.name} datapath_type=netdev",
        )


def without_secret(text: str) -> str:
    """Return *text* without a memif's secret, which Open vSwitch includes in its errors."""
    return re.sub(r"secret=[^,'\"\s]*", "secret=...", text)


_BRIDGE_COLUMNS = ("_uuid", "name", "datapath_type", "external_ids")
_PORT_COLUMNS = ("_uuid", "name", "interfaces", "tag", "trunks", "vlan_mode", "external_ids", "qos")
_INTERFACE_COLUMNS = (
    "name",
    "type",
    "options",
    "ofport",
    "error",
    "mtu",
    "mtu_request",
    "ingress_policing_rate",
)


def _bridge(row: Row) -> Bridge:
    ids = mapping(row["external_ids"])
    return Bridge(
        uuid=row["_uuid"][1],
        name=row["name"],
        # An empty type means the default (ovs-vswitchd.conf.db(5)).
        datapath_type=row["datapath_type"] or "system",
        ours=all(ids.get(key) == value for key, value in tags.BRIDGE.items()),
    )


def _missing(section: BridgeSection) -> DataplaneError:
    return DataplaneError(
        f"the bridge {section.name} does not exist, and host.bridge.create is not set",
        f"make it with: ovs-vsctl add-br {section.name} -- set bridge {section.name} "
        f"datapath_type={section.datapath_type}; or set host.bridge.create to true",
    )


def _additions(spec: PortSpec, bridge: Bridge | None) -> list[Operation]:
    port = spec.port() | {"interfaces": named("interface")}
    operations = [insert("Interface", "interface", spec.interface())]
    if (qos := spec.qos()) is not None:
        operations.append(insert("QoS", "qos", qos))
        port["qos"] = named("qos")
    operations.append(insert("Port", "port", port))
    if bridge is not None:
        row = ["_uuid", "==", ["uuid", bridge.uuid]]
        operations += [
            # Fail if the bridge was removed meanwhile.
            wait("Bridge", row, column="name", until="==", value=bridge.name, timeout=0),
            mutate("Bridge", row, change=("ports", "insert", named("port"))),
        ]
    else:
        operations += _new_bridge(spec.bridge)
    return [*operations, *_next_configuration()]


def _new_bridge(section: BridgeSection) -> list[Operation]:
    own = {"name": section.name}
    return [
        insert("Interface", "own_interface", own | {"type": "internal"}),
        insert("Port", "own_port", own | {"interfaces": named("own_interface")}),
        insert(
            "Bridge",
            "bridge",
            own
            | {
                "datapath_type": section.datapath_type,
                "external_ids": a_map(tags.BRIDGE),
                "ports": a_set([named("own_port"), named("port")]),
            },
        ),
        mutate("Open_vSwitch", change=("bridges", "insert", named("bridge"))),
    ]


def _next_configuration() -> list[Operation]:
    return [
        mutate("Open_vSwitch", change=("next_cfg", "+=", 1)),
        select("Open_vSwitch", columns=("next_cfg",)),
    ]


def _require_free(db: Ovsdb, spec: PortSpec) -> None:
    """Raise an error if the port's name is taken, because a retry would not help."""
    (found,) = db.transact(
        f"look for the port {spec.name}",
        select("Port", ["name", "==", spec.name], columns=("external_ids",)),
    )
    for row in found["rows"]:
        if mapping(row["external_ids"]).get(tags.ID) == spec.external_ids[tags.ID]:
            raise CniError(
                Code.ALREADY_ATTACHED,
                f"the attachment already has the port {spec.name} in Open vSwitch",
                "DEL it first",
            )
        raise DataplaneError(
            f"the port name {spec.name} is taken in Open vSwitch by something that is not ours",
            f"see ovs-vsctl list Port {spec.name}, and remove it with: ovs-vsctl del-port "
            f"{spec.name}",
        )


def _removals(db: Ovsdb, ports: list[Json], bridge_name: str) -> list[Operation]:
    """Return the operations that remove *ports*; empty if there is nothing to do.

    The ports of a bridge are never read, because there may be a thousand.
    """
    conditions = [["ports", "includes", a_set([port])] for port in ports] or (
        [["name", "==", bridge_name]] if bridge_name else []
    )
    answers = db.transact(
        "look for the port's bridge",
        *(select("Bridge", condition, columns=_BRIDGE_COLUMNS) for condition in conditions),
    )
    operations: list[Operation] = []
    for bridge in (_bridge(row) for answer in answers for row in answer["rows"]):
        this = ["_uuid", "==", ["uuid", bridge.uuid]]
        rest = _ports_if_unused(db, bridge, this, ports) if bridge.ours else None
        if rest is not None:
            operations += [
                # Fail if a port was added meanwhile.
                wait("Bridge", this, column="ports", until="==", value=rest, timeout=0),
                mutate("Open_vSwitch", change=("bridges", "delete", a_set([this[2]]))),
            ]
        elif ports:
            operations.append(mutate("Bridge", this, change=("ports", "delete", a_set(ports))))
    return operations


def _ports_if_unused(db: Ovsdb, bridge: Bridge, this: Json, ports: list[Json]) -> Json | None:
    """Return all ports of *bridge* if it has only its own port and *ports*, otherwise None."""
    (found,) = db.transact(
        f"look at the bridge {bridge.name}",
        select("Port", ["name", "==", bridge.name], columns=("_uuid",)),
    )
    own = [row["_uuid"] for row in found["rows"]]
    every = [a_set([*own, *ports]), a_set(ports)]
    answers = db.transact(
        f"look for other ports of the bridge {bridge.name}",
        *(select("Bridge", this, ["ports", "==", some], columns=("_uuid",)) for some in every),
    )
    return next((some for some, answer in zip(every, answers, strict=True) if answer["rows"]), None)


def _await_configuration(db: Ovsdb, target: int, timeout: float) -> bool:
    """Wait until ovs-vswitchd has applied configuration *target*; return False on timeout."""
    deadline = time.monotonic() + timeout
    while True:
        (found,) = db.transact(
            "see what ovs-vswitchd has applied", select("Open_vSwitch", columns=("cur_cfg",))
        )
        current = found["rows"][0]["cur_cfg"]
        if current >= target:
            return True
        remaining = deadline - time.monotonic()
        if remaining <= 0:
            return False
        try:
            db.transact(
                "wait for ovs-vswitchd",
                wait(
                    "Open_vSwitch", column="cur_cfg", until="!=", value=current, timeout=remaining
                ),
                timeout=remaining + 5,
            )
        except Refused as error:
            if error.error != _TIMED_OUT:
                raise
            return False
