"""A CNI request, from the environment and standard input (CNI SPEC, section 2)."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from attrs import field, frozen

from userspace_cni.cni.errors import CniError, Code
from userspace_cni.cni.versions import SINCE, SUPPORTED, UNSTATED, at_least

#: The variables that each command requires.
REQUIRED = {
    "ADD": ("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"),
    "CHECK": ("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"),
    "DEL": ("CNI_CONTAINERID", "CNI_IFNAME"),
    "GC": (),
    "STATUS": (),
}

_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.\-]*", re.ASCII)
_IFNAME_MAX = 15  # IFNAMSIZ less the final NUL, <linux/if.h>
_TRUE = ("1", "true")
_DEPTH_MAX = 100  # levels of JSON; Python's own limit depends on the depth of the call stack


@frozen(kw_only=True)
class Target:
    """The subject of a request: an interface of a container, or a network without a container."""

    #: The network's name.
    network: str
    container_id: str = ""
    ifname: str = ""
    #: The path of the container's network namespace.
    netns: str = ""
    #: CNI_ARGS; if a key occurs twice, the last one.
    args: Mapping[str, str] = field(factory=dict)
    #: The network configuration as received.
    config: Mapping[str, Any]

    @property
    def cni_version(self) -> str:
        """See :func:`version_of`."""
        return version_of(self.config)

    @property
    def variables(self) -> dict[str, str]:
        """The environment variables about the container, for IPAM plugins."""
        told = {
            "CNI_CONTAINERID": self.container_id,
            "CNI_IFNAME": self.ifname,
            "CNI_NETNS": self.netns,
        }
        if self.args:
            told["CNI_ARGS"] = ";".join(f"{key}={value}" for key, value in self.args.items())
        return told if self.container_id else {}


@frozen(kw_only=True)
class Caller:
    """The caller of a request."""

    #: The directories of CNI_PATH.
    path: tuple[str, ...] = ()
    #: The whole environment, for IPAM plugins.
    environ: Mapping[str, str] = field(factory=dict, repr=False)
    #: Whether CNI_NETNS may be the plugin's own network namespace (CNI_NETNS_OVERRIDE).
    netns_override: bool = False
    #: Returns whether somebody still waits for the answer.
    wanted: Callable[[], bool] = field(default=lambda: True, eq=False, repr=False)


@frozen(kw_only=True)
class Request:
    """One call of the plugin. All checks that do not depend on an engine have passed."""

    command: str
    target: Target
    caller: Caller = field(factory=Caller)
    #: For GC: the container id and CNI_IFNAME of each attachment of the network to keep.
    valid: frozenset[tuple[str, str]] = frozenset()


def parse(
    environ: Mapping[str, str],
    config: Mapping[str, Any],
    wanted: Callable[[], bool] = lambda: True,
) -> Request:
    """Check the environment and the reserved keys of *config*; return the request.

    *wanted* returns whether somebody still waits for the answer.

    Raises:
        CniError: 4 for the environment, 1 for the version, 7 for the network's name and for the
            list of a GC.

    """
    command = environ.get("CNI_COMMAND", "")
    if command not in REQUIRED:
        raise CniError(
            Code.INVALID_ENVIRONMENT,
            f"unknown CNI_COMMAND {command!r}",
            f"expected one of {', '.join((*REQUIRED, 'VERSION'))}",
        )
    _check_environment(command, environ)
    version = version_of(config)
    if command in SINCE and not at_least(version, SINCE[command]):
        raise CniError(
            Code.INCOMPATIBLE_VERSION,
            f"{command} needs cniVersion {SINCE[command]} or later, the network has {version}",
            "raise cniVersion in the network, if all its plugins speak that version",
        )
    return Request(
        command=command,
        target=Target(
            network=_network_name(config),
            container_id=environ.get("CNI_CONTAINERID", ""),
            ifname=environ.get("CNI_IFNAME", ""),
            netns=environ.get("CNI_NETNS", ""),
            args=_parse_args(environ.get("CNI_ARGS", ""), strict=command in ("ADD", "CHECK")),
            config=config,
        ),
        caller=Caller(
            path=tuple(part for part in environ.get("CNI_PATH", "").split(":") if part),
            environ=environ,
            netns_override=environ.get("CNI_NETNS_OVERRIDE", "").lower() in _TRUE,
            wanted=wanted,
        ),
        valid=_valid(config) if command == "GC" else frozenset(),
    )


def _valid(config: Mapping[str, Any]) -> frozenset[tuple[str, str]]:
    from userspace_cni.cni import valid  # no other command needs it

    return valid.parse(config)


def decode(stdin: bytes) -> dict[str, Any]:
    """Return the JSON object on standard input.

    Raises:
        CniError: code 6.

    """
    try:
        config = json.loads(stdin, parse_constant=_refuse_constant)
    except RecursionError:
        raise _too_deep() from None
    except ValueError as error:
        raise CniError(
            Code.DECODING_FAILURE,
            "the network configuration on standard input is not JSON",
            str(error) if stdin.strip() else "standard input is empty",
        ) from None
    if not isinstance(config, dict):
        raise CniError(
            Code.DECODING_FAILURE,
            "the network configuration on standard input must be a JSON object, "
            f"got {type(config).__name__}",
            "give the configuration of one plugin, in braces",
        )
    level: list[Any] = [config]
    for _ in range(_DEPTH_MAX):
        level = [child for value in level for child in _children(value)]
        if not level:
            return config
    raise _too_deep()


def version_of(config: Mapping[str, Any]) -> str:
    """Return the ``cniVersion`` of *config*.

    Raises:
        CniError: 6 when it is not a string, 1 when the version is not supported.

    """
    version = config.get("cniVersion")
    if version in (None, ""):
        return UNSTATED
    if not isinstance(version, str):
        raise CniError(
            Code.DECODING_FAILURE,
            f"cniVersion: expected a string, got {version!r}",
            "put it into quotes",
        )
    if version not in SUPPORTED:
        raise CniError(
            Code.INCOMPATIBLE_VERSION,
            f"cniVersion {version!r} is not supported",
            f"this plugin supports {', '.join(SUPPORTED)}",
        )
    return version


def version_of_errors(config: Mapping[str, Any]) -> str:
    """Return the version for errors about *config*."""
    version = config.get("cniVersion")
    return version if version in SUPPORTED else SUPPORTED[-1]


def is_ifname(name: str) -> bool:
    """Return whether the kernel and the specification allow *name* as the name of an interface."""
    return (
        0 < len(name.encode("utf-8", "surrogateescape")) <= _IFNAME_MAX
        and name not in (".", "..")
        and name.isprintable()
        and not any(char in "/:" or char.isspace() for char in name)
    )


def is_name(name: str) -> bool:
    """Return whether the specification allows *name* as a container id or a network's name."""
    return _NAME.fullmatch(name) is not None


