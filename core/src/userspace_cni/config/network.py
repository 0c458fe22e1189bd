"""NetConf: the configuration of a network of type ``userspace``."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from ipaddress import ip_address
from typing import Any, Literal

from attrs import field, frozen

from userspace_cni.api import (
    EngineConf,
    EngineInfo,
)
from userspace_cni.cni.errors import CniError, Code, InvalidConfig, Problems, did_you_mean
from userspace_cni.cni.request import Target, is_ifname
from userspace_cni.config.decoding import shown, structure
from userspace_cni.config.settings import LOG_LEVELS

_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}", re.IGNORECASE)
_MTU_MIN, _MTU_MAX = 68, 65535  # RFC 791; the 16 bits of an IPv4 total length
#: A DNS label (RFC 1123), which is the form of volume names in Kubernetes.
_VOLUME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_NET_TYPES = ("none", "bridge", "interface")
#: The keys of ``host`` and ``container`` that are not sections.
_END_KEYS = ("engine", "iftype", "netType")


def require_mac(_: object, __: object, value: Any) -> None:
    """Raise ValueError unless *value* is a MAC address that an interface can have."""
    if value is None:
        return
    if not isinstance(value, str) or not _MAC.fullmatch(value):
        raise ValueError(f"expected a MAC address (02:00:00:00:00:01), got {value!r}")
    if int(value[:2], 16) & 1:
        raise ValueError(f"expected a unicast MAC address, got the multicast address {value!r}")
    if not value.strip("0:"):
        raise ValueError(f"expected a MAC address other than {value!r}")


def _mtu(_: object, __: object, value: int | None) -> None:
    if value is not None and not _MTU_MIN <= value <= _MTU_MAX:
        raise ValueError(f"expected {_MTU_MIN} to {_MTU_MAX} bytes, got {value}")


def _ifname(_: object, __: object, value: str | None) -> None:
    if value is not None and not is_ifname(value):
        raise ValueError(f"expected an interface name of 1 to 15 characters, got {value!r}")


def _absolute(_: object, __: object, value: str | None) -> None:
    if value is not None and (not value.startswith("/") or "\0" in value):
        raise ValueError(f"expected an absolute path, got {value!r}")


def _volume(_: object, __: object, value: str) -> None:
    if not _VOLUME.fullmatch(value):
        raise ValueError(f"expected the name of a pod's volume, such as shared-dir, got {value!r}")


def _log_level(_: object, __: object, value: str | None) -> None:
    if value is not None and value.lower() not in LOG_LEVELS:
        raise ValueError(f"expected one of {', '.join(LOG_LEVELS)}, got {value!r}")


def _not_negative(_: object, __: object, value: int) -> None:
    if value < 0:
        raise ValueError(f"expected 0 or more bits, got {value}")


@frozen(kw_only=True)
class _Dns:
    nameservers: tuple[str, ...] = ()
    domain: str = ""
    search: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


@frozen(kw_only=True)
class RawBandwidth:
    """The keys of the CNI plugin ``bandwidth``; see :class:`~userspace_cni.api.Bandwidth`."""

    ingress_rate: int = field(default=0, validator=_not_negative)
    ingress_burst: int = field(default=0, validator=_not_negative)
    egress_rate: int = field(default=0, validator=_not_negative)
    egress_burst: int = field(default=0, validator=_not_negative)


@frozen(kw_only=True)
class NetConf:
    """The configuration of a network: our own keys, and those that all CNI plugins share."""

    cni_version: str = ""
    name: str
    type: str = "userspace"
    #: The host's end; see :func:`engine_conf`.
    host: Mapping[str, Any]
    #: The container's end; see :func:`engine_conf`.
    container: Mapping[str, Any] = field(factory=dict)
    #: The name of the interface in the container, instead of CNI_IFNAME.
    if0name: str | None = field(default=None, validator=_ifname)
    mtu: int | None = field(default=None, validator=_mtu)
    mac: str | None = field(default=None, validator=require_mac)
    #: Whether CNI_ARGS may set the MAC address.
    mac_from_args: bool = False
    bandwidth: RawBandwidth | None = None
    #: The directory in which each container gets a directory for its sockets, instead of the node's
    #: default.
    shared_dir: str | None = field(default=None, validator=_absolute)
    #: The path at which the container mounts its directory; the default is the path on the node.
    container_dir: str | None = field(default=None, validator=_absolute)
    #: Whether to write the file of the first plugin too.
    legacy_file: bool = False
    #: The kubeconfig file, with which to find the pod's volume and write the pod's annotations.
    kubeconfig: str | None = field(default=None, validator=_absolute)
    #: The name of the pod's volume for the shared directory.
    shared_volume: str = field(default="shared-dir", validator=_volume)
    ipam: Mapping[str, Any] = field(factory=dict)
    dns: _Dns = field(factory=_Dns)
    args: Mapping[str, Any] = field(factory=dict)
    capabilities: Mapping[str, Any] = field(factory=dict)
    runtime_config: Mapping[str, Any] = field(factory=dict)
    prev_result: Mapping[str, Any] | None = None
    log_file: str | None = field(default=None, validator=_absolute)
    log_level: str | None = field(default=None, validator=_log_level)
    disable_check: bool = False

    @property
    def ipam_type(self) -> str:
        """The name of the IPAM plugin; empty if the network has none."""
        return str(self.ipam.get("type", ""))


#: Keys that others add to the configuration of every plugin, and that are ignored: runtimes add
#: their own key, and Multus adds keys for a network with a device or a resource.
_INJECTED = ("disableGC", "deviceID", "pciBusID", "resourceName", "resourceID")


def load(target: Target, problems: Problems | None = None) -> NetConf:
    """Return the structured configuration of *target*.

    If *problems* is given, errors are added to it, and the result lacks the keys with errors.

    Raises:
        CniError: 7 for invalid values, 2 for unknown keys; one error with all problems.

    """
    found = Problems() if problems is None else problems
    # "cni.dev/..." is reserved for the protocol itself (SPEC, section 1).
    own = {key: value for key, value in target.config.items() if not key.startswith("cni.dev/")}
    for key in _INJECTED:
        own.pop(key, None)
    try:
        conf = structure(own, NetConf, "")
    except CniError as error:
        found.add(error)
        if not isinstance(own.get("host"), Mapping):
            found.settle()  # the engines are not known
        conf = structure({key: own[key] for key in own if _stands(key, own[key])}, NetConf, "")
    if not isinstance(conf.ipam.get("type", ""), str) or {"/", "\0"} & {*conf.ipam_type}:
        found.add(
            InvalidConfig(
                "ipam.type", f"expected the bare name of a plugin, got {conf.ipam['type']!r}"
            )
        )
    elif conf.ipam and not conf.ipam_type:
        found.add(InvalidConfig("ipam.type", "missing; name the IPAM plugin, such as host-local"))
    for server in conf.dns.nameservers:
        try:
            ip_address(server)
        except ValueError:
            found.add(InvalidConfig("dns.nameservers", f"expected IP addresses, got {server!r}"))
    if not isinstance(conf.args.get("cni", {}), Mapping):
        found.add(InvalidConfig("args.cni", f"expected a JSON object, got {conf.args['cni']!r}"))
    _check_runtime_config(conf, found)
    if problems is None:
        found.settle()
    return conf


def _stands(key: str, value: object) -> bool:
    """Return whether a key of the configuration can be used."""
    try:
        structure({"name": "", "host": {}, key: value}, NetConf, "")
    except CniError:
        return False
    return True


#: What the runtime may pass: for core, or for the IPAM plugin, which gets the whole configuration.
_HONOURED = ("bandwidth", "cnideviceinfofile", "deviceid", "dns", "mac")
_HONOURED_BY_IPAM = ("ips", "ipranges")


def _check_runtime_config(conf: NetConf, problems: Problems) -> None:
    for key, value in conf.runtime_config.items():
        if key.lower() == "dns" and value is not None:
            with problems:
                _check_runtime_dns(f"runtimeConfig.{key}", value)
        if key.lower() in _HONOURED or not value:
            continue
        if key.lower() not in _HONOURED_BY_IPAM:
            problems.add(
                CniError(
                    Code.UNSUPPORTED_FIELD,
                    f"runtimeConfig.{key}: cannot be honoured: {json.dumps(value)}",
                    f'remove "{key}" from "capabilities" of this plugin, '
                    "or give it to a plugin that has it, such as portmap or bandwidth",
                )
            )
        elif not conf.ipam_type:
            problems.add(
                InvalidConfig(
                    f"runtimeConfig.{key}",
                    f"{json.dumps(value)} needs an IPAM plugin, and the network has none",
                    'give the network an "ipam" section such as {"type": "static"}',
                )
            )


def _check_runtime_dns(path: str, value: object) -> None:
    if not isinstance(value, Mapping):
        raise InvalidConfig(path, f"expected a JSON object, got {json.dumps(value)}")
    for key, items in folded(value).items():
        known = key in ("servers", "searches", "options") and items is not None
        if known and not (isinstance(items, list) and all(isinstance(i, str) for i in items)):
            raise InvalidConfig(
                f"{path}.{key}", f"expected a list of strings, got {json.dumps(items)}"
            )


def engine_name(
    conf: NetConf, end: Literal["host", "container"], host: EngineInfo | None = None
) -> str:
    """Return the name of the engine of one *end*.

    The default for the container's end is the container engine that the *host* engine declares for
    the interface type, otherwise the one with the host engine's name.

    Raises:
        CniError: code 7.

    """
    name = conf.host.get("engine")
    if end == "container":
        iftype = conf.container.get("iftype", conf.host.get("iftype"))
        declared = host.container_engines if host else {}
        default = declared.get(iftype, name) if isinstance(iftype, str) else name
        name = conf.container.get("engine", default)
    if name is None:
        raise InvalidConfig("host.engine", "missing; name an engine, such as linux")
    if not isinstance(name, str) or not name:
        raise InvalidConfig(f"{end}.engine", f"expected the name of an engine, got {name!r}")
    return name


def engine_conf(
    raw: Mapping[str, Any], path: str, info: EngineInfo, defaults: Mapping[str, str]
) -> EngineConf:
    """Return one end's part of the configuration, with the sections that *info* declares.

    Args:
        raw: The value of ``host`` or ``container``.
        path: The key: ``host`` or ``container``.
        info: The description of the engine.
        defaults: Defaults for ``iftype`` and ``netType``.

    Raises:
        CniError: 7 for an invalid value, 2 for a key that the engine does not have.

    """
    problems = Problems()
    known_keys = (*_END_KEYS, *sorted(info.sections))
    for key in sorted(raw.keys() - {*known_keys}):
        problems.add(
            CniError(
                Code.UNSUPPORTED_FIELD,
                f"{path}.{key}: unknown key with value {shown(raw[key], *info.sections.values())}",
                f"{did_you_mean(key, known_keys)}engine {info.name!r} knows "
                f"{', '.join(known_keys)}",
            )
        )

    def choice(key: str, known: tuple[str, ...], default: str | None) -> str:
        value = raw.get(key, default)
        if value is None:
            problem = f"missing; engine {info.name!r} has {', '.join(known)}"
            problems.add(InvalidConfig(f"{path}.{key}", problem))
        elif value not in known:
            problem = f"engine {info.name!r} has {', '.join(known)}, got {value!r}"
            problems.add(InvalidConfig(f"{path}.{key}", problem))
        return str(value)

    implied = "bridge" if "bridge" in raw else "none"
    iftype = choice("iftype", info.interface_types, defaults.get("iftype"))
    net_type = choice("netType", info.network_types, defaults.get("netType", implied))
    sections: dict[str, object] = {}
    for key, kind in info.sections.items():
        if key in raw:
            with problems:
                sections[key] = structure(raw[key], kind, f"{path}.{key}")
    problems.settle()
    return EngineConf(engine=info.name, iftype=iftype, net_type=net_type, sections=sections)


def folded(value: object) -> dict[str, Any]:
    """Return the members of a JSON object by lower-case key, because Go programs ignore the case.

    containerd writes ``{"Servers": ...}`` where podman writes ``{"servers": ...}``.
    """
    if not isinstance(value, Mapping):
        return {}
    return {str(key).lower(): item for key, item in value.items()}
