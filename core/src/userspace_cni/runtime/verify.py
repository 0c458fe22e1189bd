"""CHECK and STATUS, which compare the actual state with the expected one and change nothing."""

from __future__ import annotations

from attrs import evolve

from userspace_cni import handover, netns
from userspace_cni.api import attachment_id
from userspace_cni.cni.errors import CheckFailed, CniError, Code
from userspace_cni.cni.request import Request
from userspace_cni.ipam import Ipam
from userspace_cni.runtime import subject
from userspace_cni.runtime.addresses import ipam_of
from userspace_cni.runtime.places import Places
from userspace_cni.runtime.plan import Plan, Planner
from userspace_cni.runtime.shared import Shared, require_foreign


class Verifier:
    """Serves CHECK and STATUS."""

    def __init__(self, shared: Shared, planner: Planner, places: Places) -> None:
        """Compare with the store of *shared*."""
        self._shared = shared
        self._planner = planner
        self._places = places

    def check(self, request: Request) -> None:
        """Compare the actual state with ``prevResult``, which later plugins may have changed.

        Raises:
            CheckFailed: if something differs.
            CniError: if the check is not possible.

        """
        target = request.target
        plan = self._planner.plan(request)
        expected = plan.asked.previous
        if expected is None:
            raise CniError(
                Code.INVALID_NETWORK_CONFIG,
                "prevResult: missing; CHECK compares with it",
                "give CHECK the result of the ADD as prevResult",
            )
        id_ = attachment_id(target.network, target.container_id, target.ifname)
        record = self._shared.store.get(id_)
        if record is None or record.state != "attached" or record.port is None:
            damage = f"its record is damaged: {record.damage}" if record and record.damage else ""
            raise CheckFailed(
                f"container {target.container_id} is not attached to network "
                f"{target.network} by {target.ifname}",
                f"{damage or 'no completed ADD is recorded'}; DEL it and ADD it again",
            )
        require_foreign(request)
        directory = self._places.recorded(record)
        attachment, interface = subject.checked(record, plan, expected, directory)
        plan.host.check(attachment, plan.host_conf, record.port)
        handoff = plan.handoff(attachment, record.port)
        handoff = evolve(handoff, mac=interface.mac, mtu=interface.mtu)
        handover.require(directory, attachment, handoff)
        if plan.container.where == "node":
            netns.call(target.netns, plan.container.check, handoff)
        if ipam := self._ipam(plan, request):
            ipam.check()

    def status(self, request: Request) -> None:
        """Raise CniError if an ADD could not succeed now."""
        try:
            plan = self._planner.plan(request)
            self._shared.store.require_writable()
            if plan.conf.kubeconfig is not None:
                from userspace_cni.kubernetes import kubeconfig

                kubeconfig.load(plan.conf.kubeconfig)
            plan.host.status(plan.host_conf)
        except CniError as error:
            if error.code in (
                Code.INVALID_NETWORK_CONFIG,
                Code.UNSUPPORTED_FIELD,
                Code.LIMITED_CONNECTIVITY,
            ):
                raise
            raise CniError(Code.NOT_AVAILABLE, error.msg, error.details) from error
        if ipam := self._ipam(plan, request):
            ipam.status()

    def _ipam(self, plan: Plan, request: Request) -> Ipam | None:
        return ipam_of(plan.ipam_type, plan.target, request.caller, self._shared)
