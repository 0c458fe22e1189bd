"""The hand-over file: a :class:`~userspace_cni.api.Handoff` as JSON, which the container reads.

A socket is represented by its file name: it is in the same directory as the file, wherever the
container mounts this directory. docs/handoff.schema.json describes the format.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from typing import Any, Literal

import attrs
from attrs import field, frozen

from userspace_cni.api import (
    Attachment,
    CustomPort,
    Handoff,
    Kernel,
    Memif,
    Pod,
    Port,
    Role,
    VhostUser,
)
from userspace_cni.cni import result as cni_result
from userspace_cni.cni.errors import CniError, Code
from userspace_cni.cni.request import is_ifname
from userspace_cni.cni.result import Result
from userspace_cni.cni.versions import SUPPORTED
from userspace_cni.config.decoding import JSON, key_of, structure

#: The version of the file's format. A reader refuses a greater one; new keys do not change it.
VERSION = 1
#: What to do about a document that cannot be read.
REMEDY = "DEL and ADD write it again; if another program wrote it, correct that program"

#: Prefix of the name of an abstract socket, in the container's network namespace.
ABSTRACT = "@"

_NOTATION = attrs.evolve(JSON, whole="the document")
_MAC = re.compile(r"([0-9a-fA-F]{2}(:[0-9a-fA-F]{2}){5})?")
_NEWEST = SUPPORTED[-1]
_U16, _U32 = 2**16 - 1, 2**32 - 1


@frozen(kw_only=True)
class Document:
    """The content of a hand-over file: a hand-off and its attachment."""

    handoff: Handoff
    #: The attachment's id; empty if the hand-over does not have it.
    id: str = ""
    #: The network's name.
    network: str = ""
    #: The container engine that prepared the interface; empty if unknown.
    engine: str = ""
    pod: Pod | None = None


def dump(attachment: Attachment, handoff: Handoff, engine: str = "") -> dict[str, Any]:
    """Return the content of the file, which carries the attachment's id as its tag.

    *engine* is the name of the container engine, if it is known.
    """
    document = Document(
        handoff=handoff,
        id=attachment.id,
        network=attachment.network,
        engine=engine,
        pod=attachment.pod,
    )
    return describe(document, socket_name)


def describe(document: Document, place: Callable[[str], str]) -> dict[str, Any]:
    """Return *document* as JSON; *place* converts the path of a socket for the reader."""
    handoff = document.handoff
    body: dict[str, Any] = {
        "version": VERSION,
        "id": document.id,
        "network": document.network,
        "engine": document.engine,
        "interface": handoff.interface,
        "iftype": handoff.iftype,
        "netType": handoff.net_type,
        "mac": handoff.mac,
        "mtu": handoff.mtu,
        "pointToPoint": handoff.point_to_point,
        **addresses(handoff, _NEWEST),
    }
    if document.pod is not None:
        body["pod"] = attrs.asdict(document.pod)
    if handoff.bridge:
        body["bridge"] = handoff.bridge
    match handoff.port:
        case Memif() as memif:
            body["memif"] = {
                "role": memif.role,
                "socket": place(memif.socket),
                "mode": memif.mode,
                "id": memif.id,
                "rxQueues": memif.rx_queues,
                "txQueues": memif.tx_queues,
                "ringSize": memif.ring_size,
                "bufferSize": memif.buffer_size,
                "zeroCopy": memif.zero_copy,
            } | ({"secret": memif.secret} if memif.secret else {})
        case VhostUser(mode=mode, socket=socket, queues=queues):
            body["vhostUser"] = {"mode": mode, "socket": place(socket), "queues": queues}
        case CustomPort() as custom:
            body["port"] = describe_custom(custom, place)
        case Kernel():
            pass
    return body


def describe_custom(port: CustomPort, place: Callable[[str], str]) -> dict[str, Any]:
    """Return the open case of a port as JSON; *place* as in :func:`describe`."""
    body: dict[str, Any] = {"kind": port.kind}
    if port.socket:
        body["socket"] = place(port.socket)
    if port.role:
        body["role"] = port.role
    return body | {"values": port.values}


def load_custom(raw: Mapping[str, Any], path: str, directory: str) -> CustomPort:
    """Read what :func:`describe_custom` wrote, found at *path*; see :func:`load`."""
    told = structure(_known(raw, _Custom), _Custom, path, _NOTATION)
    return CustomPort(**_placed(told, directory))


def addresses(handoff: Handoff, version: str) -> dict[str, Any]:
    """Return ``ips``, ``routes`` and ``dns`` in the form of a CNI result of *version*."""
    lists = cni_result.dump(
        Result(ips=handoff.ips, routes=handoff.routes, dns=handoff.dns), version
    )
    lists.pop("cniVersion")
    return lists


def socket_name(socket: str) -> str:
    """Return the file name of a *socket*, or the whole name of an abstract one."""
    return socket if socket.startswith(ABSTRACT) else os.path.basename(socket)


def load(raw: Mapping[str, Any], directory: str) -> Document:
    """Read the content of a file in *directory*, and complete the paths of its sockets.

    The content is not trusted, because anybody may have written it.

    Raises:
        CniError: a key is missing or has an invalid value; the error has the path of the key and
            the remedy.

    """
    try:
        return _load(raw, directory)
    except CniError as error:
        raise CniError(error.code, error.msg, error.details or REMEDY) from None


def _load(raw: Mapping[str, Any], directory: str) -> Document:
    version = raw.get("version")
    if isinstance(version, int) and version > VERSION:
        raise CniError(
            Code.DECODING_FAILURE,
            f"version: expected {VERSION}, got {version}",
            "a newer userspace-cni wrote it: upgrade this one",
        )
    memif = raw.get("memif")
    if isinstance(memif, dict) and not isinstance(memif.get("secret", ""), str):
        # Checked here, because the general error would contain the value.
        raise CniError(Code.DECODING_FAILURE, "memif.secret: expected a string (it is not shown)")
    told = structure(_known(raw, _Document), _Document, "", _NOTATION)
    lists = cni_result.load(
        {key: raw[key] for key in ("ips", "routes", "dns") if key in raw}, _NEWEST
    )
    return Document(
        id=told.id,
        network=told.network,
        engine=told.engine,
        pod=Pod(**attrs.asdict(told.pod)) if told.pod else None,
        handoff=Handoff(
            interface=told.interface,
            iftype=told.iftype,
            net_type=told.net_type,
            mac=told.mac,
            mtu=told.mtu,
            point_to_point=told.point_to_point,
            bridge=told.bridge,
            # Some writers include an index into the interfaces of their CNI result.
            ips=tuple(attrs.evolve(ip, interface=None) for ip in lists.ips),
            routes=lists.routes,
            dns=lists.dns,
            port=_port(told, directory),
        ),
    )


def _port(told: _Document, directory: str) -> Port:
    if told.memif:
        return Memif(**_placed(told.memif, directory))
    if told.vhost_user:
        return VhostUser(**_placed(told.vhost_user, directory))
    if told.port:
        return CustomPort(**_placed(told.port, directory))
    return Kernel()


def _placed(port: _Memif | _VhostUser | _Custom, directory: str) -> dict[str, Any]:
    values = attrs.asdict(port)
    if port.socket and not port.socket.startswith(ABSTRACT):
        values["socket"] = os.path.join(directory, port.socket)
    return values


def _known(raw: Mapping[str, Any], kind: type) -> dict[str, Any]:
    """Return *raw* without the keys of later versions of the format."""
    known: dict[str, Any] = {}
    for attribute in attrs.fields(kind):
        key = key_of(attribute)
        if key not in raw:
            continue
        below = _PARTS.get(key)
        value = raw[key]
        known[key] = _known(value, below) if below and isinstance(value, dict) else value
    return known


# -- how it is written


def _interface(_: object, __: object, value: str) -> None:
    if not is_ifname(value):
        raise ValueError(f"expected an interface name of 1 to 15 characters, got {value!r}")


def _bare_name(_: object, __: object, value: str) -> None:
    plain = value.removeprefix(ABSTRACT)
    if plain in ("", ".", "..") or "/" in plain or not plain.isprintable():
        raise ValueError(
            f"expected the bare name of a file, or {ABSTRACT} and an abstract name, got {value!r}"
        )


def _bare_name_or_none(instance: object, attribute: object, value: str) -> None:
    if value:
        _bare_name(instance, attribute, value)


def _mac(_: object, __: object, value: str) -> None:
    if not _MAC.fullmatch(value):
        raise ValueError(f"expected a MAC address, got {value!r}")


def _printable(_: object, attribute: attrs.Attribute[Any], value: str) -> None:
    if not value.isprintable():
        shown = "" if attribute.name == "secret" else f", got {value!r}"
        raise ValueError(f"expected printable characters{shown}")


def _up_to(high: int) -> Any:
    def validate(_: object, __: object, value: int) -> None:
        if not 0 <= value <= high:
            raise ValueError(f"expected 0 to {high}, got {value}")

    return validate


@frozen(kw_only=True)
class _Pod:
    namespace: str = field(validator=_printable)
    name: str = field(validator=_printable)
    uid: str = field(default="", validator=_printable)


@frozen(kw_only=True)
class _Memif:
    role: Literal["server", "client"]
    socket: str = field(validator=_bare_name)
    mode: Literal["ethernet", "ip", "inject-punt"] = "ethernet"
    id: int = field(default=0, validator=_up_to(_U32))
    secret: str = field(default="", repr=False, validator=_printable)
    rx_queues: int = field(default=1, validator=_up_to(_U16))
    tx_queues: int = field(default=1, validator=_up_to(_U16))
    ring_size: int = field(default=1024, validator=_up_to(_U16))
    buffer_size: int = field(default=2048, validator=_up_to(_U32))
    zero_copy: bool = False


@frozen(kw_only=True)
class _VhostUser:
    mode: Literal["server", "client"]
    socket: str = field(validator=_bare_name)
    queues: int = field(default=1, validator=_up_to(_U16))


@frozen(kw_only=True)
class _Custom:
    kind: str = field(validator=attrs.fields(CustomPort).kind.validator)
    socket: str = field(default="", validator=_bare_name_or_none)
    role: Role = ""
    values: Mapping[str, Any] = field(factory=dict)


@frozen(kw_only=True)
class _Document:
    version: Literal[1]
    id: str = field(validator=_printable)
    network: str = field(validator=_printable)
    engine: str = field(default="", validator=_printable)
    pod: _Pod | None = None
    interface: str = field(validator=_interface)
    iftype: str = field(validator=_printable)
    net_type: str = field(validator=_printable)
    mac: str = field(default="", validator=_mac)
    mtu: int = field(default=0, validator=_up_to(_U32))
    point_to_point: bool = False
    bridge: str = field(default="", validator=_printable)
    memif: _Memif | None = None
    vhost_user: _VhostUser | None = None
    port: _Custom | None = None


_PARTS: dict[str, type] = {"pod": _Pod, "memif": _Memif, "vhostUser": _VhostUser, "port": _Custom}
