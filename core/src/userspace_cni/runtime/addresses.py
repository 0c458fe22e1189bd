"""Access to a network's IPAM plugin."""

from __future__ import annotations

from userspace_cni.cni.request import Caller, Target
from userspace_cni.ipam import Ipam

#: CNI variables that describe the container.
_OF_TARGET = ("CNI_ARGS", "CNI_CONTAINERID", "CNI_IFNAME", "CNI_NETNS")


def ipam_of(
    kind: str,
    target: Target,
    caller: Caller,
    timeout: float,
    *,
    elsewhere: tuple[str, ...] = (),
    lock: int | None = None,
) -> Ipam | None:
    """Return the IPAM plugin of a network, or None without IPAM.

    Args:
        kind: the plugin's name, ``ipam.type``; empty for none.
        target: the container and the configuration to pass to the plugin.
        caller: supplies CNI_PATH and the environment.
        timeout: how long one call may take, in seconds.
        elsewhere: further directories in which to search for the plugin.
        lock: file descriptor of the attachment's lock, which the plugin inherits.

    """
    if not kind:
        return None
    # The caller's request may concern another container.
    environ = {key: value for key, value in caller.environ.items() if key not in _OF_TARGET}
    return Ipam(
        type=kind,
        config=target.config,
        cni_version=target.cni_version,
        path=tuple(dict.fromkeys((*caller.path, *elsewhere))),
        environ=environ | target.variables,
        timeout=timeout,
        lock=lock,
    )
