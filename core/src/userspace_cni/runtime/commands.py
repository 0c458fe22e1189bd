"""The runtime: what ADD, DEL, CHECK, STATUS and GC do, for every engine alike.

One request goes straight down: configuration, IPAM, the host's engine, the container's engine; one
result comes straight up. What is begun is written down first, and each step says how it is undone.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import cache, partial
from pathlib import Path
from threading import Lock
from typing import Any

from attrs import evolve, frozen

from userspace_cni import config, deadline, handover, netns, registry
from userspace_cni.api import (
    Attachment,
    ContainerEngine,
    EngineConf,
    EngineContext,
    Handoff,
    HostEngine,
    HostPort,
    attachment_id,
)
from userspace_cni.cni import result as cni_result
from userspace_cni.cni.errors import (
    CheckFailed,
    CniError,
    Code,
    DataplaneUnavailable,
    Problems,
    internal_error,
)
from userspace_cni.cni.request import Request, version_of
from userspace_cni.cni.result import Interface, IPConfig, Result
from userspace_cni.cni.versions import SUPPORTED
from userspace_cni.config import NetConf
from userspace_cni.config.settings import Settings
from userspace_cni.handover import ContainerDirectory
from userspace_cni.ipam import Allocation, Ipam
from userspace_cni.locks import Locks
from userspace_cni.log import logger
from userspace_cni.store import Record, Store, StoreFailed

_NEWEST = SUPPORTED[-1]
#: For removals that were put off, on the way of a request that has done its own work.
_RETRY_PATIENCE = 5.0  # seconds
_VALID_ATTACHMENTS = "cni.dev/valid-attachments"
_UNUSABLE = (Code.INVALID_NETWORK_CONFIG, Code.UNSUPPORTED_FIELD)
#: States of a record, written before anything is touched.
_TO_BE_REMOVED = ("deleting", "unknown")


@frozen(kw_only=True)
class _Plan:
    """A network configuration with the engines that it names."""

    conf: NetConf
    host: HostEngine
    host_conf: EngineConf
    container: ContainerEngine
    #: Some defaults of the container's part depend on what IPAM and the host's engine gave.
    container_conf: Callable[[bool], EngineConf]
    #: Does as :func:`.handover.publish`, for the pod's annotations; None where nobody wants it.
    annotate: Callable[[Attachment, Handoff, NetConf, str, ExitStack], None] | None = None


#: Is given the name of a step of a request, and surrounds it: for whoever measures.
Phase = Callable[[str], AbstractContextManager[object]]


class Busy(Exception):
    """A request works on the attachment."""


class Runtime:
    """Serves requests, one at a time or from several threads."""

    def __init__(
        self, settings: Settings, *, alone: bool = True, phase: Phase = nullcontext
    ) -> None:
        """Serve the node that *settings* describes.

        Args:
            settings: The node's.
            alone: This process serves one request and ends: it also removes what others could not
                while a switch was down. False for a daemon.
            phase: Surrounds the steps of requests: ipam, host, handover, container, store.

        """
        self._settings = settings
        self._alone = alone
        self._phase = phase
        self.store = Store(settings.state_dir, settings.timeout)
        self._locks = Locks(settings.run_dir / "locks", settings.timeout)
        self._host_engines: dict[str, HostEngine] = {}
        self._guard = Lock()
        #: Attachments whose DEL came while that could not be written down.
        self._unwanted: set[str] = set()

    def close(self) -> None:
        """Close what is open, the engines' connections included.

        What cannot be closed fails nobody's request, which has been carried out.
        """
        for engine in self._host_engines.values():
            try:
                engine.close()
            except (Exception, SystemExit):  # noqa: BLE001  an engine may raise anything
                logger.exception("host engine %r cannot be closed", engine.info.name)
        self.store.close()

    @property
    def engines(self) -> frozenset[str]:
        """The names of the host engines that have been used."""
        with self._guard:
            return frozenset(self._host_engines)

    def serve(self, request: Request) -> dict[str, Any] | None:
        """Carry *request* out; return the result object of an ADD, None for all else.

        Raises:
            CniError: what went wrong, with nothing of a failed ADD left behind.

        """
        match request.command:
            case "ADD":
                return self.add(request)
            case "DEL":
                self.delete(request)
            case "CHECK":
                self.check(request)
            case "STATUS":
                self.status(request)
            case "GC":
                self.gc(request)
        return None

    # -- the commands

    def add(self, request: Request) -> dict[str, Any]:
        """Attach the container and return the result in the version of the request."""
        plan = self._plan(request)
        plan.conf.require_open(request)
        previous = plan.conf.previous(request.cni_version)
        attachment = self._attachment(request, plan.conf)
        if not request.netns_override:
            netns.require_foreign(request.netns)
        plan, volume = self._placed(plan, request)
        if volume:
            # An earlier sandbox of the pod may have left its files in there.
            self._retry_deletions(request, volume)
            directory = self._volume(volume, request.container_id, plan.conf.container_dir or "")
            attachment = evolve(attachment, directory=directory)
        elif plan.annotate is not None and plan.conf.container_dir is None:
            directory = self._directory(
                plan.conf.shared_dir, request.container_id, missing=plan.conf.shared_volume
            )
            attachment = evolve(attachment, directory=directory)
        with self._lock(attachment.id) as lock, self._allocation(plan, request, lock) as allocation:
            if not request.wanted():
                # Its DEL may have been served already, if this waited long to be.
                raise CniError(
                    Code.TRY_AGAIN_LATER,
                    "the caller has gone before its ADD began",
                    "nothing was done; the runtime tries again",
                )
            self._make_room(attachment, request)
            with self._phase("store"):
                self.store.begin(
                    Record(
                        network=request.network,
                        container_id=request.container_id,
                        ifname=request.ifname,
                        netns=request.netns,
                        namespace=netns.identity(request.netns),
                        engine=plan.host_conf.engine,
                        config=dict(request.config),
                        args=request.args,
                        path=request.path,
                        directory=volume,
                        container_dir=plan.conf.container_dir or "",
                    )
                )
            self._unwanted.discard(attachment.id)
            with self._undone_on_failure(attachment, allocation) as undo:
                own, port = self._attach(plan, attachment, request, allocation, undo)
                answer = previous.extended_by(own) if previous else own
                body = cni_result.dump(answer, request.cni_version)
                with self._phase("store"):
                    self.store.commit(attachment.id, port, cni_result.dump(own, _NEWEST))
        return body

    def delete(self, request: Request) -> None:
        """Detach the container; what is gone already is no error.

        Raises:
            CniError: 11 while the store cannot be read or written: it alone can tell what there is
                to remove, and that nobody may put it back.

        """
        id_ = attachment_id(request.network, request.container_id, request.ifname)
        record: Record | None = None
        removed = False
        with self._lock(id_):
            if not request.wanted():
                # The shim has queued it, or it will come again; an ADD may have come since.
                raise CniError(
                    Code.TRY_AGAIN_LATER,
                    "the caller has gone before its DEL began",
                    "nothing was done; the shim has queued it, or the runtime tries again",
                )
            try:
                record = self.store.get(id_)
                if record is None:
                    self._detach_unknown(request)
                else:
                    removed = self._detach(_completed(record, request), request)
            except StoreFailed as error:
                self._unwanted.add(id_)
                raise CniError(Code.TRY_AGAIN_LATER, error.msg, error.details) from error
        if removed and self._alone:
            self._retry_deletions(request)

    def check(self, request: Request) -> None:
        """Compare what is there with what ADD answered, as ``prevResult`` tells it now."""
        plan = self._plan(request)
        expected = plan.conf.previous(request.cni_version)
        if expected is None:
            raise CniError(
                Code.INVALID_NETWORK_CONFIG,
                "prevResult: missing; CHECK compares with it",
                "give CHECK the result of the ADD as prevResult",
            )
        attachment = self._attachment(request, plan.conf)
        record = self.store.get(attachment.id)
        if record is None or record.state != "attached" or record.port is None:
            damage = f"its record is damaged: {record.damage}" if record and record.damage else ""
            raise CheckFailed(
                f"container {request.container_id} is not attached to network "
                f"{request.network} by {request.ifname}",
                f"{damage or 'no completed ADD is recorded'}; DEL it and ADD it again",
            )
        if not request.netns_override:
            netns.require_foreign(request.netns)
        index, interface = _own_interface(expected, attachment)
        before = _previous_of(record)
        directory = self._recorded_directory(record)
        attachment = evolve(
            attachment,
            directory=directory,
            mac=interface.mac or None,
            ips=_without_index(ip for ip in expected.ips if ip.interface in (index, None)),
            routes=tuple(route for route in expected.routes if route not in before.routes),
        )
        plan.host.check(attachment, plan.host_conf, record.port)
        handoff = evolve(
            self._handoff(plan, attachment, record.port), mac=interface.mac, mtu=interface.mtu
        )
        handover.require(attachment, handoff)
        if plan.container.where == "node":
            netns.call(request.netns, plan.container.check, handoff)
        if ipam := self._ipam(plan.conf.ipam_type, request, request.config):
            ipam.check()

    def status(self, request: Request) -> None:
        """Return if an ADD could succeed now."""
        try:
            plan = self._plan(request)
            conf = plan.conf
            self.store.require_writable()
            if conf.kubeconfig is not None:
                from userspace_cni.kubernetes import kubeconfig

                kubeconfig.load(conf.kubeconfig)
            plan.host.status(plan.host_conf)
        except CniError as error:
            if error.code in (
                Code.INVALID_NETWORK_CONFIG,
                Code.UNSUPPORTED_FIELD,
                Code.LIMITED_CONNECTIVITY,
            ):
                raise
            raise CniError(Code.NOT_AVAILABLE, error.msg, error.details) from error
        if ipam := self._ipam(conf.ipam_type, request, request.config):
            ipam.status()

    def gc(self, request: Request) -> None:
        """Remove all of the network's attachments that the request does not call valid."""
        valid = _valid_attachments(request)
        self._locks.sweep()
        failures: list[CniError] = []
        plan: _Plan | None = None
        try:
            plan = self._plan(request)
            conf = plan.conf
        except CniError as error:
            if error.code in _UNUSABLE:
                raise
            failures.append(error)
            conf = config.load(request)
        for record in self.store.of_network(request.network):
            if record.id not in valid:
                work = partial(self._detach, _completed(record, request), request)
                self._collect(record.id, failures, work, record)
        ports_are_known = plan is not None and self._sweep(plan, request, valid, failures)
        if ports_are_known and conf.ipam_type:
            try:
                self._free_all(conf.ipam_type, request, valid)
            except CniError as error:
                failures.append(error)
        if failures:
            raise _joined(failures)

    def _sweep(
        self, plan: _Plan, request: Request, valid: set[str], failures: list[CniError]
    ) -> bool:
        """Remove the ports and hand-overs that are not *valid*; tell whether all ports were seen.

        A port that nobody has recorded may have any address.
        """
        before = len(failures)
        try:
            self._collect_by_tag(plan, request, valid, failures)
            ports_are_known = len(failures) == before
            self._withdraw_all(plan.conf, valid, failures)
        except (Exception, SystemExit) as error:  # noqa: BLE001  an engine's; go on
            failures.append(_cni_error(error))
            return False
        return ports_are_known

    def _collect_by_tag(
        self, plan: _Plan, request: Request, valid: set[str], failures: list[CniError]
    ) -> None:
        """Remove what the switch has of the network and the records do not tell."""
        for id_ in sorted({*plan.host.attachments(request.network, plan.host_conf)} - valid):
            record = self.store.get(id_)
            work: Callable[[], object] = partial(plan.host.delete, id_, plan.host_conf, None)
            if record is not None and record.damage:  # even its network may be
                work = partial(self._detach, _completed(record, request), request)
            if record is None or record.damage:
                self._collect(id_, failures, work, record)

    def _free_all(self, kind: str, request: Request, valid: set[str]) -> None:
        """Let the IPAM plugin *kind* free all but what *valid* attachments have, or others still.

        What could not be removed, or is being added, has its address until it is gone.
        """
        there = [r for r in self.store.of_network(request.network) if r.id not in valid]
        network = dict(request.config)
        if there:
            network[_VALID_ATTACHMENTS] = [
                *network[_VALID_ATTACHMENTS],
                *({"containerID": r.container_id, "ifname": r.ifname} for r in there),
            ]
        if ipam := self._ipam(kind, request, network):
            ipam.gc()

    def restore(self, id_: str) -> str | None:
        """Put back what a switch has lost of attachment *id_*; tell what was missing, if anything.

        Nothing is done if it is not attached, or if its DEL has come, carried out or not.

        Raises:
            Busy: a request works on the attachment.
            CniError: what went wrong; the attachment stays recorded, for the next try.

        """
        with self._locks.hold_if_free(_lock_name(id_)) as held:
            if not held:
                raise Busy
            record = self.store.get(id_) if id_ not in self._unwanted else None
            if record is None or record.state != "attached" or record.port is None:
                return None
            # The path may be another namespace's by now, even the host's own.
            with netns.pinned(record.netns, record.namespace) as there:
                return self._restore(record, record.port) if there else None

    def _restore(self, record: Record, lost: HostPort) -> str | None:
        request = _request_of(record)
        plan = self._plan(request, recorded=True)
        if record.container_dir:
            plan = evolve(plan, conf=evolve(plan.conf, container_dir=record.container_dir))
        attachment = self._recorded_attachment(record, request, plan.conf)
        directory = self._recorded_directory(record)
        # What it was handed over: the engine's routes too, in the same order.
        told = evolve(attachment, routes=cni_result.load(record.result, _NEWEST).routes)
        handoff = self._handoff(plan, told, lost)
        try:
            plan.host.check(attachment, plan.host_conf, lost)
            handover.require(evolve(told, directory=directory), handoff)
        except CheckFailed as error:
            missing = str(error)
        else:
            return None
        with ExitStack() as undo:
            if handoff.socket:
                directory.provide_view()
            port = plan.host.restore(attachment, plan.host_conf, lost, undo)
            handoff = self._handoff(plan, told, port)
            handover.publish(told, handoff, plan.conf, plan.container.info.name, undo)
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
                self.store.commit(record.id, port, record.result)
            undo.pop_all()
        return missing

    def host(self, raw: Mapping[str, Any]) -> tuple[HostEngine, EngineConf]:
        """Return the engine of a network's ``host`` part, and that part as the engine gets it.

        Raises:
            CniError: the engine is not installed, or the part cannot be used.

        """
        name = config.engine_name(NetConf(name="", host=raw), "host")
        kind = registry.host_engine(name)
        return self._host_engine(name, kind), config.engine_conf(raw, "host", kind.info, {})

    def remove(self, id_: str, still: Callable[[Record], bool]) -> bool:
        """Remove attachment *id_* as its own DEL would; tell whether it is removed.

        Nothing is done while a request works on it, nor if *still* denies it of the record as it
        is then.

        Raises:
            CniError: what went wrong; the attachment stays recorded as ``deleting``.

        """
        with self._locks.hold_if_free(_lock_name(id_)) as held:
            record = self.store.get(id_) if held else None
            if record is None or not still(record):
                return False
            if netns.is_gone(record.netns, record.namespace):
                record = evolve(record, netns="")
            return self._detach(record, _request_of(record))

    # -- attaching

    def _attach(
        self,
        plan: _Plan,
        attachment: Attachment,
        request: Request,
        allocation: Allocation | None,
        undo: ExitStack,
    ) -> tuple[Result, HostPort]:
        """Do the work of an ADD and return our own part of the result, and the port."""
        directory = attachment.directory
        assert isinstance(directory, ContainerDirectory)  # noqa: S101  ours
        if directory.holds(attachment.ifname, attachment.id):
            # The store has lost it; what is undone below, and the addresses, are a running
            # container's.
            raise _already_attached(request)
        dns = plan.conf.result_dns
        if allocation is not None:
            allocation.begin()

            @cache  # one wait is one step
            def allocated() -> Result:
                with self._phase("ipam"):
                    return allocation.result()

            attachment = evolve(
                attachment,
                ips=lambda: _without_index(allocated().ips),
                routes=lambda: allocated().routes,
                dns=lambda: dns or allocated().dns,
            )
        else:
            attachment = evolve(attachment, dns=dns)
        undo.callback(directory.withdraw, attachment.ifname, attachment.id)
        with self._phase("host"):
            port = plan.host.add(attachment, plan.host_conf, undo)
        attachment = evolve(
            attachment,
            ips=attachment.ips,
            routes=tuple(dict.fromkeys((*attachment.routes, *port.routes))),
            dns=attachment.dns,
        )
        handoff = self._handoff(plan, attachment, port)
        with self._phase("handover"):
            handover.publish(attachment, handoff, plan.conf, plan.container.info.name, undo)
            if plan.annotate is not None:
                plan.annotate(attachment, handoff, plan.conf, plan.container.info.name, undo)
        if plan.container.where == "node":
            with self._phase("container"):
                netns.call(request.netns, plan.container.add, handoff)
        container = Interface(
            name=attachment.interface,
            mac=port.mac,
            mtu=port.mtu,
            sandbox=request.netns,
            socket_path=handover.container_socket(handoff, plan.conf),
        )
        return (
            Result(
                interfaces=(*port.interfaces, container),
                ips=tuple(evolve(ip, interface=len(port.interfaces)) for ip in attachment.ips),
                routes=attachment.routes,
                dns=attachment.dns,
            ),
            port,
        )

    def _handoff(self, plan: _Plan, attachment: Attachment, port: HostPort) -> Handoff:
        conf = plan.container_conf(bool(attachment.ips))
        return plan.container.prepare(attachment, conf, port)

    def _make_room(self, attachment: Attachment, request: Request) -> None:
        """Clean up after an earlier ADD of the same attachment that died half way."""
        old = self.store.get(attachment.id)
        if old is None:
            return
        if old.state in ("attached", "damaged"):
            raise _already_attached(request)
        logger.warning("removing what an unfinished request left of this attachment")
        self._detach(old, request)
        if self.store.get(attachment.id) is not None:
            raise DataplaneUnavailable(
                f"an earlier attachment of container {request.container_id} by {request.ifname} "
                f"to network {request.network} is still to be removed",
                f"host engine {old.engine!r} cannot reach its switch; is it running?",
            )

    @contextmanager
    def _undone_on_failure(
        self, attachment: Attachment, allocation: Allocation | None
    ) -> Iterator[ExitStack]:
        """Run the undo steps, in reverse, when the body fails; then forget the attachment.

        What cannot be undone stays in the store, for DEL and GC, and keeps its addresses: its port
        may be there. Without addresses it is as good as ``unknown``: an IPAM plugin that cannot
        allocate may never be able to free.
        """
        undo = ExitStack()
        try:
            yield undo
        except BaseException:
            try:
                with deadline.extended(self._settings.budget / 2):
                    undo.close()
                    if allocation is not None:
                        allocation.undo()
            except (Exception, SystemExit) as error:  # noqa: BLE001  an engine's
                logger.exception("an ADD that failed could not be undone whole")
                mark = partial(
                    self.store.mark,
                    state="unknown" if allocation and allocation.failed else "deleting",
                )
                self._quietly(mark, attachment.id, because=error)
            else:
                directory = attachment.directory
                assert isinstance(directory, ContainerDirectory)  # noqa: S101  ours
                # The store may have lost another attachment of the container, or this very one.
                if directory.is_told_of():
                    self._quietly(self.store.remove, attachment.id)
                else:
                    self._quietly(partial(self._forget, directory=directory), attachment.id)
            raise
        undo.pop_all()

    # -- detaching

    def _detach(self, record: Record, request: Request) -> bool:
        """Remove an attachment: from the dataplane, then its addresses, then its record.

        That it is to be removed is written down before anything is touched, so that nobody puts it
        back. Each step needs the one before: no address is freed, for somebody else to get, while
        its port may be there. A switch that is down leaves the record, for when it is back. Return
        whether it is removed.
        """
        lock = self._locks.held(_lock_name(record.id))
        ipam = self._ipam(_ipam_type(record.config), request, record.config, record, lock)
        if ipam is None:
            return self._detach_and(nullcontext, record, request)
        with self._phase("ipam"):
            deletion = ipam.deletion()
        with deletion:
            return self._detach_and(deletion.carry_out, record, request)

    def _detach_and(self, free: Callable[[], object], record: Record, request: Request) -> bool:
        """Do as :meth:`_detach`; *free* gives the addresses back."""
        is_news = record.state not in _TO_BE_REMOVED
        if is_news:
            with self._phase("store"):
                self.store.mark(record.id, "deleting")
        try:
            plan = self._recorded_plan(record, request)
            record = self._ascertained(plan, record)
            with self._phase("host"):
                plan.host.delete(record.id, plan.host_conf, _still_there(record.netns, request))
        except DataplaneUnavailable as error:
            if self.store.get(record.id) is None:
                self.store.begin(record)
                is_news = True
            if is_news:
                logger.warning("removal put off until the switch is back: %s", error)
            return False
        except CniError as error:
            if record.state != "unknown" or error.code not in _UNUSABLE:
                raise
            logger.warning("no ADD is recorded, and the network cannot be used: %s", error)
        else:
            self._free(free, record)
        with self._phase("store"):
            if record.state != "unknown" or self.store.get(record.id) is not None:
                self._forget(record.id, self._recorded_directory(record))
        self._unwanted.discard(record.id)
        return True

    def _free(self, free: Callable[[], object], record: Record) -> None:
        """Take back all that an attachment without a port has: see :meth:`_detach`."""
        failures: list[CniError] = []
        try:
            self._withdraw(record)
        except CniError as error:
            failures.append(error)
        try:
            with self._phase("ipam"):
                free()
        except CniError as error:
            # Else a configuration that no ADD can have succeeded with would fail for ever.
            if record.state == "unknown" and error.code != Code.TRY_AGAIN_LATER:
                logger.warning("no ADD is recorded, there is no port, and IPAM fails: %s", error)
            else:
                failures.append(error)
        self._withdraw_from_pod(record)
        if failures:
            raise _joined(failures)

    def _ascertained(self, plan: _Plan, record: Record) -> Record:
        """Return *record*, which is no longer ``unknown`` if the switch has a port of it.

        An ADD has succeeded then, and whatever it allocated is to be freed.
        """
        if record.state != "unknown" or record.id not in plan.host.attachments(
            record.network, plan.host_conf
        ):
            return record
        record = evolve(record, state="deleting")
        if self.store.get(record.id) is None:
            self.store.begin(record)
        else:
            self.store.mark(record.id, "deleting")
        return record

    def _detach_unknown(self, request: Request) -> None:
        """Remove an attachment that the store does not know: by tag, and by the given config.

        A configuration that no ADD can have succeeded with is no reason to fail: the runtime would
        repeat the DEL for ever.
        """
        try:
            plan = self._plan(request)
        except CniError as error:
            logger.warning("nothing is recorded, and the network cannot be used: %s", error)
            return
        self._detach(
            Record(
                network=request.network,
                container_id=request.container_id,
                ifname=request.ifname,
                netns=request.netns,
                engine=plan.host_conf.engine,
                state="unknown",
                config=dict(request.config),
                args=request.args,
                path=request.path,
            ),
            request,
        )

    def _retry_deletions(self, request: Request, volume: str = "") -> None:
        """Remove what could not be removed before of the network of *request*.

        Or, with *volume*, what is in that one. Whoever calls this has just seen that switch and
        plugin work, or needs the volume. What hangs all the same ends it: the next would, too.
        """
        try:
            waiting = [
                record
                for record in self.store.deleting()
                if (record.directory == volume if volume else record.network == request.network)
            ]
        except CniError as error:
            logger.warning("cannot look for removals that were put off: %s", error)
            return
        failures: list[CniError] = []
        with deadline.within(min(_RETRY_PATIENCE, self._settings.budget)):
            for record in waiting:
                self._collect(record.id, failures, partial(self._detach, record, request), record)
                if failures and failures[-1].code == Code.TRY_AGAIN_LATER:
                    break
        for failure in failures:
            logger.warning("a removal that was put off failed again: %s", failure)

    def _collect(
        self,
        id_: str,
        failures: list[CniError],
        work: Callable[[], object],
        record: Record | None = None,
    ) -> None:
        """Do *work* on an attachment unless another request works on it; note its failure.

        Nor if it is not recorded as *record* any more: another request has worked on it meanwhile.
        """
        with self._locks.hold_if_free(_lock_name(id_)) as held:
            try:
                if held and self.store.get(id_) == record:
                    work()
            except (Exception, SystemExit) as error:  # noqa: BLE001  an engine's; go on
                failures.append(_cni_error(error))

    # -- finding things

    def _plan(self, request: Request, *, recorded: bool = False) -> _Plan:
        """Return the request's configuration with the engines that it names.

        Of one that is *recorded* an ADD has succeeded: only what keeps it from being used is told.

        Raises:
            CniError: all that is wrong with the configuration, at once; no switch is asked.

        """
        problems = Problems()
        conf = config.load(request, problems)
        if not recorded and request.command in ("ADD", "CHECK"):
            with problems:
                conf.previous(request.cni_version)
        if not recorded and request.command in ("ADD", "STATUS"):
            with problems:
                handover.require_possible(conf)
        host_class: type[HostEngine] | None = None
        host_conf: EngineConf | None = None
        container_class: type[ContainerEngine] | None = None
        host_name = ""
        with problems:
            host_name = config.engine_name(conf, "host")
            host_class = registry.host_engine(host_name)
        if host_class is not None or "engine" in conf.container:
            info = host_class.info if host_class else None
            with problems:
                name = config.engine_name(conf, "container", info)
                container_class = registry.container_engine(name)
        if host_class is not None:
            with problems:
                host_conf = config.engine_conf(conf.host, "host", host_class.info, {})
                host_conf = evolve(host_conf, mtu=conf.mtu, bandwidth=conf.requested_bandwidth)
                config.require_bandwidth(conf, host_class.info, host_conf.iftype)

        def container_conf(has_addresses: bool) -> EngineConf:
            assert container_class is not None  # noqa: S101  the problems were told
            known = container_class.info.interface_types
            asked = conf.host.get("iftype")
            defaults = {
                # What is wrong with the host's is not the container's fault.
                "iftype": str(asked) if host_conf or asked in known else known[0],
                "netType": "interface" if has_addresses else "none",
            }
            return config.engine_conf(conf.container, "container", container_class.info, defaults)

        own: EngineConf | None = None
        if container_class is not None:
            with problems:
                own = container_conf(bool(conf.ipam_type))
        host: HostEngine | None = None
        if host_class is not None:
            with problems:
                host = self._host_engine(host_name, host_class)
        if not recorded:
            _judge(problems, host, host_conf, container_class, own)
        problems.settle()
        assert host is not None  # noqa: S101  the problems were told
        assert host_conf is not None  # noqa: S101
        assert container_class is not None  # noqa: S101
        return _Plan(
            conf=conf,
            host=host,
            host_conf=host_conf,
            container=registry.make(container_class),
            container_conf=container_conf,
        )

    def _recorded_plan(self, record: Record, request: Request) -> _Plan:
        """Plan with the configuration of the ADD; where it cannot be used, with the request's."""
        try:
            return self._plan(evolve(request, config=record.config), recorded=True)
        except CniError as error:
            if error.code not in _UNUSABLE:
                raise
            logger.warning("the recorded configuration cannot be used any more: %s", error)
            return self._plan(request, recorded=True)

    def _placed(self, plan: _Plan, request: Request) -> tuple[_Plan, str]:
        """Ask Kubernetes for the pod; return *plan* for it, and the path of its volume.

        Without a kubeconfig, or a pod, nobody is asked; a pod may have no volume for us.
        """
        named = config.pod_of(request.args)
        if plan.conf.kubeconfig is None or named is None:
            return plan, ""
        from userspace_cni.handover.pod import KubernetesPod

        with self._phase("handover"):
            pod = KubernetesPod.read(plan.conf.kubeconfig, named)
        volume = pod.volume(
            plan.conf, self._settings.kubelet_dir, self._shared_base(plan.conf.shared_dir)
        )
        conf = plan.conf
        if volume.directory:
            conf = evolve(conf, container_dir=volume.container_dir)
        return evolve(plan, conf=conf, annotate=pod.publish), volume.directory

    def _directory(
        self, shared_dir: object, container_id: str, container_dir: str = "", missing: str = ""
    ) -> ContainerDirectory:
        """Return the container's shared directory, below the network's own base or the node's."""
        return ContainerDirectory(
            self._shared_base(shared_dir),
            container_id,
            self._views,
            follow_links=self._settings.follow_links,
            container_dir=container_dir,
            missing=missing,
        )

    def _volume(self, path: str, container_id: str, container_dir: str = "") -> ContainerDirectory:
        """Return the container's shared directory that is the volume at *path* of its pod."""
        base, name = os.path.split(path)
        return ContainerDirectory(
            Path(base),
            container_id,
            self._views,
            follow_links=self._settings.follow_links,
            volume=name,
            container_dir=container_dir,
        )

    def _recorded_directory(self, record: Record) -> ContainerDirectory:
        if record.directory:
            return self._volume(record.directory, record.container_id)
        return self._directory(record.config.get("sharedDir"), record.container_id)

    @property
    def _views(self) -> Path:
        return self._settings.run_dir / "s"

    def _shared_base(self, shared_dir: object) -> Path:
        # Not run_dir itself: a container may be called "locks".
        own = self._settings.run_dir / "shared"
        return Path(shared_dir) if isinstance(shared_dir, str) else own

    def _directory_at(self, path: str) -> ContainerDirectory:
        base, _, container_id = path.rpartition("/")
        return self._directory(base, container_id)

    def _withdraw(self, record: Record) -> None:
        """Take back what the container was handed over."""
        directory = self._recorded_directory(record)
        socket = record.port.socket if record.port else ""
        handover.withdraw(directory, record.ifname, record.id, socket, record.config)

    def _withdraw_from_pod(self, record: Record) -> None:
        """Take an attachment out of its pod's annotations; that fails nobody's request."""
        kubeconfig, pod = record.config.get("kubeconfig"), config.pod_of(record.args)
        told = record.port is None or record.port.socket
        if not isinstance(kubeconfig, str) or pod is None or not told:
            return
        from userspace_cni.handover.pod import withdraw

        with self._phase("handover"):
            withdraw(kubeconfig, pod, (record.container_id, record.ifname, record.network))

    def _withdraw_all(self, conf: NetConf, valid: set[str], failures: list[CniError]) -> None:
        """Take back what was handed over to attachments of *conf* that are not *valid*."""
        base = self._shared_base(conf.shared_dir)
        for container_id, ifname in handover.published(base, conf.name, valid):
            id_ = attachment_id(conf.name, container_id, ifname)
            directory = self._directory(conf.shared_dir, container_id)
            self._collect(id_, failures, partial(directory.withdraw, ifname, id_))

    def _attachment(self, request: Request, conf: NetConf) -> Attachment:
        return Attachment(
            network=request.network,
            container_id=request.container_id,
            ifname=request.ifname,
            netns=request.netns,
            interface=conf.if0name or request.ifname,
            mac=conf.requested_mac(request),
            mtu=conf.mtu,
            pod=config.pod_of(request.args),
            bandwidth=conf.requested_bandwidth,
            args=conf.pod_args(request),
            directory=self._directory(
                conf.shared_dir, request.container_id, conf.container_dir or ""
            ),
        )

    def _recorded_attachment(self, record: Record, request: Request, conf: NetConf) -> Attachment:
        """Return the attachment as the host's engine was given it at ADD."""
        own = cni_result.load(record.result, _NEWEST)
        attachment = self._attachment(request, conf)
        _, interface = _own_interface(own, attachment)
        from_port = record.port.routes if record.port else ()
        return evolve(
            attachment,
            directory=self._recorded_directory(record),
            mac=interface.mac or attachment.mac,
            ips=_without_index(own.ips),
            routes=tuple(route for route in own.routes if route not in from_port),
            dns=own.dns,
        )

    def _host_engine(self, name: str, kind: type[HostEngine]) -> HostEngine:
        with self._guard:
            engine = self._host_engines.get(name)
            if engine is None:
                node = EngineContext(
                    settings=self._settings.engines.get(kind.info.name, {}),
                    lock=lambda key: self._locks.hold(f"engine {kind.info.name} {key}"),
                    directory=self._directory_at,
                )
                engine = self._host_engines[name] = registry.make(kind, node)
            return engine

    def _ipam(
        self,
        kind: str,
        request: Request,
        network: Mapping[str, Any],
        record: Record | None = None,
        lock: int | None = None,
    ) -> Ipam | None:
        """Return the IPAM plugin *kind*, called for *record* or else for the request itself.

        What it changes, it changes under the attachment's *lock*.
        """
        if not kind:
            return None
        environ = dict(request.environ)
        if record is not None:
            environ |= {
                "CNI_CONTAINERID": record.container_id,
                "CNI_IFNAME": record.ifname,
                "CNI_NETNS": record.netns,
            }
            if record.id != attachment_id(request.network, request.container_id, request.ifname):
                environ.pop("CNI_ARGS", None)  # they are about another container
        elsewhere = record.path if record is not None else ()
        return Ipam(
            type=kind,
            config=network,
            cni_version=version_of(network),
            path=(*request.path, *(path for path in elsewhere if path not in request.path)),
            environ=environ,
            timeout=self._settings.timeout,
            lock=lock,
        )

    def _allocation(
        self, plan: _Plan, request: Request, lock: int
    ) -> AbstractContextManager[Allocation | None]:
        ipam = self._ipam(plan.conf.ipam_type, request, request.config, lock=lock)
        if ipam is None:
            return nullcontext()
        with self._phase("ipam"):
            return ipam.add()

    def _forget(self, id_: str, directory: ContainerDirectory) -> None:
        """Forget an attachment, and with the container's last one what is left of *directory*.

        In this order: of two that are removed at once, one comes last.
        """
        self.store.remove(id_)
        if directory.is_left() and not self.store.has_container(directory.container_id):
            directory.discard()

    def _quietly(
        self, step: Callable[[str], None], id_: str, because: BaseException | None = None
    ) -> None:
        """Do a step of cleaning up whose failure must not hide what it cleans up after."""
        try:
            step(id_)
        except CniError as error:
            logger.error("the store is out of date, GC will mend it: %s", error, exc_info=because)

    @contextmanager
    def _lock(self, id_: str) -> Iterator[int]:
        with self._locks.hold(_lock_name(id_)) as descriptor:
            yield descriptor


