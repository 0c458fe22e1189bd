"""Reconciliation of single attachments: restore what a switch lost, remove dead attachments."""

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
    """Restores and removes recorded attachments, unless a request is working on them."""

    def __init__(
        self, shared: Shared, planner: Planner, places: Places, detacher: Detacher
    ) -> None:
        """Restore attachments in the store of *shared*; remove them with *detacher*."""
        self._shared = shared
        self._planner = planner
        self._places = places
        self._detacher = detacher

    def restore(self, id_: str) -> str | None:
        """Restore what a switch has lost of attachment *id_*.

        Nothing is done unless it is attached, or if its DEL has arrived.

        Returns:
            What was missing, or None if the attachment is intact.

        Raises:
            Busy: if a request is working on the attachment.
            CniError: if the restoration failed; the attachment stays recorded and can be retried.

        """
        shared = self._shared
        with shared.lock_if_free(id_) as held:
            if not held:
                raise Busy
            record = shared.store.get(id_) if id_ not in shared.unwanted else None
            if record is None or record.state != "attached" or record.port is None:
                return None
            # By now the path may lead to another namespace, even to that of the host.
            with netns.pinned(record.netns, record.namespace) as there:
                return self._restore(record, record.port) if there else None

    def _restore(self, record: Record, lost: HostPort) -> str | None:
        plan = self._planner.recorded(record)
        if record.container_dir:
            plan = evolve(plan, conf=evolve(plan.conf, container_dir=record.container_dir))
        directory = self._places.recorded(record)
        attachment = subject.recorded(record, plan, directory)
        # The hand-over also contains the engine's routes, in the same order as in the result.
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
                # The switch opens the path itself and may have opened another namespace.
                raise CniError(
                    Code.INVALID_ENVIRONMENT,
                    f"the network namespace {record.netns} disappeared meanwhile",
                    "nothing needs to be done: the attachment is removed after the grace period",
                )
            if port != lost:
                self._shared.store.commit(record.id, port, record.result)
            undo.pop_all()
        return missing

    def remove(self, id_: str, still: Callable[[Record], bool]) -> bool:
        """Remove attachment *id_* as its DEL would.

        Args:
            id_: the attachment's ID.
            still: called under the lock with the current record; returns whether to remove it.

        Returns:
            Whether it was removed. It is not removed while a request is working on it.

        Raises:
            CniError: if the removal failed; the attachment stays recorded as ``deleting``.

        """
        with self._shared.lock_if_free(id_) as held:
            record = self._shared.store.get(id_) if held else None
            if record is None or not still(record):
                return False
            if netns.is_gone(record.netns, record.namespace):
                record = evolve(record, netns="")
            return self._detacher.detach(record, _caller_of(record))


def _complete(engine: ContainerEngine, handoff: Handoff) -> None:
    """Configure the container's end unless it is complete."""
    try:
        engine.check(handoff)
    except CheckFailed:
        engine.add(handoff)


def _caller_of(record: Record) -> Caller:
    """Return a caller for IPAM plugins, with the CNI_PATH of the ADD."""
    path = os.environ.get("PATH", os.defpath)
    return Caller(path=record.path, environ={"PATH": path, "CNI_PATH": ":".join(record.path)})
