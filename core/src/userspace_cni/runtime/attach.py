"""Attachment of a container: port, hand-over, and undo if a step fails."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache, partial

from attrs import evolve

from userspace_cni import deadline, handover, netns
from userspace_cni.api import Addresses, Attachment, HostPort
from userspace_cni.cni.errors import CniError, Code, DataplaneUnavailable
from userspace_cni.cni.request import Caller, Target
from userspace_cni.cni.result import Interface, Result
from userspace_cni.handover import ContainerDirectory
from userspace_cni.ipam import Allocation
from userspace_cni.log import logger
from userspace_cni.runtime.detach import Detacher
from userspace_cni.runtime.plan import Plan
from userspace_cni.runtime.shared import Shared
from userspace_cni.runtime.subject import without_index


class Attacher:
    """Executes ADDs; the caller holds the attachment's lock."""

    def __init__(self, shared: Shared, detacher: Detacher) -> None:
        """Use *detacher* to remove what earlier requests left."""
        self._shared = shared
        self._detacher = detacher

    def attach(
        self,
        plan: Plan,
        attachment: Attachment,
        directory: ContainerDirectory,
        allocation: Allocation | None,
        *,
        undo: ExitStack,
    ) -> tuple[Result, HostPort]:
        """Execute an ADD; return this plugin's part of the result, and the port.

        Args:
            plan: the validated request.
            attachment: the attachment, without addresses.
            directory: the container's shared directory.
            allocation: the allocation of addresses, not started; None without IPAM.
            undo: receives the step that undoes each action.

        Raises:
            CniError: the error of any step.

        """
        target = plan.target
        if directory.holds(attachment.ifname, attachment.id):
            # The store has lost the attachment of a running container. Undoing this ADD would
            # remove its port and free its addresses.
            raise _already_attached(target)
        dns = plan.asked.dns
        if allocation is not None:
            with self._shared.phase("ipam"):
                allocation.begin()

            @cache  # so that the wait is measured only once
            def allocated() -> Addresses:
                with self._shared.phase("ipam"):
                    given = allocation.result()
                return Addresses(
                    ips=without_index(given.ips), routes=given.routes, dns=dns or given.dns
                )

            attachment = evolve(attachment, addresses=allocated)
        else:
            attachment = evolve(attachment, addresses=Addresses(dns=dns))
        undo.callback(directory.withdraw, attachment.ifname, attachment.id)
        with self._shared.phase("host"):
            port = plan.host.add(attachment, plan.host_conf, undo)
        given = attachment.wait_for_addresses()
        routes = tuple(dict.fromkeys((*given.routes, *port.routes)))
        attachment = evolve(attachment, addresses=evolve(given, routes=routes))
        handoff = plan.handoff(attachment, port)
        with self._shared.phase("handover"):
            engine = plan.container.info.name
            handover.publish(directory, attachment, handoff, plan.conf, engine=engine, undo=undo)
            if plan.annotate is not None:
                plan.annotate(attachment, handoff, plan.conf, engine, undo)
        if plan.container.where == "node":
            with self._shared.phase("container"):
                netns.call(target.netns, plan.container.add, handoff)
        container = Interface(
            name=attachment.interface,
            mac=port.mac,
            mtu=port.mtu,
            sandbox=target.netns,
            socket_path=handover.container_socket(handoff, plan.conf),
        )
        return (
            Result(
                interfaces=(*port.interfaces, container),
                ips=tuple(evolve(ip, interface=len(port.interfaces)) for ip in given.ips),
                routes=routes,
                dns=given.dns,
            ),
            port,
        )

    def make_room(self, attachment: Attachment, target: Target, caller: Caller) -> None:
        """Clean up after an earlier ADD of the same attachment that died before it was complete.

        Raises:
            CniError: 103 if the attachment exists already.
            DataplaneUnavailable: if the switch is down, so that the remains cannot be removed.

        """
        old = self._shared.store.get(attachment.id)
        if old is None:
            return
        if old.state in ("attached", "damaged"):
            raise _already_attached(target)
        logger.warning("removing what an unfinished request left of this attachment")
        self._detacher.detach(old, caller, target)
        if self._shared.store.get(attachment.id) is not None:
            raise DataplaneUnavailable(
                f"an earlier attachment of container {target.container_id} by {target.ifname} "
                f"to network {target.network} is still to be removed",
                f"host engine {old.engine!r} cannot reach its switch; is it running?",
            )

    @contextmanager
    def undone_on_failure(
        self,
        plan: Plan,
        attachment: Attachment,
        directory: ContainerDirectory,
        allocation: Allocation | None,
    ) -> Iterator[ExitStack]:
        """Run the undo steps in reverse order if the body fails; then remove the record.

        If an undo step fails, the record stays in the store for DEL and GC, and the addresses stay
        allocated, because the port may still exist. If IPAM had failed, the state becomes
        ``unknown``: a plugin that cannot allocate may never be able to free.
        """
        store = self._shared.store
        undo = ExitStack()
        try:
            yield undo
        except BaseException as failure:
            try:
                with deadline.extended(self._shared.settings.budget / 2):
                    undo.close()
                    if allocation is not None and not _is_running(
                        plan, attachment, allocation, failure
                    ):
                        allocation.undo()
            except (Exception, SystemExit) as error:  # noqa: BLE001  an engine's
                logger.exception("an ADD that failed could not be undone whole")
                failed = allocation is not None and allocation.failed
                mark = partial(store.mark, state="unknown" if failed else "deleting")
                _quietly(partial(mark, attachment.id), because=error)
            else:
                # The store may have lost this or another attachment of the container.
                if directory.is_told_of():
                    _quietly(partial(store.remove, attachment.id))
                else:
                    _quietly(partial(self._shared.forget, attachment.id, directory))
            raise
        undo.pop_all()


def _is_running(
    plan: Plan, attachment: Attachment, allocation: Allocation, failure: BaseException
) -> bool:
    """Return whether an ADD failed because the attachment exists but the store has lost it.

    In that case the addresses belong to a running container.
    """
    refused = isinstance(failure, CniError) and failure.code == Code.ALREADY_ATTACHED
    return (refused or allocation.failed) and attachment.id in plan.host.attachments(
        attachment.network, plan.host_conf
    )


def _quietly(step: Callable[[], None], because: BaseException | None = None) -> None:
    """Run a clean-up step; only log its error, which must not hide the original one."""
    try:
        step()
    except CniError as error:
        logger.error("the store is out of date, GC will repair it: %s", error, exc_info=because)


def _already_attached(target: Target) -> CniError:
    return CniError(
        Code.ALREADY_ATTACHED,
        f"container {target.container_id} is already attached to network {target.network} "
        f"by {target.ifname}",
        "DEL it first",
    )
