"""Work on attachments that nobody asks for: putting back what a switch lost, removing the dead."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack

from attrs import evolve

from userspace_cni import handover, netns
from userspace_cni.api import ContainerEngine, Handoff, HostPort
from userspace_cni.cni import result as cni_result
from userspace_cni.cni.errors import CheckFailed, CniError, Code
from userspace_cni.cni.request import Caller
from userspace_cni.runtime import subject
from userspace_cni.runtime.detach import Detacher
from userspace_cni.runtime.places import Places
from userspace_cni.runtime.plan import Planner
from userspace_cni.runtime.shared import Busy, Shared
from userspace_cni.store import Record


class Mender:
    """Looks after recorded attachments; a request that works on one comes first."""

    def __init__(
        self, shared: Shared, planner: Planner, places: Places, detacher: Detacher
    ) -> None:
        """Mend what *shared* records; *detacher* removes it."""
        self._shared = shared
        self._planner = planner
        self._places = places
        self._detacher = detacher

    def restore(self, id_: str) -> str | None:
        """Put back what a switch has lost of attachment *id_*; tell what was missing, if anything.

        Nothing is done if it is not attached, or if its DEL has come, carried out or not.

        Raises:
            Busy: a request works on the attachment.
            CniError: what went wrong; the attachment stays recorded, for the next try.

        """
        shared = self._shared
        with shared.lock_if_free(id_) as held:
            if not held:
                raise Busy
            record = shared.store.get(id_) if id_ not in shared.unwanted else None
            if record is None or record.state != "attached" or record.port is None:
                return None
            # The path may be another namespace's by now, even the host's own.
            with netns.pinned(record.netns, record.namespace) as there:
                return self._restore(record, record.port) if there else None

    def _restore(self, record: Record, lost: HostPort) -> str | None:
        plan = self._planner.recorded(record)
        if record.container_dir:
            plan = evolve(plan, conf=evolve(plan.conf, container_dir=record.container_dir))
        directory = self._places.recorded(record)
        attachment = subject.recorded(record, plan, directory)
        # What it was handed over: the engine's routes too, in the same order.
        routes = cni_result.load(record.result, subject.NEWEST).routes
        addresses = evolve(attachment.wait_for_addresses(), routes=routes)
        told = evolve(attachment, addresses=addresses)
        handoff = plan.handoff(told, lost)
        try:
            plan.host.check(attachment, plan.host_conf, lost)
            handover.require(directory, told, handoff)
        except CheckFailed as error:
            missing = str(error)
        else:
            return None
        with ExitStack() as undo:
            if handoff.socket:
                directory.provide_view()
            port = plan.host.restore(attachment, plan.host_conf, lost, undo)
            handoff = plan.handoff(told, port)
            engine = plan.container.info.name
            handover.publish(directory, told, handoff, plan.conf, engine=engine, undo=undo)
            if plan.container.where == "node":
                netns.call(record.netns, _complete, plan.container, handoff)
            if netns.is_gone(record.netns, record.namespace, afresh=True):
                # A switch opens the path by itself, and has found another namespace there.
                raise CniError(
                    Code.INVALID_ENVIRONMENT,
                    f"the network namespace {record.netns} has gone meanwhile",
                    "nothing is to be done: the attachment is removed when the grace is over",
                )
            if port != lost:
                self._shared.store.commit(record.id, port, record.result)
            undo.pop_all()
        return missing

    def remove(self, id_: str, still: Callable[[Record], bool]) -> bool:
        """Remove attachment *id_* as its own DEL would; tell whether it is removed.

        Nothing is done while a request works on it, nor if *still* denies it of the record as it
        is then.

        Raises:
            CniError: what went wrong; the attachment stays recorded as ``deleting``.

        """
        with self._shared.lock_if_free(id_) as held:
            record = self._shared.store.get(id_) if held else None
            if record is None or not still(record):
                return False
            if netns.is_gone(record.netns, record.namespace):
                record = evolve(record, netns="")
            return self._detacher.detach(record, _caller_of(record))


def _complete(engine: ContainerEngine, handoff: Handoff) -> None:
    """Configure the container's end unless it has all that it should."""
    try:
        engine.check(handoff)
    except CheckFailed:
        engine.add(handoff)


def _caller_of(record: Record) -> Caller:
    """Return who made the ADD, as far as IPAM plugins must know for work that nobody asked for."""
    path = os.environ.get("PATH", os.defpath)
    return Caller(path=record.path, environ={"PATH": path, "CNI_PATH": ":".join(record.path)})
