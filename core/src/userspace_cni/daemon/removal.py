"""Removal of attachments that are no longer in use."""

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

#: Deadline of one removal.
_PATIENCE = 10.0  # seconds
_PAUSE_MAX = 300.0  # seconds between attempts if a removal keeps failing


class Removal:
    """Removes unused attachments of one host engine. It is used by a single thread."""

    def __init__(
        self,
        engine: str,
        runtime: Runtime,
        settings: DaemonSettings,
        recorded: Recorded,
        observer: Observer,
    ) -> None:
        """Remove attachments of *engine* that are in *recorded*, through *runtime*."""
        self._engine = engine
        self._runtime = runtime
        self._settings = settings
        self._recorded = recorded
        self._observer = observer
        #: Since when an attachment's namespace is gone.
        self._gone: dict[str, float] = {}
        #: When a failed removal may be retried, and the length of the pause before that.
        self._pauses: dict[str, tuple[float, float]] = {}
        #: Networks whose IPAM plugin did not answer in this round.
        self._hanging: set[str] = set()
        self._news = News()

    def look(self, stop: Event) -> None:
        """Examine all attachments once, until *stop* is set, and remove those that are not in use.

        These are attachments whose removal failed before, those of an ADD that died (its lock is
        free), and those whose namespace has been gone for longer than the grace period.
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
                continue  # this removal would wait for the same plugin
            if due > now or line.host in silent or line.state == "damaged":
                continue  # a damaged record is not reliable enough to remove anything
            if line.state != "attached":
                removed = self._remove(line, _has_state(line.state), now)
            elif gone and now - self._gone[line.id] >= self._settings.grace:
                removed = self._remove(line, _has_no_namespace, now)
            else:
                continue
            if not removed and line.state != "attached":
                silent.add(line.host)  # the next removal would wait for the same switch

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
            return True  # the failure concerns this attachment, not the whole switch
        if removed:
            logger.warning("attachment %s is removed: %s", line.id, _reason(line))
            self._observer.reconciled("remove", succeeded=True)
        return removed


def tell_failure(news: News, action: str, id_: str, error: BaseException) -> None:
    """Log that *action* failed for an attachment, unless the same was logged before."""
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
            return "its ADD died before it was complete"
        case "unknown":
            return "its DEL arrived while its switch was down"
        case _:
            return "an earlier removal failed"
