"""What the daemon does unasked: attachments that a switch has lost are put back, dead ones removed.

Nothing is touched that the store does not know, and a request that works on an attachment comes
first. One attachment that fails never keeps the others from their turn.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from functools import partial
from threading import Event
from time import monotonic
from typing import TYPE_CHECKING

from userspace_cni import deadline, netns
from userspace_cni.cni.errors import CniError, Code, internal_error
from userspace_cni.log import logger

if TYPE_CHECKING:
    from userspace_cni.node.observer import Observer
    from userspace_cni.runtime import Runtime
    from userspace_cni.settings import NodeSettings
    from userspace_cni.store import Outline, Record

#: A host engine's name, and the JSON of the configuration that it has: who shares both, shares a
#: switch.
_Switch = tuple[str, str]

#: For one removal: while it is waited for a plugin, no switch is looked after.
_REMOVAL_PATIENCE = 10.0  # seconds
_PAUSE_MAX = 300.0  # seconds between attempts to remove what fails again and again


class Reconciler:
    """Looks after the attachments of a node. One thread calls it."""

    def __init__(self, runtime: Runtime, node: NodeSettings, observer: Observer) -> None:
        """Look after those of *runtime*, as often as *node* says."""
        self._runtime = runtime
        self._node = node
        self._observer = observer
        self._revision: object = None
        self._outlines: list[Outline] = []
        self._generations: dict[_Switch, str] = {}
        #: Switches that did not answer.
        self._down: set[_Switch] = set()
        #: Attachments that are to be restored, at the next chance.
        self._lost: set[str] = set()
        #: Since when a namespace is gone.
        self._gone: dict[str, float] = {}
        #: When the removal of an attachment may be tried again, and how long it was waited for.
        self._pauses: dict[str, tuple[float, float]] = {}
        #: The last failure of an attachment: the same one is not news.
        self._failures: dict[str, str] = {}
        #: Networks whose IPAM plugin did not answer in this round.
        self._hanging: set[str] = set()
        self._compared: float | None = None

    @property
    def dataplanes(self) -> dict[str, bool]:
        """By the name of each engine with attachments, whether all its switches answer."""
        down = {engine for engine, _ in tuple(self._down)}
        return {engine: engine not in down for engine, _ in tuple(self._generations)}

    def run(self, stop: Event, between: Callable[[], None]) -> None:
        """Look after them until *stop* is set; call *between* after each round."""
        told = ""
        while True:
            trouble = ""
            for step in (partial(self.look, stop), between):
                try:
                    step()
                except Exception as error:  # noqa: BLE001  the next round may go better
                    if told != (trouble := str(error)):
                        logger.exception("looking after the attachments failed")
            told = trouble
            if stop.wait(self._node.watch_interval):
                return

    def look(self, stop: Event) -> None:
        """Look once."""
        now = monotonic()
        outlines = self._current()
        present = [line for line in outlines if not self._is_gone(line, now)]
        self._watch([line for line in present if line.state == "attached"])
        self._remove_dead(outlines, now, stop)
        if self._compared is None or 0 < self._node.reconcile_interval <= now - self._compared:
            self._compared = now
            self._lost.update(line.id for line in present if line.state == "attached")
        for line in present:
            if stop.is_set():
                return
            if line.id in self._lost and (line.engine, line.host) not in self._down:
                self._restore(line)
        self._lost &= {line.id for line in present}

    def _current(self) -> list[Outline]:
        """Return what the store has, read only when somebody has written."""
        revision = self._runtime.store.revision()
        if revision is None or revision != self._revision:
            self._outlines = self._runtime.store.outlines()
            self._revision = revision
            known = {line.id for line in self._outlines}
            for line in self._outlines:
                if line.state == "damaged":
                    self._runtime.store.get(line.id)  # which tells of it, once
            for memory in (self._gone, self._pauses, self._failures):
                for id_ in memory.keys() - known:
                    del memory[id_]
        return self._outlines

    # -- switches

    def _watch(self, attached: Iterable[Outline]) -> None:
        """Ask each switch whether it has restarted; all its attachments are lost then."""
        switches: dict[_Switch, list[Outline]] = defaultdict(list)
        for line in attached:
            switches[line.engine, line.host].append(line)
        for switch in self._generations.keys() - switches.keys():
            del self._generations[switch]
            self._down.discard(switch)
        engines: dict[str, bool] = {}
        for switch, members in switches.items():
            up = self._answers(switch, members)
            engines[switch[0]] = engines.get(switch[0], True) and up
        for engine, up in engines.items():
            self._observer.dataplane(engine, up=up)

    def _answers(self, switch: _Switch, members: list[Outline]) -> bool:
        known = self._generations.get(switch)
        try:
            generation = self._runtime.generation(members[0].id)
        except Exception as error:  # noqa: BLE001  an engine may raise anything; the others are next
            if isinstance(error, CniError) and error.code == Code.UNKNOWN_CONTAINER:
                return True  # removed since; there is a next time
            if switch not in self._down:
                logger.warning("the switch of engine %s does not answer: %s", switch[0], error)
            self._down.add(switch)
            self._generations.setdefault(switch, "")
            return False
        if switch in self._down:
            logger.warning("the switch of engine %s is back", switch[0])
        elif known not in (None, generation):
            logger.warning("the switch of engine %s has restarted", switch[0])
        if switch in self._down or known not in (None, generation):
            self._lost.update(line.id for line in members)
        self._down.discard(switch)
        self._generations[switch] = generation
        return True

    def _restore(self, line: Outline) -> None:
        try:
            restored = self._runtime.restore(line.id)
        except Exception as error:  # noqa: BLE001  an engine may raise anything; the others are next
            self._failed("restore", line, error)
            return
        self._lost.discard(line.id)
        self._failures.pop(line.id, None)
        if restored:
            logger.warning("attachment %s is restored", line.id)
            self._observer.reconciled("restore", succeeded=True)

    # -- removal

    def _is_gone(self, line: Outline, now: float) -> bool:
        if not netns.is_gone(line.netns, line.namespace):
            self._gone.pop(line.id, None)
            return False
        self._gone.setdefault(line.id, now)
        return True

    def _remove_dead(self, outlines: Iterable[Outline], now: float, stop: Event) -> None:
        """Remove what cannot be of use to anybody any more.

        That is: what could not be removed before; what an ADD left that died, for its lock is free;
        what has had no namespace for longer than the grace.
        """
        silent: set[_Switch] = set()
        self._hanging.clear()
        for line in outlines:
            due, _ = self._pauses.get(line.id, (now, 0.0))
            switch = line.engine, line.host
            if line.network in self._hanging:
                continue  # the next would wait for the same plugin
            if due > now or switch in silent or stop.is_set() or line.state == "damaged":
                continue  # of a damaged record nothing can be taken for granted
            if line.state != "attached":
                removed = self._remove(line, _has_state(line.state), now)
            elif now - self._gone.get(line.id, now) >= self._node.grace and line.id in self._gone:
                removed = self._remove(line, _has_no_namespace, now)
            else:
                continue
            if not removed and line.state != "attached":
                silent.add(switch)  # the next would wait for the same answer

    def _remove(self, line: Outline, still: Callable[[Record], bool], now: float) -> bool:
        try:
            with deadline.within(_REMOVAL_PATIENCE):
                removed = self._runtime.remove(line.id, still)
        except Exception as error:  # noqa: BLE001  an engine may raise anything; the others are next
            if isinstance(error, CniError) and error.code == Code.TRY_AGAIN_LATER:
                self._hanging.add(line.network)
            _, pause = self._pauses.get(line.id, (now, 0.0))
            pause = min(max(2 * pause, self._node.watch_interval), _PAUSE_MAX)
            self._pauses[line.id] = now + pause, pause
            self._failed("remove", line, error)
            return True  # the switch has answered, this attachment is the matter
        if removed:
            logger.warning("attachment %s is removed: %s", line.id, _reason(line))
            self._observer.reconciled("remove", succeeded=True)
        return removed

    def _failed(self, action: str, line: Outline, error: Exception) -> None:
        self._observer.reconciled(action, succeeded=False)
        told = error if isinstance(error, CniError) else internal_error(error)
        if self._failures.get(line.id) != str(told):
            self._failures[line.id] = str(told)
            unexpected = None if isinstance(error, CniError) else error
            logger.error("cannot %s attachment %s: %s", action, line.id, told, exc_info=unexpected)


def _has_state(state: str) -> Callable[[Record], bool]:
    return lambda record: record.state == state


def _has_no_namespace(record: Record) -> bool:
    return record.state == "attached" and netns.is_gone(record.netns, record.namespace)


def _reason(line: Outline) -> str:
    match line.state:
        case "attached":
            return f"its network namespace {line.netns} is gone"
        case "adding":
            return "its ADD has died half way"
        case "unknown":
            return "its DEL came while its switch was down"
        case _:
            return "it was to be removed before"
