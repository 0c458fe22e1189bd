"""Removes attachments that cannot be of use to anybody any more."""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING

from userspace_cni import deadline, netns
from userspace_cni.cni.errors import CniError, Code, internal_error
from userspace_cni.daemon.recorded import News, Recorded
from userspace_cni.log import logger

if TYPE_CHECKING:
    from collections.abc import Callable
    from threading import Event

    from userspace_cni.config.settings import DaemonSettings
    from userspace_cni.daemon.observer import Observer
    from userspace_cni.runtime import Runtime
    from userspace_cni.store import Outline, Record

#: For one removal.
_PATIENCE = 10.0  # seconds
_PAUSE_MAX = 300.0  # seconds between attempts to remove what fails again and again


class Removal:
    """Removes those of one host engine. One thread calls it."""

    def __init__(
        self,
        engine: str,
        runtime: Runtime,
        settings: DaemonSettings,
        recorded: Recorded,
        observer: Observer,
    ) -> None:
        """Let *runtime* remove what is *recorded* of *engine*."""
        self._engine = engine
        self._runtime = runtime
        self._settings = settings
        self._recorded = recorded
        self._observer = observer
        #: Since when a namespace is gone.
        self._gone: dict[str, float] = {}
        #: When the removal of an attachment may be tried again, and how long it was waited for.
        self._pauses: dict[str, tuple[float, float]] = {}
        #: Networks whose IPAM plugin did not answer in this look.
        self._hanging: set[str] = set()
        self._news = News()

    def look(self, stop: Event) -> None:
        """Look once.

        Removed is what could not be removed before; what an ADD left that died, for its lock is
        free; what has had no namespace for longer than the grace.
        """
        now = monotonic()
        lines = self._recorded.of(self._engine)
        known = {line.id for line in lines}
        self._news.keep(known)
        for memory in (self._gone, self._pauses):
            for id_ in memory.keys() - known:
                del memory[id_]
        silent: set[str] = set()
        self._hanging.clear()
        for line in lines:
            if stop.is_set():
                return
            gone = self._is_gone(line, now)
            due, _ = self._pauses.get(line.id, (now, 0.0))
            if line.network in self._hanging:
                continue  # the next would wait for the same plugin
            if due > now or line.host in silent or line.state == "damaged":
                continue  # of a damaged record nothing can be taken for granted
            if line.state != "attached":
                removed = self._remove(line, _has_state(line.state), now)
            elif gone and now - self._gone[line.id] >= self._settings.grace:
                removed = self._remove(line, _has_no_namespace, now)
            else:
                continue
            if not removed and line.state != "attached":
                silent.add(line.host)  # the next would wait for the same answer

    def _is_gone(self, line: Outline, now: float) -> bool:
        if not netns.is_gone(line.netns, line.namespace):
            self._gone.pop(line.id, None)
            return False
        self._gone.setdefault(line.id, now)
        return True

    def _remove(self, line: Outline, still: Callable[[Record], bool], now: float) -> bool:
        try:
            with deadline.within(_PATIENCE):
                removed = self._runtime.remove(line.id, still)
        except (Exception, SystemExit) as error:  # noqa: BLE001  go on with the others
            if isinstance(error, CniError) and error.code == Code.TRY_AGAIN_LATER:
                self._hanging.add(line.network)
            _, pause = self._pauses.get(line.id, (now, 0.0))
            pause = min(max(2 * pause, self._settings.watch_interval), _PAUSE_MAX)
            self._pauses[line.id] = now + pause, pause
            self._observer.reconciled("remove", succeeded=False)
            tell_failure(self._news, "remove", line.id, error)
            return True  # the switch has answered, this attachment is the matter
        if removed:
            logger.warning("attachment %s is removed: %s", line.id, _reason(line))
            self._observer.reconciled("remove", succeeded=True)
        return removed


def tell_failure(news: News, action: str, id_: str, error: BaseException) -> None:
    """Log that *action* has failed on an attachment, unless that is no *news*."""
    told = error if isinstance(error, CniError) else internal_error(error)
    if news.is_new(id_, str(told)):
        unexpected = None if isinstance(error, CniError) else error
        logger.error("cannot %s attachment %s: %s", action, id_, told, exc_info=unexpected)


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
