"""Removal of attachments for DEL and GC, and retries of failed removals."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial

from attrs import evolve

from userspace_cni import deadline, handover, netns
from userspace_cni.api import Kernel
from userspace_cni.cni.errors import CniError, Code, DataplaneUnavailable
from userspace_cni.cni.request import Caller, Request, Target
from userspace_cni.log import logger
from userspace_cni.runtime import pods
from userspace_cni.runtime.addresses import ipam_of
from userspace_cni.runtime.places import Places
from userspace_cni.runtime.plan import Plan, Planner
from userspace_cni.runtime.shared import UNUSABLE, Shared, joined
from userspace_cni.store import Record

#: How long a request that has done its own work may spend on postponed removals.
_RETRY_PATIENCE = 5.0  # seconds
#: States of records of attachments that are about to be removed.
_TO_BE_REMOVED = ("deleting", "unknown")


class Detacher:
    """Removes attachments. The caller of :meth:`detach` holds the attachment's lock."""

    def __init__(self, shared: Shared, planner: Planner, places: Places) -> None:
        """Remove attachments in the store of *shared*."""
        self._shared = shared
        self._planner = planner
        self._places = places

    def detach(self, record: Record, caller: Caller, otherwise: Target | None = None) -> bool:
        """Remove an attachment: its port, then its addresses, then its record.

        The removal is recorded before anything is changed, so that nothing restores the attachment.
        Each step requires the one before: no address is freed as long as its port may exist. If the
        switch is down, the record is kept for a later retry.

        Args:
            record: the attachment.
            caller: where to find the IPAM plugin, in addition to the recorded CNI_PATH.
            otherwise: used instead of the recorded configuration if that has become unusable.

        Returns:
            Whether the attachment is removed; False if the switch is down.

        Raises:
            CniError: the error of any step; the attachment stays recorded as ``deleting``.

        """
        is_there = partial(_still_there, record.netns, override=caller.netns_override)
        try:
            ipam = ipam_of(
                record.conf.ipam_type,
                record.target,
                caller,
                self._shared,
                elsewhere=record.path,
                lock=self._shared.lock_held(record.id),
            )
        except CniError as error:
            # The port can be removed all the same, and if no ADD is recorded, IPAM is not needed.
            return self._detach_and(partial(_refuse, error), record, is_there, otherwise)
        if ipam is None:
            return self._detach_and(nullcontext, record, is_there, otherwise)
        with self._shared.phase("ipam"):
            deletion = ipam.deletion()
        with deletion:
            return self._detach_and(deletion.carry_out, record, is_there, otherwise)

    def _detach_and(
        self,
        free: Callable[[], object],
        record: Record,
        netns_of: Callable[[], str | None],
        otherwise: Target | None,
    ) -> bool:
        """Implement :meth:`detach`; *free* frees the addresses."""
        shared = self._shared
        is_news = record.state not in _TO_BE_REMOVED
        if is_news:
            with shared.phase("store"):
                shared.store.mark(record.id, "deleting")
        try:
            plan = self._planner.recorded(record, otherwise)
            record = self._ascertained(plan, record)
            with shared.phase("host"):
                plan.host.delete(record.id, plan.host_conf, netns_of())
        except DataplaneUnavailable as error:
            if shared.store.get(record.id) is None:
                shared.store.begin(record)
                is_news = True
            if is_news:
                logger.warning("removal postponed until the switch is back: %s", error)
            return False
        except CniError as error:
            if record.state != "unknown" or error.code not in UNUSABLE:
                raise
            logger.warning("no ADD is recorded, and the network is unusable: %s", error)
        else:
            self._free(free, record)
        with shared.phase("store"):
            if record.state != "unknown" or shared.store.get(record.id) is not None:
                shared.forget(record.id, self._places.recorded(record))
        shared.unwanted.discard(record.id)
        return True

    def _free(self, free: Callable[[], object], record: Record) -> None:
        """Remove the hand-over and free the addresses of an attachment whose port is removed."""
        failures: list[CniError] = []
        try:
            self._withdraw(record)
        except CniError as error:
            failures.append(error)
        try:
            with self._shared.phase("ipam"):
                free()
        except CniError as error:
            # Ignore the error if no ADD can have succeeded; otherwise the DEL would fail forever.
            if record.state == "unknown" and error.code != Code.TRY_AGAIN_LATER:
                logger.warning("no ADD is recorded, there is no port, and IPAM failed: %s", error)
            else:
                failures.append(error)
        pods.withdraw(record, self._shared)
        if failures:
            raise joined(failures)

    def _withdraw(self, record: Record) -> None:
        """Remove the container's hand-over."""
        directory = self._places.recorded(record)
        port = record.port.port if record.port else Kernel()
        handover.withdraw(directory, record.ifname, record.id, port, record.conf.runtime_config)

    def _ascertained(self, plan: Plan, record: Record) -> Record:
        """Change a record from ``unknown`` to ``deleting`` if the switch has a port of it.

        In that case an ADD has succeeded, and its addresses must be freed.
        """
        if record.state != "unknown" or record.id not in plan.host.attachments(
            record.network, plan.host_conf
        ):
            return record
        record = evolve(record, state="deleting")
        if self._shared.store.get(record.id) is None:
            self._shared.store.begin(record)
        else:
            self._shared.store.mark(record.id, "deleting")
        return record

    def detach_unknown(self, request: Request) -> None:
        """Remove an attachment that is not in the store, by its tag and the given configuration.

        A configuration with which no ADD can have succeeded is not an error, because the container
        runtime would repeat the DEL forever.
        """
        try:
            plan = self._planner.plan(request)
        except CniError as error:
            logger.warning("nothing is recorded, and the network is unusable: %s", error)
            return
        self.detach(plan.record(request.caller, state="unknown"), request.caller)

    def retry(self, request: Request, volume: str = "") -> None:
        """Retry postponed removals of the network of *request*.

        Call this after a request has succeeded, so that switch and plugin are known to work. A
        removal that times out ends the retries, because the next one would time out as well.

        Args:
            request: the request.
            volume: retry removals with this volume instead, of any network.

        """
        target, network = request.target, request.target.network
        try:
            waiting = [
                record
                for record in self._shared.store.deleting()
                if (record.directory == volume if volume else record.network == network)
            ]
        except CniError as error:
            logger.warning("cannot look for postponed removals: %s", error)
            return
        failures: list[CniError] = []
        with deadline.within(min(_RETRY_PATIENCE, self._shared.settings.budget)):
            for record in waiting:
                # An attachment in the volume may belong to another network.
                otherwise = target if record.network == network else None
                work = partial(self.detach, record, request.caller, otherwise)
                self._shared.collect(record.id, failures, work, record)
                if failures and failures[-1].code == Code.TRY_AGAIN_LATER:
                    break
        for failure in failures:
            logger.warning("a postponed removal failed again: %s", failure)


def completed(record: Record, request: Request) -> Record:
    """Return *record* with missing values filled in from the DEL or GC *request*."""
    target = request.target
    if request.command == "DEL":
        record = evolve(
            record,
            network=target.network,
            container_id=target.container_id,
            ifname=target.ifname,
            netns=target.netns or record.netns,
        )
    return evolve(record, config=record.config or dict(target.config))


def _refuse(error: CniError) -> None:
    raise error


def _still_there(path: str, *, override: bool) -> str | None:
    """Return *path* if it is a network namespace in which the runtime may work, else None."""
    try:
        if path and override:
            return path if netns.exists(path) else None
        if path:
            netns.require_foreign(path)
    except CniError as error:
        logger.info("the container's network namespace is gone: %s", error)
        return None
    return path or None
