"""The interface of IPAM engines, which allocate addresses without a process of their own.

A package announces the classes by entry points of the group :data:`IPAM_ENGINES`.
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
    """The description of an IPAM engine."""

    #: The name in the configuration (``ipam.type``), which is also the name of the entry point.
    name: str
    #: The version of the contract that the engine was written for: see :class:`.EngineInfo`.
    api_version: tuple[int, int]
    #: A description of the engine in one line.
    summary: str
    #: The attrs class of the network's section ``ipam``, including ``type``. If a network's section
    #: does not fit this class, the executable of the same name is used instead.
    section: type
    #: Further names for the same engine, each with an entry point.
    aliases: tuple[str, ...] = ()


@frozen(kw_only=True)
class IpamRequest:
    """The arguments of one call of an IPAM engine."""

    #: The name of the network.
    network: str
    #: CNI_CONTAINERID of the attachment; empty for GC and STATUS.
    container_id: str = ""
    #: CNI_IFNAME of the attachment; empty for GC and STATUS.
    ifname: str = ""
    #: The network's section ``ipam``, an object of :attr:`IpamInfo.section`.
    section: Any
    #: The whole network configuration as received, for ``args`` and ``runtimeConfig``.
    config: Mapping[str, Any]
    #: CNI_ARGS.
    args: Mapping[str, str] = field(factory=dict)
    #: The deadline for the answer, as a time of the monotonic clock.
    until: float


class IpamEngine(ABC):
    """Allocates addresses.

    The daemon calls one object from many threads, for as long as it runs, and other processes may
    use the same addresses. Methods raise :class:`~userspace_cni.api.CniError`.
    """

    #: The description of the engine; every class must set it.
    info: ClassVar[IpamInfo]

    @abstractmethod
    def add(self, request: IpamRequest) -> Result:
        """Allocate addresses, and return them with their routes and DNS settings.

        If this fails, :meth:`delete` is called for addresses that may have been allocated.

        Args:
            request: The arguments of the call.

        Raises:
            CniError: no address can be allocated.

        """

    @abstractmethod
    def delete(self, request: IpamRequest) -> None:
        """Free the addresses of the attachment. Succeed if it has none.

        Args:
            request: The arguments of the call.

        """

    @abstractmethod
    def check(self, request: IpamRequest) -> None:
        """Verify the addresses of the attachment.

        Args:
            request: The arguments of the call.

        Raises:
            CheckFailed: the attachment has no addresses, or wrong ones.

        """

    @abstractmethod
    def gc(self, request: IpamRequest, valid: Callable[[], Collection[tuple[str, str]]]) -> None:
        """Free all addresses of the network except those of *valid* attachments.

        Args:
            request: The arguments of the call.
            valid: Returns the container ids and interface names of the valid attachments at the
                time of the call. Call it when nobody can allocate addresses, for example while
                holding their lock: an attachment that is being added then counts as valid.

        """

    @abstractmethod
    def status(self, request: IpamRequest) -> None:
        """Return if an :meth:`add` could succeed now.

        Args:
            request: The arguments of the call.

        Raises:
            CniError: something is missing; the error says how to fix it.

        """
