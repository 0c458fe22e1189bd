"""Watch over the switches of one host engine, and restoration of what they have lost.

The end of a switch is noticed at once through its lifeline, or otherwise when its generation is
queried. A switch that is down is queried frequently, so that restoration begins at most a twentieth
of the outage later.
"""

from __future__ import annotations

import json
import os
import select
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any, Literal

from attrs import define

from userspace_cni.api import Lifeline
from userspace_cni.cni.errors import DataplaneUnavailable
from userspace_cni.daemon.recorded import News, Recorded
from userspace_cni.daemon.removal import tell_failure
from userspace_cni.log import logger
from userspace_cni.runtime import Busy

if TYPE_CHECKING:
    from threading import Event

    from userspace_cni.config.settings import DaemonSettings
    from userspace_cni.daemon.observer import Observer
    from userspace_cni.runtime import Runtime
    from userspace_cni.store import Outline

#: ``unknown``: the switch has not been queried, has not answered yet, or cannot be queried.
State = Literal["up", "down", "unknown"]

#: Seconds after which a query counts as not answered.
_PATIENCE = 2.0
#: Pause between queries of a switch that is down: minimum in seconds, and fraction of the outage.
_PAUSE, _PAUSE_PART = 0.1, 0.05
#: Seconds before the first retry of a restoration; doubled each time up to the watch interval.
_RETRY = 0.2
#: Minimum seconds between two breaks of a lifeline.
_BREATH = 0.02


@define(eq=False)
class _Switch:
    """The known state of a switch."""

    #: A ``host`` part that leads to the switch.
    host: dict[str, Any]
    state: State = "unknown"
    generation: str = ""
    lifeline: Lifeline | None = None
    #: Since when the switch does not answer.
    silent: float | None = None

    def cut(self) -> None:
        """Close the lifeline."""
        if self.lifeline is not None:
            os.close(self.lifeline.descriptor)
            self.lifeline = None


