"""Calls of an IPAM engine in this process, instead of the executable of the same name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Self, TypeVar

from attrs import define

from userspace_cni import deadline
from userspace_cni.api import CniError, Code, IpamEngine, IpamRequest, Result
from userspace_cni.cni import valid
from userspace_cni.cni.errors import internal_error
from userspace_cni.ipam.allocation import Allocation
from userspace_cni.ipam.executable import Executable, Others
from userspace_cni.log import logger

_T = TypeVar("_T")


@define(kw_only=True)
class InProcess:
    """The IPAM engine of one network, called on behalf of one request.

    It has the methods of :class:`.Executable`. It waits only for locks.
    """

    engine: IpamEngine
    #: The executable that it replaces.
    instead_of: Executable
    #: The section ``ipam``.
    section: object

    def add(self) -> Allocation:
        """Return the allocation, which is complete as soon as it is started."""
        return _Allocation(self)

    def deletion(self) -> Deletion:
        """Return an object that frees the addresses later."""
        return Deletion(self)

    def allocate(self) -> Result:
        """Allocate addresses.

        Raises:
            CniError: the engine's own error.

        """
        return self._call(self._allocate)

    def delete(self) -> None:
        """Free the attachment's addresses; raise the errors of :meth:`allocate`."""
        self._call(self.engine.delete)

    def check(self) -> None:
        """Verify that the addresses are still allocated; raise the errors of :meth:`allocate`."""
        self._call(self.engine.check)

    def status(self) -> None:
        """Verify that addresses can be allocated; raise the errors of :meth:`allocate`."""
        self._call(self.engine.status)

    def gc(self, others: Others) -> None:
        """Free addresses of attachments that are neither valid nor among the *others*.

        Raise the errors of :meth:`allocate`.
        """
        listed = valid.parse(self.instead_of.config)
        self._call(lambda request: self.engine.gc(request, lambda: listed.union(others())))

    def _allocate(self, request: IpamRequest) -> Result:
        allocated = self.engine.add(request)
        if not allocated.ips:
            raise CniError(Code.IPAM, "ADD returned no IP address")
        return allocated

    def _call(self, method: Callable[[IpamRequest], _T]) -> _T:
        called = self.instead_of
        pairs = (pair.partition("=") for pair in called.environ.get("CNI_ARGS", "").split(";"))
        request = IpamRequest(
            network=str(called.config["name"]),
            container_id=called.environ.get("CNI_CONTAINERID", ""),
            ifname=called.environ.get("CNI_IFNAME", ""),
            section=self.section,
            config=called.config,
            args={key: value for key, equals, value in pairs if equals},
            until=deadline.after(called.timeout),
        )
        try:
            return method(request)
        except CniError as error:
            raise self._told(error) from error
        except OSError as error:
            problem = f"{error.strerror}: {error.filename}" if error.filename else str(error)
            remedy = "see whether its file system is full, read-only or damaged"
            raise self._told(CniError(Code.IO_FAILURE, problem, remedy)) from error
        except (Exception, SystemExit) as error:
            logger.exception("internal error of the IPAM engine %s", called.type)
            raise self._told(internal_error(error)) from error

    def _told(self, error: CniError) -> CniError:
        return CniError(error.code, f"ipam {self.instead_of.type}: {error.msg}", error.details)


class Deletion:
    """Frees addresses after everything else is removed; a context manager."""

    def __init__(self, ipam: InProcess) -> None:
        """Free addresses through *ipam*, but not yet."""
        self._ipam = ipam

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def carry_out(self) -> None:
        """Free the addresses; raise the errors of :meth:`InProcess.delete`."""
        self._ipam.delete()


class _Allocation(Allocation):
    """An allocation that is complete as soon as it is started."""

    def __init__(self, ipam: InProcess) -> None:
        """Allocate through *ipam*, but not yet."""
        super().__init__(ipam)
        self._ipam = ipam

    def __exit__(self, *_: object) -> None:
        pass

    def _begin(self) -> None:
        try:
            self._outcome = self._ipam.allocate()
        except CniError as error:
            self._outcome = error

    def _wait(self) -> Result:
        raise AssertionError("the outcome is set when the allocation is started")
