"""A pod's annotations, which Kubernetes' Downward API writes to a file in the container.

``k8s.v1.cni.cncf.io/network-status`` has device-info (Multi-Network Specification 1.3, 5.3; Device
Information Specification 1.1.0). ``userspace/configuration-data`` is the annotation of the first
userspace CNI plugin.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from ipaddress import ip_interface
from typing import Any

from userspace_cni.api import Handoff, IPConfig, Memif, Port, VhostUser
from userspace_cni.cni import result as cni_result
from userspace_cni.cni.request import is_ifname
from userspace_cni.handover import Document
from userspace_cni.handover.document import ABSTRACT, load_custom
from userspace_cni.handover.legacy import CONFIGURATION_DATA, MAPPED_DIR

_LINE = re.compile(r'([^="\s]+)="((?:[^"\\]|\\.)*)"')
_HEX = "([0-9a-fA-F]{%d})"
_ESCAPE = re.compile(rf"\\(?:x{_HEX % 2}|u{_HEX % 4}|U{_HEX % 8}|(.))")
_SIMPLE = {"a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v"}
_UNICODE_MAX = 0x10FFFF

_ROLES: Mapping[Any, Any] = {
    "master": "server",
    "server": "server",
    "slave": "client",
    "client": "client",
}
#: nad-client writes "punt" for what the specification calls "inject-punt".
_MODES: Mapping[Any, Any] = {
    "": "ethernet",
    "ethernet": "ethernet",
    "ip": "ip",
    "punt": "inject-punt",
    "inject-punt": "inject-punt",
}
_VHOST_MODES: Mapping[Any, Any] = {"client": "client", "server": "server"}
#: The first plugin's names for container engines that configure themselves.
_ENGINES = {"ovs-dpdk": "dpdk", "ovs": "dpdk"}


def parse(text: str) -> dict[str, str]:
    """Return the annotations in a file of lines ``KEY="VALUE"``, quoted by Go's ``%q``.

    Raises:
        ValueError: a line has another form.

    """
    values = {}
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        match = _LINE.fullmatch(line.strip())
        if match is None:
            raise ValueError(f'line {number}: expected KEY="VALUE"')
        values[match[1]] = _ESCAPE.sub(_unescaped, match[2])
    return values


def _unescaped(match: re.Match[str]) -> str:
    digits = match[1] or match[2] or match[3]
    if digits:
        return chr(min(int(digits, 16), _UNICODE_MAX))
    return _SIMPLE.get(match[4], match[4])


def _network_status(items: Iterable[Mapping[str, Any]], _: Mapping[str, str]) -> Iterator[Document]:
    for item in items:
        info = item.get("device-info")
        if not isinstance(info, Mapping) or info.get("type") not in ("memif", "vhost-user"):
            continue
        kind = info["type"]
        port = _object(info, kind)
        ips = tuple(
            IPConfig(address=ip_interface(_text(dict(enumerate(listed)), position)))
            for listed in [_items(item, "ips")]
            for position in range(len(listed))
        )
        interface = _interface(item, "interface")
        socket = _path(port, "path", interface)
        yield Document(
            network=_text(item, "name"),
            handoff=Handoff(
                interface=interface,
                iftype="memif" if kind == "memif" else "vhostuser",
                net_type="interface" if ips else "none",
                mac=_text(item, "mac").lower(),
                mtu=_number(item, "mtu"),
                ips=ips,
                port=(_memif if kind == "memif" else _vhost_user)(port, socket),
            ),
        )


def _configuration_data(
    items: Iterable[Mapping[str, Any]], annotations: Mapping[str, str]
) -> Iterator[Document]:
    mapped = annotations.get(MAPPED_DIR, "")
    for item in items:
        config = _object(item, "config")
        interface = _interface(item, "ifName")
        if not mapped.startswith("/"):
            raise ValueError(f"{MAPPED_DIR}: expected an absolute path, got {mapped!r}")
        lists = cni_result.load(item.get("ipResult") or {}, "0.4.0")
        engine = _text(config, "engine")
        yield Document(
            network=_text(item, "name"),
            engine=_ENGINES.get(engine, engine),
            handoff=Handoff(
                interface=interface,
                iftype=_text(config, "iftype"),
                net_type=_text(config, "netType") or ("interface" if lists.ips else "none"),
                bridge=_text(_object(config, "bridge"), "bridgeName"),
                ips=lists.ips,
                routes=lists.routes,
                dns=lists.dns,
                port=_configured(config, interface, mapped),
            ),
        )


def _configured(config: Mapping[str, Any], interface: str, mapped: str) -> Port:
    """Return the port that *config* of the configuration data describes."""
    if custom := _object(config, "port"):
        return load_custom(custom, f"port of {interface}", mapped)
    iftype = _choice(config, "iftype", {"memif": "memif", "vhostuser": "vhostuser"})
    port = _object(config, "memif" if iftype == "memif" else "vhost")
    name = _text(port, "socketfile")
    if name in ("", ".", "..") or "/" in name:
        raise ValueError(f"socketfile of {interface}: expected a bare name, got {name!r}")
    socket = name if name.startswith(ABSTRACT) else os.path.join(mapped, name)
    return (_memif if iftype == "memif" else _vhost_user)(port, socket)


_Reader = Callable[[Iterable[Mapping[str, Any]], Mapping[str, str]], Iterator[Document]]

#: The reader of each annotation; the one with the most information is first.
READERS: Mapping[str, _Reader] = {
    "k8s.v1.cni.cncf.io/network-status": _network_status,
    "k8s.v1.cni.cncf.io/networks-status": _network_status,
    CONFIGURATION_DATA: _configuration_data,
}


def _memif(port: Mapping[str, Any], socket: str) -> Memif:
    return Memif(
        role=_choice(port, "role", _ROLES), mode=_choice(port, "mode", _MODES), socket=socket
    )


def _vhost_user(port: Mapping[str, Any], socket: str) -> VhostUser:
    return VhostUser(mode=_choice(port, "mode", _VHOST_MODES), socket=socket)


def _object(raw: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = raw.get(key) or {}
    if not isinstance(value, Mapping):
        raise ValueError(f"{key}: expected a JSON object, got {value!r}")
    return value


def _items(raw: Mapping[str, Any], key: str) -> list[Any]:
    value = raw.get(key) or []
    if not isinstance(value, list):
        raise ValueError(f"{key}: expected a list, got {value!r}")
    return value


def _text(raw: Mapping[Any, Any], key: Any) -> str:
    value = raw.get(key) or ""
    if not isinstance(value, str) or not value.isprintable():
        raise ValueError(f"{key}: expected printable text, got {value!r}")
    return value


def _number(raw: Mapping[str, Any], key: str) -> int:
    value = raw.get(key) or 0
    if not isinstance(value, int) or value < 0:
        raise ValueError(f"{key}: expected a number, got {value!r}")
    return int(value)


def _interface(raw: Mapping[str, Any], key: str) -> str:
    value = _text(raw, key)
    if not is_ifname(value):
        raise ValueError(f"{key}: expected the name of an interface, got {value!r}")
    return value


def _path(raw: Mapping[str, Any], key: str, interface: str) -> str:
    value = _text(raw, key)
    if not value.startswith(("/", ABSTRACT)):
        raise ValueError(f"{key} of {interface}: expected an absolute path, got {value!r}")
    return value


def _choice(raw: Mapping[str, Any], key: str, known: Mapping[Any, Any]) -> Any:
    value = _text(raw, key)
    if value not in known:
        raise ValueError(f"{key}: expected one of {', '.join(filter(None, known))}, got {value!r}")
    return known[value]
