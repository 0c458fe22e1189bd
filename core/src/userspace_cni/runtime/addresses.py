"""Access to a network's IPAM: an engine, or a plugin."""

from __future__ import annotations

from userspace_cni.cni.request import Caller, Target
from userspace_cni.ipam import Executable, Ipam
from userspace_cni.runtime.shared import Shared

#: CNI variables that describe the container.
_OF_TARGET = ("CNI_ARGS", "CNI_CONTAINERID", "CNI_IFNAME", "CNI_NETNS")


def ipam_of(
    kind: str,
    target: Target,
    caller: Caller,
    shared: Shared,
    *,
    elsewhere: tuple[str, ...] = (),
    lock: int | None = None,
) -> Ipam | None:
    """Return the IPAM of a network, or None without IPAM.

    Args:
        kind: ``ipam.type``; empty for none.
        target: the container and the configuration to pass to it.
        caller: supplies CNI_PATH and the environment.
        shared: has the settings, and the engines of this process.
        elsewhere: further directories in which to search for the executable.
        lock: file descriptor of the attachment's lock, which the executable inherits.

    """
    if not kind:
        return None
    # The caller's request may concern another container.
    environ = {key: value for key, value in caller.environ.items() if key not in _OF_TARGET}
    executable = Executable(
        type=kind,
        config=target.config,
        cni_version=target.cni_version,
        path=tuple(dict.fromkeys((*caller.path, *elsewhere))),
        environ=environ | target.variables,
        timeout=shared.settings.timeout,
        lock=lock,
    )
    return shared.ipam.choose(executable)
