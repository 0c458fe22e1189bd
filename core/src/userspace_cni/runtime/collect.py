"""GC: removal of a network's attachments that the container runtime does not list as valid."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from userspace_cni import handover
from userspace_cni.api import attachment_id
from userspace_cni.cni.errors import CniError
from userspace_cni.cni.request import Request
from userspace_cni.config import NetConf
from userspace_cni.runtime.addresses import ipam_of
from userspace_cni.runtime.detach import Detacher, completed
from userspace_cni.runtime.places import Places
from userspace_cni.runtime.plan import Plan, Planner
from userspace_cni.runtime.shared import UNUSABLE, Shared, cni_error, joined
from userspace_cni.store import Record


class Collector:
    """Serves one GC."""

    def __init__(
        self,
        request: Request,
        shared: Shared,
        planner: Planner,
        places: Places,
        detacher: Detacher,
    ) -> None:
        """Use *detacher* to remove attachments that *request* does not list as valid."""
        self._request = request
        self._shared = shared
        self._planner = planner
        self._places = places
        self._detacher = detacher
        self._network = network = request.target.network
        self._valid = {attachment_id(network, *key) for key in request.valid}
        self._failures: list[CniError] = []

    def collect(self) -> None:
        """Remove every attachment that is not valid; raise CniError at the end if any failed."""
        request, failures = self._request, self._failures
        self._shared.locks.sweep()
        plan: Plan | None = None
        try:
            plan = self._planner.plan(request)
        except CniError as error:
            if error.code in UNUSABLE:
                raise
            failures.append(error)
        for record in self._shared.store.of_network(self._network):
            if record.id not in self._valid:
                self._shared.collect(record.id, failures, self._detach(record), record)
        if plan is not None and self._sweep(plan):
            try:
                self._free_all(plan.ipam_type)
            except CniError as error:
                failures.append(error)
        if failures:
            raise joined(failures)

    def _detach(self, record: Record) -> Callable[[], object]:
        target, caller = self._request.target, self._request.caller
        return partial(self._detacher.detach, completed(record, self._request), caller, target)

    def _sweep(self, plan: Plan) -> bool:
        """Remove unrecorded ports and hand-overs that are not valid.

        Returns:
            Whether all unrecorded ports are gone. While one remains, it may use any address.

        """
        before = len(self._failures)
        try:
            self._collect_by_tag(plan)
            ports_are_known = len(self._failures) == before
            self._withdraw_all(plan.conf)
        except (Exception, SystemExit) as error:  # noqa: BLE001  an engine's; go on
            self._failures.append(cni_error(error))
            return False
        return ports_are_known

    def _collect_by_tag(self, plan: Plan) -> None:
        """Remove ports of the network that are in the switch but not recorded."""
        there = plan.host.attachments(self._network, plan.host_conf)
        for id_ in sorted({*there} - self._valid):
            record = self._shared.store.get(id_)
            work: Callable[[], object] = partial(plan.host.delete, id_, plan.host_conf, None)
            if record is not None and record.damage:  # even its network may be wrong
                work = self._detach(record)
            if record is None or record.damage:
                self._shared.collect(id_, self._failures, work, record)

    def _withdraw_all(self, conf: NetConf) -> None:
        """Remove the hand-overs of attachments of *conf* that are not valid."""
        base = self._places.base(conf.shared_dir)
        for container_id, ifname in handover.published(base, conf.name, self._valid):
            id_ = attachment_id(conf.name, container_id, ifname)
            directory = self._places.own(conf.shared_dir, container_id)
            work = partial(directory.withdraw, ifname, id_)
            self._shared.collect(id_, self._failures, work)

    def _free_all(self, kind: str) -> None:
        """Make the IPAM of type *kind* free all addresses except those of recorded attachments."""
        if ipam := ipam_of(kind, self._request.target, self._request.caller, self._shared):
            ipam.gc(self._others)

    def _others(self) -> list[tuple[str, str]]:
        """Return recorded attachments that are not valid: not removed yet, or being added."""
        recorded = self._shared.store.of_network(self._network)
        return [(r.container_id, r.ifname) for r in recorded if r.id not in self._valid]
