"""Bridges and ports in the database of Open vSwitch. Each change is one transaction.

Nothing is locked: what a change relies on is part of its transaction, which fails if it is so no
more, and then is tried anew.
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
from userspace_cni_ovs.ports import device_arguments, memif_device

if TYPE_CHECKING:
    from userspace_cni_ovs.ovsdb import Json, Operation, Ovsdb
    from userspace_cni_ovs.ports import PortSpec
    from userspace_cni_ovs.sections import BridgeSection

_log = logging.getLogger(__name__)

_RACES = 10  # how often a change is tried anew when others are faster
_WHO_ELSE = (
    "see the changes with: ovsdb-client monitor Open_vSwitch Bridge name,ports; let whoever makes "
    "and removes it rest, and try again"
)
_TIMED_OUT = "timed out"
_CONSTRAINT = "constraint violation"
#: Seconds that a removal waits for ovs-vswitchd. It is in the database by then, and done for good.
_SETTLE = 3.0


@frozen(kw_only=True)
class Bridge:
    """A bridge as the database tells it."""

    uuid: str
    name: str
    datapath_type: str
    ours: bool


@frozen(kw_only=True)
class Port:
    """A port of ours and its interface, as the database tells them."""

    uuid: str
    port: Row
    interface: Row
    #: Name of the bridge that it is in, empty if in none.
    bridge: str


def find_bridge(db: Ovsdb, name: str) -> Bridge | None:
    """Return the bridge *name*, None where there is none."""
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
    """Add a port to its bridge, which is made if need be; return the UUID of its Interface.

    Raises:
        DataplaneError: when the bridge is missing or not fit, or the name is taken.

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
            _log.debug("somebody changed the bridge meanwhile: %s", error)
            continue
        # The first insertion is the Interface's.
        return str(next(answer["uuid"][1] for answer in answers if "uuid" in answer))
    raise DataplaneError(
        f"the bridge {spec.bridge.name} is changed by others all the time",
        _WHO_ELSE,
    )


def await_port(db: Ovsdb, spec: PortSpec, interface: str, timeout: float) -> None:
    """Wait until ovs-vswitchd has made the port.

    Raises:
        DataplaneUnavailable: when it has not within *timeout* seconds.
        DataplaneError: when it could not; says why.

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
            f"ovs-vswitchd has not made the port {spec.name} within {timeout:g} s",
            "is it running, and is its log free of errors about the bridge "
            f"{spec.bridge.name}? (ovs-appctl version; the log is ovs-vswitchd.log)",
        ) from error
    (state,) = found["rows"]
    problem = optional(state["error"])
    if problem or optional(state["ofport"]) == -1:
        raise DataplaneError(
            f"Open vSwitch cannot make the port {spec.name}: "
            f"{without_secret(problem or 'it does not say why')}",
            "ovs-vswitchd.log has the cause",
        )


def find_port(db: Ovsdb, attachment_id: str) -> Port | None:
    """Return the port of an attachment, by its tag."""
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
    """Remove what carries the tag of an attachment, and a bridge of ours that is empty then.

    Args:
        db: the database.
        attachment_id: whose.
        bridge_name: where to look for an empty bridge if the port is gone already.

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
            # What something refers to cannot be deleted, even if that is about to go, too.
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
                "the port is out of the database, but ovs-vswitchd has not noticed; is it running?"
            )
        if ports:
            # Of two that removed the last two ports at once, each has seen the other's.
            remove_port(db, attachment_id, bridge_name)
        return
    raise DataplaneError(
        f"the port of the attachment {attachment_id} cannot be removed: its bridge is changed by "
        "others all the time",
        _WHO_ELSE,
    )


def attachments(db: Ovsdb, network: str) -> list[str]:
    """Return the attachments of *network* that have a port."""
    (found,) = db.transact(
        f"list the ports of the network {network}",
        select("Port", has("external_ids", {tags.NETWORK: network}), columns=("external_ids",)),
    )
    ids = (mapping(row["external_ids"]).get(tags.ID, "") for row in found["rows"])
    return [id_ for id_ in ids if id_]


