"""GC: removes all of a network's attachments that the runtime does not call valid."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from userspace_cni import config, handover
from userspace_cni.api import attachment_id
from userspace_cni.cni.errors import CniError, Code
from userspace_cni.cni.request import Request
from userspace_cni.config import NetConf
from userspace_cni.runtime.addresses import ipam_of
from userspace_cni.runtime.detach import Detacher, completed
from userspace_cni.runtime.places import Places
from userspace_cni.runtime.plan import Plan, Planner
from userspace_cni.runtime.shared import UNUSABLE, Shared, cni_error, joined

_VALID_ATTACHMENTS = "cni.dev/valid-attachments"


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
        """Let *detacher* remove what *request* does not call valid."""
        self._request = request
        self._shared = shared
        self._planner = planner
        self._places = places
        self._detacher = detacher
        self._valid = _valid_attachments(request)
        self._failures: list[CniError] = []

    def collect(self) -> None:
        """Remove everything that is not valid, whatever fails meanwhile; then raise CniError."""
        request, failures = self._request, self._failures
        self._shared.locks.sweep()
        plan: Plan | None = None
        try:
            plan = self._planner.plan(request)
            conf = plan.conf
        except CniError as error:
            if error.code in UNUSABLE:
                raise
            failures.append(error)
            conf = config.load(request)
        for record in self._shared.store.of_network(request.network):
            if record.id not in self._valid:
                work = partial(self._detacher.detach, completed(record, request), request)
                self._shared.collect(record.id, failures, work, record)
        ports_are_known = plan is not None and self._sweep(plan)
        if ports_are_known and conf.ipam_type:
            try:
                self._free_all(conf.ipam_type)
            except CniError as error:
                failures.append(error)
        if failures:
            raise joined(failures)

    def _sweep(self, plan: Plan) -> bool:
        """Remove the ports and hand-overs that are not valid; tell whether all ports were seen.

        A port that nobody has recorded may have any address.
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
        """Remove what the switch has of the network and the records do not tell."""
        there = plan.host.attachments(self._request.network, plan.host_conf)
        for id_ in sorted({*there} - self._valid):
            record = self._shared.store.get(id_)
            work: Callable[[], object] = partial(plan.host.delete, id_, plan.host_conf, None)
            if record is not None and record.damage:  # even its network may be
                whole = completed(record, self._request)
                work = partial(self._detacher.detach, whole, self._request)
            if record is None or record.damage:
                self._shared.collect(id_, self._failures, work, record)

    def _withdraw_all(self, conf: NetConf) -> None:
        """Take back what was handed over to attachments of *conf* that are not valid."""
        base = self._places.base(conf.shared_dir)
        for container_id, ifname in handover.published(base, conf.name, self._valid):
            id_ = attachment_id(conf.name, container_id, ifname)
            directory = self._places.own(conf.shared_dir, container_id)
            work = partial(directory.withdraw, ifname, id_)
            self._shared.collect(id_, self._failures, work)

    def _free_all(self, kind: str) -> None:
        """Let the IPAM plugin *kind* free all but what valid attachments have, or others still.

        What could not be removed, or is being added, has its address until it is gone.
        """
        recorded = self._shared.store.of_network(self._request.network)
        there = [record for record in recorded if record.id not in self._valid]
        network = dict(self._request.config)
        if there:
            network[_VALID_ATTACHMENTS] = [
                *network[_VALID_ATTACHMENTS],
                *({"containerID": r.container_id, "ifname": r.ifname} for r in there),
            ]
        if ipam := ipam_of(kind, self._request, network, self._shared.settings.timeout):
            ipam.gc()


def _valid_attachments(request: Request) -> set[str]:
    """Return the ids of the attachments that GC must keep.

    An absent list is an error: read as "nothing is valid" it would cut off every container.
    """
    listed = request.config.get(_VALID_ATTACHMENTS)
    if listed is None:
        raise CniError(
            Code.INVALID_NETWORK_CONFIG,
            f"{_VALID_ATTACHMENTS}: missing; GC needs the list of attachments to keep",
            "an empty list removes all",
        )
    if not isinstance(listed, list):
        raise CniError(
            Code.INVALID_NETWORK_CONFIG,
            f"{_VALID_ATTACHMENTS}: expected a list, got {listed!r}",
        )
    ids = set()
    for position, item in enumerate(listed):
        match item:
            case {"containerID": str(container_id), "ifname": str(ifname)}:
                ids.add(attachment_id(request.network, container_id, ifname))
            case _:
                raise CniError(
                    Code.INVALID_NETWORK_CONFIG,
                    f"{_VALID_ATTACHMENTS}[{position}]: expected containerID and ifname, "
                    f"got {item!r}",
                )
    return ids
