"""State that all requests of a runtime share: settings, store, locks and observer."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

from attrs import field, frozen

from userspace_cni import netns
from userspace_cni.cni.errors import CniError, Code, internal_error
from userspace_cni.cni.request import Request
from userspace_cni.config.settings import Settings
from userspace_cni.handover import ContainerDirectory
from userspace_cni.ipam import Chooser
from userspace_cni.locks import Locks
from userspace_cni.log import logger
from userspace_cni.store import Record, Store

#: Context-manager factory that wraps each named step of a request, for metrics and tracing. The
#: steps are ipam, host, handover, container and store.
Phase = Callable[[str], AbstractContextManager[object]]

#: Error codes of unusable configurations.
UNUSABLE = (Code.INVALID_NETWORK_CONFIG, Code.UNSUPPORTED_FIELD)


class Busy(Exception):
    """A request is working on the attachment."""


@frozen(kw_only=True)
class Shared:
    """The settings, store and locks of a runtime."""

    settings: Settings
    phase: Phase
    store: Store
    locks: Locks
    #: Chooses between engines of this process and executables for IPAM.
    ipam: Chooser
    #: IDs of attachments whose DEL arrived while the store could not be written.
    unwanted: set[str] = field(factory=set)

    def lock(self, id_: str) -> AbstractContextManager[int]:
        """Hold the lock of an attachment; see :meth:`.Locks.hold`."""
        return self.locks.hold(_lock_name(id_))

    def lock_if_free(self, id_: str) -> AbstractContextManager[bool]:
        """Hold the lock of an attachment if it is free; yield whether it is held."""
        return self.locks.hold_if_free(_lock_name(id_))

    def lock_held(self, id_: str) -> int | None:
        """Return the file descriptor that holds the lock of an attachment."""
        return self.locks.held(_lock_name(id_))

    def forget(self, id_: str, directory: ContainerDirectory) -> None:
        """Remove a record, and *directory* if it was the container's last one.

        The record is removed first, so that of two concurrent removals at least one sees no other
        record and removes the directory.
        """
        self.store.remove(id_)
        if directory.is_left() and not self.store.has_container(directory.container_id):
            directory.discard()

    def collect(
        self,
        id_: str,
        failures: list[CniError],
        work: Callable[[], object],
        record: Record | None = None,
    ) -> None:
        """Run *work* under the lock of an attachment, and append its error to *failures*.

        Nothing is done if another request holds the lock, or if the attachment's record is no
        longer *record*, because another request has changed it meanwhile.
        """
        with self.lock_if_free(id_) as held:
            try:
                if held and self.store.get(id_) == record:
                    work()
            except (Exception, SystemExit) as error:  # noqa: BLE001  an engine may raise anything
                failures.append(cni_error(error))


def require_foreign(request: Request) -> None:
    """Raise CniError for the plugin's own network namespace, unless the caller allows it."""
    if not request.caller.netns_override:
        netns.require_foreign(request.target.netns)


def joined(failures: list[CniError]) -> CniError:
    """Combine *failures* into one error with the code of the first."""
    first, *others = failures
    return CniError(first.code, "; ".join(map(str, failures))) if others else first


def cni_error(error: BaseException) -> CniError:
    """Convert *error* to a CniError; log it if it is another exception."""
    if isinstance(error, CniError):
        return error
    logger.error("internal error", exc_info=error)
    return internal_error(error)


def _lock_name(id_: str) -> str:
    return f"attachment {id_}"