def _judge(
    problems: Problems,
    host: HostEngine | None,
    host_conf: EngineConf | None,
    container: type[ContainerEngine] | None,
    container_conf: EngineConf | None,
) -> None:
    """Let the engines add what only they can say of their parts, as far as those are known."""
    port: HostPort | None = None
    if host is not None and host_conf is not None:
        problems.add(*host.problems(host_conf))
        with problems:
            port = host.outline(host_conf)
    if container is not None and container_conf is not None:
        with problems:
            problems.add(*registry.make(container).problems(container_conf, port))


def _complete(engine: ContainerEngine, handoff: Handoff) -> None:
    """Configure the container's end unless it has all that it should."""
    try:
        engine.check(handoff)
    except CheckFailed:
        engine.add(handoff)


def _request_of(record: Record) -> Request:
    """Return the ADD that made *record*, for work on it that nobody asked for."""
    return Request(
        command="ADD",
        container_id=record.container_id,
        netns=record.netns,
        ifname=record.ifname,
        args=record.args,
        path=record.path,
        cni_version=version_of(record.config),
        network=record.network,
        config=record.config,
        environ={
            "PATH": os.environ.get("PATH", os.defpath),
            "CNI_PATH": ":".join(record.path),
            "CNI_ARGS": ";".join(f"{key}={value}" for key, value in record.args.items()),
        },
    )


