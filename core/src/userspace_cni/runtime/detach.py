"""Removing attachments: for DEL, for GC, and what could not be removed before."""

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

#: For removals that were put off, on the way of a request that has done its own work.
_RETRY_PATIENCE = 5.0  # seconds
#: States of a record, written before anything is touched.
_TO_BE_REMOVED = ("deleting", "unknown")


class Detacher:
    """Removes attachments, each under its lock."""

    def __init__(self, shared: Shared, planner: Planner, places: Places) -> None:
        """Remove what *shared* records."""
        self._shared = shared
        self._planner = planner
        self._places = places

    def detach(self, record: Record, caller: Caller, otherwise: Target | None = None) -> bool:
        """Remove an attachment: from the dataplane, then its addresses, then its record.

        That it is to be removed is written down before anything is touched, so that nobody puts it
        back. Each step needs the one before: no address is freed, for somebody else to get, while
        its port may be there. A switch that is down leaves the record, for when it is back. Return
        whether it is removed.

        The switch is found by the recorded configuration, or *otherwise*, where that cannot be used
        any more.
        """
        ipam = ipam_of(
            record.conf.ipam_type,
            record.target,
            caller,
            self._shared.settings.timeout,
            elsewhere=record.path,
            lock=self._shared.lock_held(record.id),
        )
        is_there = partial(_still_there, record.netns, override=caller.netns_override)
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
        """Do as :meth:`detach`; *free* gives the addresses back."""
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
                logger.warning("removal put off until the switch is back: %s", error)
            return False
        except CniError as error:
            if record.state != "unknown" or error.code not in UNUSABLE:
                raise
            logger.warning("no ADD is recorded, and the network cannot be used: %s", error)
        else:
            self._free(free, record)
        with shared.phase("store"):
            if record.state != "unknown" or shared.store.get(record.id) is not None:
                shared.forget(record.id, self._places.recorded(record))
        shared.unwanted.discard(record.id)
        return True

    def _free(self, free: Callable[[], object], record: Record) -> None:
        """Take back all that an attachment without a port has: see :meth:`detach`."""
        failures: list[CniError] = []
        try:
            self._withdraw(record)
        except CniError as error:
            failures.append(error)
        try:
            with self._shared.phase("ipam"):
                free()
        except CniError as error:
            # Else a configuration that no ADD can have succeeded with would fail for ever.
            if record.state == "unknown" and error.code != Code.TRY_AGAIN_LATER:
                logger.warning("no ADD is recorded, there is no port, and IPAM fails: %s", error)
            else:
                failures.append(error)
        pods.withdraw(record, self._shared)
        if failures:
            raise joined(failures)

    def _withdraw(self, record: Record) -> None:
        """Take back what the container was handed over."""
        directory = self._places.recorded(record)
        port = record.port.port if record.port else Kernel()
        handover.withdraw(directory, record.ifname, record.id, port, record.conf.runtime_config)

    def _ascertained(self, plan: Plan, record: Record) -> Record:
        """Return *record*, which is no longer ``unknown`` if the switch has a port of it.

        An ADD has succeeded then, and whatever it allocated is to be freed.
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
        """Remove an attachment that the store does not know: by tag, and by the given config.

        A configuration that no ADD can have succeeded with is no reason to fail: the runtime would
        repeat the DEL for ever.
        """
        try:
            plan = self._planner.plan(request)
        except CniError as error:
            logger.warning("nothing is recorded, and the network cannot be used: %s", error)
            return
        self.detach(plan.record(request.caller, state="unknown"), request.caller)

    def retry(self, request: Request, volume: str = "") -> None:
        """Remove what could not be removed before of the network of *request*.

        Or, with *volume*, what is in that one. Whoever calls this has just seen that switch and
        plugin work, or needs the volume. What hangs all the same ends it: the next would, too.
        """
        target, network = request.target, request.target.network
        try:
            waiting = [
                record
                for record in self._shared.store.deleting()
                if (record.directory == volume if volume else record.network == network)
            ]
        except CniError as error:
            logger.warning("cannot look for removals that were put off: %s", error)
            return
        failures: list[CniError] = []
        with deadline.within(min(_RETRY_PATIENCE, self._shared.settings.budget)):
            for record in waiting:
                # What is in the volume may be of another network.
                otherwise = target if record.network == network else None
                work = partial(self.detach, record, request.caller, otherwise)
                self._shared.collect(record.id, failures, work, record)
                if failures and failures[-1].code == Code.TRY_AGAIN_LATER:
                    break
        for failure in failures:
            logger.warning("a removal that was put off failed again: %s", failure)


def completed(record: Record, request: Request) -> Record:
    """Return *record* with what the DEL or GC *request* tells where the record does not."""
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


def _still_there(path: str, *, override: bool) -> str | None:
    """Return the network namespace *path* if work may be done in it."""
    try:
        if path and override:
            return path if netns.exists(path) else None
        if path:
            netns.require_foreign(path)
    except CniError as error:
        logger.info("the container's network namespace is gone: %s", error)
        return None
    return path or None
