"""How the runtime calls the IPAM plugin of a network."""

from __future__ import annotations

from userspace_cni.cni.request import Caller, Target
from userspace_cni.ipam import Ipam

#: The variables that tell of a container.
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
    """Return the IPAM plugin *kind* of *target*, called for *caller*.

    It may be in the directories *elsewhere*, too. What it changes, it changes under the
    attachment's *lock*.
    """
    if not kind:
        return None
    # The caller's request may be about another container.
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