def vhost_servers(db: Ovsdb) -> list[str]:
    """Return the names of our vhost-user servers, which their sockets have too."""
    (found,) = db.transact(
        "list the vhost-user servers",
        select("Interface", ["type", "==", "dpdkvhostuser"], columns=("name", "external_ids")),
    )
    return [row["name"] for row in found["rows"] if tags.ID in mapping(row["external_ids"])]


def settings(db: Ovsdb) -> Row:
    """Return what the switch says of itself."""
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
            "the database is there, the daemon is not, or it is stuck: start it, and see "
            "ovs-vswitchd.log",
        )


@frozen(kw_only=True)
class FailedMemif:
    """A memif port of ours that the switch could not make."""

    #: Of the Interface.
    uuid: str
    #: The attachment's id.
    id: str
    #: Where its socket lies in the container's shared directory.
    socket: str
    options: dict[str, str]


def failed_memifs(db: Ovsdb) -> list[FailedMemif]:
    """Return our memif ports that the switch could not make."""
    (found,) = db.transact(
        "look for ports that failed",
        select(
            "Interface",
            ["ofport", "==", -1],
            ["type", "==", "dpdk"],
            columns=("_uuid", "external_ids", "options"),
        ),
    )
    failed = []
    for row in found["rows"]:
        ids = mapping(row["external_ids"])
        if tags.ID in ids and tags.SOCKET in ids:
            failed.append(
                FailedMemif(
                    uuid=row["_uuid"][1],
                    id=ids[tags.ID],
                    socket=ids[tags.SOCKET],
                    options=mapping(row["options"]),
                )
            )
    return failed


def retry_memif(db: Ovsdb, failed: FailedMemif) -> None:
    """Have the switch make a port again, by a device name that is not spent."""
    devargs = f"{memif_device(failed.id)},{device_arguments(failed.options)}"
    db.transact(
        "have a port made again",
        update(
            "Interface",
            ["_uuid", "==", ["uuid", failed.uuid]],
            row={"options": a_map({**failed.options, "dpdk-devargs": devargs})},
        ),
    )


def require_fit(bridge: Bridge, *, needs_netdev: bool) -> None:
    """Raise DataplaneError if a port that *needs_netdev* cannot be in *bridge*."""
    if needs_netdev and bridge.datapath_type != "netdev":
        raise DataplaneError(
            f"the bridge {bridge.name} is of the kernel's datapath, where DPDK ports cannot be",
            "use another bridge, or change it with: "
            f"ovs-vsctl set bridge {bridge.name} datapath_type=netdev",
        )


def without_secret(text: str) -> str:
    """Return *text* without a memif's secret, which Open vSwitch repeats in its errors."""
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
        # Empty means the default (ovs-vswitchd.conf.db(5)).
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
            # If it has gone meanwhile, fail.
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
    """Raise if the port's name is taken: that is not going to change by trying anew."""
    (found,) = db.transact(
        f"look for the port {spec.name}",
        select("Port", ["name", "==", spec.name], columns=("external_ids",)),
    )
    for row in found["rows"]:
        if mapping(row["external_ids"]).get(tags.ID) == spec.external_ids[tags.ID]:
            raise CniError(
                Code.ALREADY_ATTACHED,
                f"the attachment has the port {spec.name} in Open vSwitch already",
                "DEL it first",
            )
        raise DataplaneError(
            f"the port name {spec.name} is taken in Open vSwitch by something that is not ours",
            f"see ovs-vsctl list Port {spec.name}, and remove it with: ovs-vsctl del-port "
            f"{spec.name}",
        )


def _removals(db: Ovsdb, ports: list[Json], bridge_name: str) -> list[Operation]:
    """Return the operations that remove *ports*, empty if there is nothing to do.

    The ports of a bridge are not asked for, which may be a thousand.
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
                # If somebody adds a port meanwhile, fail.
                wait("Bridge", this, column="ports", until="==", value=rest, timeout=0),
                mutate("Open_vSwitch", change=("bridges", "delete", a_set([this[2]]))),
            ]
        elif ports:
            operations.append(mutate("Bridge", this, change=("ports", "delete", a_set(ports))))
    return operations


def _ports_if_unused(db: Ovsdb, bridge: Bridge, this: Json, ports: list[Json]) -> Json | None:
    """Return all ports of *bridge* if they are no more than its own and *ports*, else None."""
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
    """Wait until ovs-vswitchd has applied configuration number *target*; false if in vain."""
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