def _children(value: object) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def _too_deep() -> CniError:
    return CniError(
        Code.DECODING_FAILURE,
        f"the network configuration is nested too deeply, more than {_DEPTH_MAX} levels",
        "write it flatter",
    )


def _refuse_constant(constant: str) -> None:
    msg = f"{constant} is not JSON"
    raise ValueError(msg)


def _check_environment(command: str, environ: Mapping[str, str]) -> None:
    missing = [name for name in REQUIRED[command] if not environ.get(name)]
    if missing:
        raise CniError(
            Code.INVALID_ENVIRONMENT,
            f"required environment variables missing for {command}: {', '.join(missing)}",
            "the container runtime sets them; people use userspace-cni run",
        )
    if (container_id := environ.get("CNI_CONTAINERID")) and not is_name(container_id):
        raise CniError(
            Code.INVALID_ENVIRONMENT,
            f"CNI_CONTAINERID {container_id!r} is not a container id",
            "it must begin with a letter or digit and hold letters, digits, '_', '.' and '-' alone",
        )
    if (ifname := environ.get("CNI_IFNAME")) and not is_ifname(ifname):
        raise CniError(
            Code.INVALID_ENVIRONMENT,
            f"CNI_IFNAME {ifname!r} is not an interface name",
            f"it must have 1 to {_IFNAME_MAX} bytes, no '/', ':' or white space, "
            "and be neither '.' nor '..'",
        )


def _network_name(config: Mapping[str, Any]) -> str:
    name = config.get("name")
    if name in (None, ""):
        raise CniError(Code.INVALID_NETWORK_CONFIG, "name: missing; a network needs a name")
    if not isinstance(name, str) or not is_name(name):
        raise CniError(
            Code.INVALID_NETWORK_CONFIG,
            f"name: {name!r} is not a network name",
            "it must begin with a letter or digit and hold letters, digits, '_', '.' and '-' alone",
        )
    return name


#: The keys of CNI_ARGS that core or IPAM plugins understand (CNI conventions).
_KNOWN_ARGS = frozenset(
    {
        "GATEWAY",
        "IP",
        "IgnoreUnknown",
        "K8S_POD_INFRA_CONTAINER_ID",
        "K8S_POD_NAME",
        "K8S_POD_NAMESPACE",
        "K8S_POD_UID",
        "MAC",
    }
)


def _parse_args(text: str, *, strict: bool) -> dict[str, str]:
    """Parse ``K=V;K=V``. Unless *strict*, skip what cannot be parsed, because DEL must not fail."""
    args: dict[str, str] = {}
    for pair in filter(None, text.split(";")):
        key, equals, value = pair.partition("=")
        if equals and key:
            args[key] = value
        elif strict:
            raise CniError(
                Code.INVALID_ENVIRONMENT,
                f"CNI_ARGS: {pair!r} is not of the form KEY=VALUE",
                "write KEY=VALUE pairs with ';' between them",
            )
    unknown = sorted(args.keys() - _KNOWN_ARGS)
    if strict and unknown and args.get("IgnoreUnknown", "").lower() not in _TRUE:
        raise CniError(
            Code.INVALID_ENVIRONMENT,
            f"CNI_ARGS: unknown keys {', '.join(unknown)}",
            "set IgnoreUnknown=1 if they are meant for other plugins",
        )
    return args
