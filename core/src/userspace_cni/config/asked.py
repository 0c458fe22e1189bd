"""What a request asks for its own container, in addition to the network's configuration.

It comes from ``runtimeConfig``, ``args.cni``, CNI_ARGS and ``prevResult``. All of it is read and
checked here, once, before anything is changed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

import attrs
from attrs import field, frozen

from userspace_cni.api import Bandwidth, EngineInfo, Pod, attachment_id, mac_address
from userspace_cni.cni import result as cni_result
from userspace_cni.cni.errors import CniError, Code, InvalidConfig, Problems
from userspace_cni.cni.request import Target
from userspace_cni.cni.result import DNS, Result
from userspace_cni.config.decoding import structure
from userspace_cni.config.network import NetConf, RawBandwidth, folded, require_mac

#: The burst that containerd sets for every pod without being asked. It would let half a gigabyte
#: pass before the limit applies.
_NO_BURST = 2**32 - 1
_BANDWIDTH_KEYS = ("ingressRate", "ingressBurst", "egressRate", "egressBurst")


@frozen(kw_only=True)
class Asked:
    """What a request asks for its container."""

    #: The MAC address, in lower case.
    mac: str | None = None
    bandwidth: Bandwidth | None = None
    dns: DNS = field(factory=DNS)
    #: ``args.cni``, otherwise CNI_ARGS, by lower-case key.
    args: Mapping[str, str] = field(factory=dict)
    pod: Pod | None = None
    #: ``prevResult``; None if there is none.
    previous: Result | None = None


def ask(conf: NetConf, target: Target, problems: Problems, command: str = "") -> Asked:
    """Return what *target* asks for its container, on the network with *conf*.

    Errors are added to *problems*. ``prevResult`` is only read for the *command* ADD or CHECK. For
    ADD, an error is added if CNI_ARGS set something that the network does not permit.
    """
    mac = bandwidth = previous = None
    with problems:
        mac = _mac(conf, target)
    with problems:
        bandwidth = _bandwidth(conf)
    if command in ("ADD", "CHECK"):
        with problems:
            previous = _previous(conf, target)
    if command == "ADD":
        with problems:
            _require_open(conf, target)
    given = folded(conf.args.get("cni")) or folded(target.args)
    return Asked(
        mac=mac,
        bandwidth=bandwidth,
        dns=_dns(conf),
        args={key: value for key, value in given.items() if isinstance(value, str)},
        pod=pod_of(target.args),
        previous=previous,
    )


def pod_of(args: Mapping[str, str]) -> Pod | None:
    """Return the pod in CNI_ARGS; None outside Kubernetes."""
    namespace, name = (args.get(f"K8S_POD_{key}", "") for key in ("NAMESPACE", "NAME"))
    if not namespace or not name:
        return None
    return Pod(namespace=namespace, name=name, uid=args.get("K8S_POD_UID", ""))


def require_bandwidth(conf: NetConf, asked: Asked, info: EngineInfo, iftype: str) -> None:
    """Raise CniError 2 if the host engine *info* cannot limit the rate of *iftype*."""
    if asked.bandwidth is not None and iftype not in info.bandwidth:
        given = folded(conf.runtime_config).get("bandwidth")
        path = "runtimeConfig.bandwidth" if given else "bandwidth"
        value = json.dumps(given or asked.bandwidth, default=attrs.asdict)
        raise CniError(
            Code.UNSUPPORTED_FIELD,
            f"{path}: host engine {info.name!r} cannot limit an attachment of iftype {iftype!r}, "
            f"got {value}",
            f"it limits {', '.join(info.bandwidth) or 'none'}; choose another iftype, or remove "
            '"bandwidth" from the network and from its "capabilities"',
        )


def _dns(conf: NetConf) -> DNS:
    """Return the DNS settings; those of the runtime for this container take precedence."""
    given = folded(folded(conf.runtime_config).get("dns"))
    wanted = DNS(
        nameservers=tuple(given.get("servers") or ()),
        search=tuple(given.get("searches") or ()),
        options=tuple(given.get("options") or ()),
    )
    return wanted or DNS(**attrs.asdict(conf.dns, recurse=False))


def _bandwidth(conf: NetConf) -> Bandwidth | None:
    """Return the limits; those of the runtime for this container take precedence."""
    given = folded(conf.runtime_config).get("bandwidth")
    if isinstance(given, Mapping):
        # containerd writes IngressRate, as Go programs do.
        keys = {key.lower(): key for key in _BANDWIDTH_KEYS}
        given = {
            keys.get(str(key).lower(), key): value
            for key, value in given.items()
            if not (value == _NO_BURST and str(key).lower().endswith("burst"))
        }
    asked = structure(given, RawBandwidth, "runtimeConfig.bandwidth") if given else conf.bandwidth
    limits = Bandwidth(**attrs.asdict(asked)) if asked else Bandwidth()
    return None if limits == Bandwidth() else limits


def _previous(conf: NetConf, target: Target) -> Result | None:
    if conf.prev_result is None:
        return None
    stated = conf.prev_result.get("cniVersion") or target.cni_version
    if stated not in cni_result.VERSIONS:
        raise CniError(
            Code.INCOMPATIBLE_VERSION,
            f"prevResult.cniVersion: {stated!r} is not supported",
            f"this plugin supports {', '.join(cni_result.VERSIONS)}",
        )
    try:
        result = cni_result.load(dict(conf.prev_result), stated)
    except CniError as error:
        raise CniError(error.code, f"prevResult.{error.msg}", error.details) from None
    for position, ip in enumerate(result.ips):
        if ip.interface is not None and ip.interface >= len(result.interfaces):
            raise InvalidConfig(
                f"prevResult.ips[{position}].interface",
                f"expected an index into {len(result.interfaces)} interfaces, got {ip.interface}",
            )
    return result


def _mac(conf: NetConf, target: Target) -> str | None:
    """Return the requested MAC address: from runtimeConfig, args.cni, CNI_ARGS or configuration.

    With ``args.cni``, CNI_ARGS are ignored, as the CNI conventions require.
    """
    cni_args = folded(conf.args.get("cni"))
    candidates = {
        "runtimeConfig.mac": folded(conf.runtime_config).get("mac"),
        "args.cni.mac": cni_args.get("mac"),
        "CNI_ARGS MAC": target.args.get("MAC") if conf.mac_from_args and not cni_args else None,
        "mac": conf.mac,
    }
    for path, value in candidates.items():
        if value in (None, ""):
            continue
        try:
            require_mac(None, None, value)
        except ValueError as error:
            raise InvalidConfig(path, str(error)) from None
        return str(value).lower()
    return None


def _require_open(conf: NetConf, target: Target) -> None:
    """Raise InvalidConfig if CNI_ARGS request something that the network does not permit.

    The address that the attachment has anyway is permitted: podman repeats it when it reloads a
    network.
    """
    asked = target.args.get("MAC", "").lower()
    if asked == "" or conf.mac_from_args:
        return
    given = folded(conf.runtime_config).get("mac") or folded(conf.args.get("cni"))
    id_ = attachment_id(target.network, target.container_id, target.ifname)
    own = conf.mac or mac_address(id_, "container")
    if asked != own.lower() and not given:
        raise InvalidConfig(
            "CNI_ARGS MAC",
            f"the network lets nobody choose a MAC address by CNI_ARGS, got {target.args['MAC']!r}",
            'add "macFromArgs": true to the network, or ask for no MAC address',
        )
