"""The runtime: the implementation of ADD, DEL, CHECK, STATUS and GC for all engines.

A request passes through configuration, IPAM, the host engine and the container engine in this
order. The intent is recorded before anything changes, and each step pushes the step that undoes it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from typing import TYPE_CHECKING, Any

from userspace_cni import netns
from userspace_cni.api import EngineConf, HostEngine, attachment_id
from userspace_cni.cni import result as cni_result
from userspace_cni.cni.errors import CniError, Code
from userspace_cni.cni.request import Caller, Request
from userspace_cni.config.settings import Settings
from userspace_cni.ipam import Allocation, Chooser
from userspace_cni.locks import Locks
from userspace_cni.runtime import pods, subject
from userspace_cni.runtime.addresses import ipam_of
from userspace_cni.runtime.attach import Attacher
from userspace_cni.runtime.detach import Detacher, completed
from userspace_cni.runtime.engines import Engines
from userspace_cni.runtime.places import Places
from userspace_cni.runtime.plan import Plan, Planner
from userspace_cni.runtime.shared import Phase, Shared, require_foreign
from userspace_cni.store import Record, Store, StoreFailed

if TYPE_CHECKING:
    from userspace_cni.runtime.mend import Mender
    from userspace_cni.runtime.verify import Verifier


class Runtime:
    """Serves requests; thread-safe."""

    def __init__(
        self, settings: Settings, *, alone: bool = True, phase: Phase = nullcontext
    ) -> None:
        """Set up the runtime; nothing is opened yet.

        Args:
            settings: the node's settings.
            alone: whether this process serves one request and ends. Its DELs then also retry
                removals that were postponed because a switch was down. False for the daemon.
            phase: wraps the steps of requests, see :data:`.Phase`.

        """
        self.settings = settings
        self._alone = alone
        self._phase = phase
        self.store = Store(settings.state_dir, settings.timeout)
        self._shared = Shared(
            settings=settings,
            phase=phase,
            store=self.store,
            locks=Locks(settings.run_dir / "locks", settings.timeout),
            # For one request, an engine takes longer to load than an executable to run.
            ipam=Chooser(() if alone else settings.ipam.in_process),
        )
        self._places = Places(settings)
        self._engines = Engines(self._shared, self._places)
        self._planner = Planner(self._engines)
        self._detacher = Detacher(self._shared, self._planner, self._places)
        self._attacher = Attacher(self._shared, self._detacher)

    def close(self) -> None:
        """Close the engines and the store; errors are only logged."""
        self._engines.close()
        self.store.close()

    @property
    def engines(self) -> frozenset[str]:
        """The names of the host engines that have been used."""
        return self._engines.names

    @cached_property
    def _verifier(self) -> Verifier:
        from userspace_cni.runtime.verify import Verifier

        return Verifier(self._shared, self._planner, self._places)

    @cached_property
    def _mender(self) -> Mender:
        from userspace_cni.runtime.mend import Mender  # the daemon's alone

        return Mender(self._shared, self._planner, self._places, self._detacher)

    def host(self, raw: Mapping[str, Any]) -> tuple[HostEngine, EngineConf]:
        """See :meth:`.Engines.of_host`."""
        return self._engines.of_host(raw)

    def restore(self, id_: str) -> str | None:
        """See :meth:`.Mender.restore`."""
        return self._mender.restore(id_)

    def remove(self, id_: str, still: Callable[[Record], bool]) -> bool:
        """See :meth:`.Mender.remove`."""
        return self._mender.remove(id_, still)

    def serve(self, request: Request) -> dict[str, Any] | None:
        """Execute *request*; return the result object of an ADD, otherwise None.

        Raises:
            CniError: if the request fails; a failed ADD is undone.

        """
        with _opened(request.target.netns):
            match request.command:
                case "ADD":
                    return self.add(request)
                case "DEL":
                    self.delete(request)
                case "CHECK":
                    self._verifier.check(request)
                case "STATUS":
                    self._verifier.status(request)
                case "GC":
                    self.gc(request)
        return None

    def add(self, request: Request) -> dict[str, Any]:
        """Attach the container; return the result in the request's version.

        Raises:
            CniError: if a step fails; everything is undone.

        """
        target, caller = request.target, request.caller
        plan = self._planner.plan(request)
        require_foreign(request)
        plan = pods.placed(plan, self._shared, self._places)
        if plan.volume:
            # An earlier sandbox of the pod may have left files in the volume.
            self._detacher.retry(request, plan.volume)
        directory = self._places.planned(plan)
        attachment = subject.requested(plan, directory)
        with (
            self._shared.lock(attachment.id) as lock,
            self._allocation(plan, caller, lock) as allocation,
        ):
            if not caller.wanted():
                # If the request has waited for long, its DEL may have been served already.
                raise CniError(
                    Code.TRY_AGAIN_LATER,
                    "the caller disconnected before its ADD began",
                    "nothing was done; the runtime tries again",
                )
            self._attacher.make_room(attachment, target, caller)
            with self._phase("store"):
                self.store.begin(plan.record(caller, namespace=netns.identity(target.netns)))
            self._shared.unwanted.discard(attachment.id)
            with self._attacher.undone_on_failure(plan, attachment, directory, allocation) as undo:
                own, port = self._attacher.attach(
                    plan, attachment, directory, allocation, undo=undo
                )
                previous = plan.asked.previous
                answer = previous.extended_by(own) if previous else own
                body = cni_result.dump(answer, target.cni_version)
                with self._phase("store"):
                    self.store.commit(attachment.id, port, cni_result.dump(own, subject.NEWEST))
        return body

    def _allocation(
        self, plan: Plan, caller: Caller, lock: int
    ) -> AbstractContextManager[Allocation | None]:
        ipam = ipam_of(plan.ipam_type, plan.target, caller, self._shared, lock=lock)
        if ipam is None:
            return nullcontext()
        with self._phase("ipam"):
            return ipam.add()

    def delete(self, request: Request) -> None:
        """Detach the container; do nothing if it is not attached.

        Raises:
            CniError: 11 if the store cannot be read or written: only the store knows what to
                remove and keeps it from being restored. Otherwise the error of a step.

        """
        target, caller = request.target, request.caller
        id_ = attachment_id(target.network, target.container_id, target.ifname)
        removed = False
        with self._shared.lock(id_):
            if not caller.wanted():
                # The DEL is queued or will be repeated, and a new ADD may have been served since.
                raise CniError(
                    Code.TRY_AGAIN_LATER,
                    "the caller disconnected before its DEL began",
                    "nothing was done; the shim has queued it, or the runtime tries again",
                )
            try:
                record = self.store.get(id_)
                if record is None:
                    self._detacher.detach_unknown(request)
                else:
                    record = completed(record, request)
                    removed = self._detacher.detach(record, caller, target)
            except StoreFailed as error:
                self._shared.unwanted.add(id_)
                raise CniError(Code.TRY_AGAIN_LATER, error.msg, error.details) from error
        if removed and self._alone:
            self._detacher.retry(request)

    def gc(self, request: Request) -> None:
        """Remove all attachments of the network that the request does not list as valid."""
        from userspace_cni.runtime.collect import Collector

        Collector(request, self._shared, self._planner, self._places, self._detacher).collect()


def _opened(path: str) -> AbstractContextManager[object]:
    """Open the container's network namespace once, for all that the request does there."""
    return netns.pinned(path, "") if path else nullcontext()
