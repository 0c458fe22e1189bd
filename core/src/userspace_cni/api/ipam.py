"""The interface of IPAM engines, which give out addresses in the daemon's own process.

The classes are announced by entry points of the group :data:`IPAM_ENGINES`: see docs/ipam.md.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from typing import Any, ClassVar

from attrs import field, frozen

from userspace_cni.cni.result import Result

#: Entry point group of :class:`IpamEngine` classes.
IPAM_ENGINES = "userspace_cni.ipam"


@frozen(kw_only=True)
class IpamInfo:
    """What an IPAM engine says of itself."""

    #: The name in the configuration: ``ipam.type``. The entry point has the same.
    name: str
    #: The version of the contract that the engine was written for: see :class:`.EngineInfo`.
    api_version: tuple[int, int]
    #: One line for people.
    summary: str
    #: The attrs class of the network's section ``ipam``, ``type`` included. A section that it does
    #: not describe is left to the executable of the same name.
    section: type
    #: Further names for the same engine, each with an entry point.
    aliases: tuple[str, ...] = ()


@frozen(kw_only=True)
class IpamRequest:
    """One call of an IPAM engine: what the network's configuration and the runtime say."""

    network: str
    #: These two name the attachment; empty for GC and STATUS.
    container_id: str = ""
    ifname: str = ""
    #: The network's section ``ipam``, an object of :attr:`IpamInfo.section`.
    section: Any
    #: The whole network configuration as it came, for ``args`` and ``runtimeConfig``.
    config: Mapping[str, Any]
    #: CNI_ARGS.
    args: Mapping[str, str] = field(factory=dict)
    #: When the engine must have answered, a time of the monotonic clock.
    until: float


class IpamEngine(ABC):
    """Gives out addresses.

    The daemon calls one object from many threads, for as long as it runs, and other processes may
    work on the same addresses. Methods raise :class:`~userspace_cni.api.CniError`.
    """

    info: ClassVar[IpamInfo]

    @abstractmethod
    def add(self, request: IpamRequest) -> Result:
        """Allocate addresses; return them with the routes and DNS settings that come with them.

        If it fails, :meth:`delete` is called for what it may have allocated.
        """

    @abstractmethod
    def delete(self, request: IpamRequest) -> None:
        """Free what the attachment has; nothing is no error."""

    @abstractmethod
    def check(self, request: IpamRequest) -> None:
        """Raise ``CheckFailed`` if the attachment has no addresses, or others than it should."""

    @abstractmethod
    def gc(self, request: IpamRequest, valid: Callable[[], Collection[tuple[str, str]]]) -> None:
        """Free all addresses of the network but those of *valid* attachments.

        *valid* returns their container ids and interface names as they are when it is called. Call
        it once nobody can allocate any more, such as under the lock of the addresses: an attachment
        that is being added then counts as valid.
        """

    @abstractmethod
    def status(self, request: IpamRequest) -> None:
        """Return if an :meth:`add` could succeed now, else raise what is missing."""