class Watch:
    """Watches the switches of one host engine.

    A single thread calls :meth:`run`; the other methods are thread-safe.
    """

    def __init__(
        self,
        engine: str,
        runtime: Runtime,
        settings: DaemonSettings,
        recorded: Recorded,
        observer: Observer,
        *,
        compare: bool,
    ) -> None:
        """Set up the watch.

        Args:
            engine: the host engine's name.
            runtime: restores attachments.
            settings: the daemon's settings, including the intervals.
            recorded: the attachments in the store.
            observer: notified of each restoration.
            compare: check every attachment at first, whatever its generation.

        """
        self._engine = engine
        self._runtime = runtime
        self._settings = settings
        self._recorded = recorded
        self._observer = observer
        #: The ``host`` parts of configured networks, with or without attachments.
        self.configured: list[dict[str, Any]] = []
        #: All attachments have been checked once.
        self.has_looked = False
        self._switches: dict[str, _Switch] = {}
        #: Switch keys by the JSON text of a ``host`` part.
        self._keys: dict[str, str] = {}
        #: The switch's generation in which an attachment was last found intact.
        self._found: dict[str, str] = {}
        #: Attachments to check whatever their generation.
        self._due: set[str] = set()
        #: When an attachment may be retried, and the length of the pause before that.
        self._retries: dict[str, tuple[float, float]] = {}
        self._compared = None if compare else monotonic()
        self._news = News()
        #: Since when the current engine call runs.
        self._busy: float | None = None
        self._waker = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    @property
    def state(self) -> State:
        """The combined state of all switches: ``up`` only if all of them are."""
        busy = self._busy
        if not self.has_looked or (busy is not None and monotonic() - busy > _PATIENCE):
            return "unknown"
        states = {switch.state for switch in tuple(self._switches.values())}
        return "down" if "down" in states else "unknown" if "unknown" in states else "up"

    def knows(self, host: Mapping[str, Any]) -> bool:
        """Return whether the switch of a ``host`` part is watched."""
        return self._key(json.dumps(host)) in self._switches

    def wake(self) -> None:
        """Make :meth:`run` start its next round at once."""
        os.eventfd_write(self._waker, 1)

    def run(self, stop: Event) -> None:
        """Watch until *stop* is set; call :meth:`wake` after setting it."""
        while not stop.is_set():
            try:
                self._look(stop)
            except (Exception, SystemExit) as error:  # noqa: BLE001  try again in the next round
                if self._news.is_new("", str(error)):
                    logger.exception("watching the switches of engine %s failed", self._engine)
            else:
                self._news.forget("")
            self._wait()
        for switch in self._switches.values():
            switch.cut()

    # -- rounds

    def _look(self, stop: Event) -> None:
        lines = self._attached()
        self._meet(lines)
        for key, switch in tuple(self._switches.items()):
            if stop.is_set():
                return
            if self._ask(switch):
                self._due.update(line.id for line in lines if self._key(line.host) == key)
        lines = self._attached()
        now = monotonic()
        if self._compared is None or 0 < self._settings.reconcile_interval <= now - self._compared:
            self._compared = now
            self._due.update(line.id for line in lines)
        for line in lines:
            if stop.is_set():
                return
            self._mend(line)
        self.has_looked = True

    def _attached(self) -> list[Outline]:
        """Return the attached attachments, and forget all others."""
        lines = [line for line in self._recorded.of(self._engine) if line.state == "attached"]
        ids = {line.id for line in lines}
        self._news.keep({"", *ids})
        self._due &= ids
        for memory in (self._found, self._retries):
            for id_ in memory.keys() - ids:
                del memory[id_]
        return lines

    def _meet(self, lines: list[Outline]) -> None:
        """Update the set of watched switches from attachments and configured networks."""
        hosts = {line.host for line in lines} | {json.dumps(host) for host in self.configured}
        keys = {self._key(host): host for host in hosts}
        # Copy, because knows() may add to it in another thread.
        self._keys = {host: key for host, key in tuple(self._keys.items()) if host in hosts}
        for key in self._switches.keys() - keys.keys():
            self._switches.pop(key).cut()
        for key in keys.keys() - self._switches.keys():
            self._switches[key] = _Switch(host=_object(keys[key]))

    def _key(self, host: str) -> str:
        """Return the key that identifies the switch of a ``host`` part.

        If the engine cannot determine it, the part itself is the key; querying the switch then
        reports the reason.
        """
        key = self._keys.get(host)
        if key is None:
            try:
                engine, conf = self._runtime.host(_object(host))
                key = f"key {engine.switch_key(conf)}"
            except (Exception, SystemExit):  # noqa: BLE001  an engine may raise anything
                return host
            self._keys[host] = key
        return key

    def _ask(self, switch: _Switch) -> bool:
        """Query a switch for its generation; return whether it is back after an outage."""
        try:
            with self._at_work():
                engine, conf = self._runtime.host(switch.host)
                engine.switch_key(conf)
                # Get the lifeline first, so that it breaks if the switch ends after the query.
                if switch.lifeline is None:
                    switch.lifeline = engine.lifeline(conf)
                generation = engine.generation(conf)
        except (Exception, SystemExit) as error:  # noqa: BLE001  go on with the others
            switch.cut()
            switch.state = "down" if isinstance(error, DataplaneUnavailable) else "unknown"
            if switch.silent is None:
                switch.silent = monotonic()
                logger.warning("the switch of engine %s does not answer: %s", self._engine, error)
            return False
        is_back = switch.silent is not None
        if is_back:
            logger.warning("the switch of engine %s is back", self._engine)
        elif switch.generation not in ("", generation):
            logger.warning("the switch of engine %s has restarted", self._engine)
        switch.state, switch.silent, switch.generation = "up", None, generation
        return is_back

    def _mend(self, line: Outline) -> None:
        """Restore an attachment if its switch may have lost it."""
        switch = self._switches.get(self._key(line.host))
        if switch is None or switch.state != "up":
            self._retries.pop(line.id, None)  # retry as soon as the switch is back
            return
        generation = switch.generation
        is_whole = self._found.get(line.id, line.generation) == generation
        due, pause = self._retries.get(line.id, (0.0, 0.0))
        if (is_whole and line.id not in self._due) or due > monotonic():
            return
        try:
            with self._at_work():
                missing = self._runtime.restore(line.id)
        except (Exception, SystemExit) as error:  # noqa: BLE001  go on with the others
            if isinstance(error, DataplaneUnavailable):
                self._ask(switch)
            if switch.state == "up":
                pause = max(min(2 * pause, self._settings.watch_interval), _RETRY)
                self._retries[line.id] = monotonic() + pause, pause
                self._due.add(line.id)
                if not isinstance(error, Busy):
                    self._observer.reconciled("restore", succeeded=False)
                    tell_failure(self._news, "restore", line.id, error)
            return
        self._due.discard(line.id)
        self._retries.pop(line.id, None)
        self._found[line.id] = generation
        if missing is None:
            self._news.forget(line.id)
            return
        self._observer.reconciled("restore", succeeded=True)
        # The same message twice in one generation means that the restoration did not help.
        if self._news.is_new(line.id, f"{missing} {generation}"):
            logger.warning("attachment %s is restored: %s", line.id, missing)

    @contextmanager
    def _at_work(self) -> Iterator[None]:
        self._busy = monotonic()
        try:
            yield
        finally:
            self._busy = None

    # -- waiting

    def _wait(self) -> None:
        """Wait until the next round is due, :meth:`wake` is called, or a lifeline breaks."""
        poll = select.poll()
        poll.register(self._waker, select.POLLIN)
        held = {s.lifeline.descriptor: s for s in self._switches.values() if s.lifeline is not None}
        for descriptor, switch in held.items():
            assert switch.lifeline is not None  # noqa: S101  filtered above
            poll.register(descriptor, switch.lifeline.events)
        for descriptor, _ in poll.poll(self._pause() * 1000):
            if descriptor == self._waker:
                os.eventfd_read(self._waker)
            else:
                held[descriptor].cut()
                sleep(_BREATH)

    def _pause(self) -> float:
        now = monotonic()
        pauses = [self._settings.watch_interval]
        pauses += [
            max(_PAUSE, _PAUSE_PART * (now - switch.silent))
            for switch in self._switches.values()
            if switch.silent is not None
        ]
        pauses += [due - now for due, _ in self._retries.values()]
        return max(min(pauses), 0.0)


def _object(text: str) -> dict[str, Any]:
    """Decode a JSON object; return an empty one for anything else, as in a damaged record."""
    try:
        value = json.loads(text)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