def _completed(record: Record, request: Request) -> Record:
    """Return *record* with what the DEL or GC *request* tells where the record does not."""
    if request.command == "DEL":
        record = evolve(
            record,
            network=request.network,
            container_id=request.container_id,
            ifname=request.ifname,
            netns=request.netns or record.netns,
        )
    return evolve(record, config=record.config or dict(request.config))


def _ipam_type(network: Mapping[str, Any]) -> str:
    section = network.get("ipam")
    kind = section.get("type") if isinstance(section, Mapping) else None
    return kind if isinstance(kind, str) else ""


def _joined(failures: list[CniError]) -> CniError:
    first, *others = failures
    return CniError(first.code, "; ".join(map(str, failures))) if others else first


def _cni_error(error: BaseException) -> CniError:
    """Return *error* as the caller is told it; what no engine should raise is logged."""
    if isinstance(error, CniError):
        return error
    logger.error("internal error", exc_info=error)
    return internal_error(error)


def _lock_name(id_: str) -> str:
    return f"attachment {id_}"


def _already_attached(request: Request) -> CniError:
    return CniError(
        Code.ALREADY_ATTACHED,
        f"container {request.container_id} is attached to network {request.network} "
        f"by {request.ifname} already",
        "DEL it first",
    )


def _still_there(path: str, request: Request) -> str | None:
    """Return the network namespace *path* if work may be done in it."""
    try:
        if path and request.netns_override:
            return path if netns.exists(path) else None
        if path:
            netns.require_foreign(path)
    except CniError as error:
        logger.info("the container's network namespace is gone: %s", error)
        return None
    return path or None


def _without_index(ips: Iterable[IPConfig]) -> tuple[IPConfig, ...]:
    """Return *ips* as engines get them: the index means something in a whole result alone."""
    return tuple(evolve(ip, interface=None) for ip in ips)


def _own_interface(expected: Result, attachment: Attachment) -> tuple[int, Interface]:
    for index, interface in enumerate(expected.interfaces):
        if interface.name == attachment.interface and interface.sandbox:
            return index, interface
    raise CheckFailed(
        f"prevResult.interfaces: the container's interface {attachment.interface} is not in it",
        "give CHECK the result of the ADD; if it is that, DEL and ADD the container again",
    )


def _previous_of(record: Record) -> Result:
    """Return the ``prevResult`` that the ADD of *record* got, empty where it was first."""
    raw = record.config.get("prevResult")
    if raw is None:
        return Result()
    stated = raw.get("cniVersion") or record.config.get("cniVersion")
    return cni_result.load(raw, stated if stated in cni_result.VERSIONS else _NEWEST)


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
