"""Reconciliation: restore attachments that a switch has lost, and remove dead ones.

Only attachments in the store are touched, and requests take precedence. An attachment that fails
does not delay others, and an engine that hangs does not delay other engines, because each engine
has two threads of its own.
"""

from __future__ import annotations

from threading import Event, Lock, Thread
from time import monotonic
from typing import TYPE_CHECKING, Any

from userspace_cni import registry
from userspace_cni.cni.errors import CniError
from userspace_cni.daemon.networks import Networks
from userspace_cni.daemon.recorded import News, Recorded
from userspace_cni.daemon.removal import Removal
from userspace_cni.daemon.watch import Watch
from userspace_cni.log import logger

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from userspace_cni.config.settings import DaemonSettings
    from userspace_cni.daemon.observer import Observer
    from userspace_cni.daemon.watch import State
    from userspace_cni.runtime import Runtime

#: How long to wait for all threads to end, in seconds.
_END = 5.0


class Reconciler:
    """Reconciles the attachments of a node, from :meth:`start` to :meth:`end`."""

    def __init__(
        self,
        runtime: Runtime,
        settings: DaemonSettings,
        observer: Observer,
        stop: Event,
        between: Callable[[], None],
    ) -> None:
        """Set up reconciliation.

        Args:
            runtime: restores and removes attachments, and supplies the store.
            settings: the daemon's settings, including the intervals.
            observer: notified of each action.
            stop: ends all threads when it is set.
            between: also called at the watch interval, in its own thread.

        """
        self._runtime = runtime
        self._settings = settings
        self._observer = observer
        self._stop = stop
        self._between = between
        self._recorded = Recorded(runtime.store)
        self._networks = Networks(settings.networks)
        self._watches: dict[str, Watch] = {}
        self._threads: list[Thread] = []
        self._guard = Lock()
        #: Names of engines that configured networks use but that cannot be loaded.
        self._unusable: set[str] = set()
        self._news = News()
        self._has_looked = False

    @property
    def has_looked(self) -> bool:
        """Whether the engines in use have been determined at least once."""
        return self._has_looked

    @property
    def dataplanes(self) -> dict[str, State]:
        """The state of each engine with attachments or networks: ``up`` if all switches answer."""
        states: dict[str, State] = dict.fromkeys(tuple(self._unusable), "unknown")
        return states | {name: watch.state for name, watch in tuple(self._watches.items())}

    def start(self) -> None:
        """Start the threads."""
        self._run("reconcile", self._look)
        self._run("queue", self._between)

    def notice(self, host: Mapping[str, Any]) -> None:
        """Watch the switch of a ``host`` part, to which an ADD has just attached.

        Errors are only logged, because the ADD has succeeded; the next round tries again.
        """
        try:
            watch = self._watch(registry.host_engine(host["engine"]).info.name)
            if not watch.knows(host):
                watch.wake()
        except Exception:  # noqa: BLE001  see the docstring
            logger.exception("a switch of engine %s cannot be watched yet", host["engine"])

    def wake(self) -> None:
        """Wake all waiting threads; may be called by a signal handler."""
        for watch in tuple(self._watches.values()):
            watch.wake()

    def end(self) -> None:
        """Wait until all threads have ended, but only for a limited time."""
        self.wake()
        deadline = monotonic() + _END
        for thread in self._threads:
            thread.join(max(deadline - monotonic(), 0.0))
            if thread.is_alive():
                logger.error("%s hangs and is abandoned", thread.name)

    def _look(self) -> None:
        """Determine the engines in use, and watch them."""
        configured: dict[str, list[dict[str, Any]]] = {}
        unusable = set()
        for host in self._networks.hosts():
            name = str(host.get("engine", ""))
            try:
                engine = registry.host_engine(name).info.name
            except CniError as error:
                unusable.add(name)
                if self._news.is_new(name, str(error)):
                    logger.warning("a network in %s: %s", self._settings.networks, error)
            else:
                configured.setdefault(engine, []).append(host)
        self._unusable = unusable
        engines = {line.engine for line in self._recorded.all()}
        for engine in engines | configured.keys() | self._watches.keys():
            watch = self._watch(engine)
            hosts = configured.get(engine, [])
            if hosts != watch.configured:
                watch.configured = hosts
                watch.wake()
        self._has_looked = True

    def _watch(self, engine: str) -> Watch:
        """Return the watch of *engine*; start it at the first call."""
        with self._guard:
            if engine not in self._watches:
                shared = self._runtime, self._settings, self._recorded, self._observer
                # Existing attachments may have changed while no daemon was running.
                watch = Watch(engine, *shared, compare=not self._has_looked)
                removal = Removal(engine, *shared)
                self._run(f"removing of engine {engine}", lambda: removal.look(self._stop))
                self._start(
                    f"watching the switches of engine {engine}", lambda: watch.run(self._stop)
                )
                # Add it last, so that a thread that could not be started is tried again. A second
                # Removal is harmless.
                self._watches[engine] = watch
            return self._watches[engine]

    def _run(self, name: str, step: Callable[[], None]) -> None:
        """Repeat *step* at the watch interval in a new thread."""

        def steps() -> None:
            news = News()
            while True:
                try:
                    step()
                except (Exception, SystemExit) as error:  # noqa: BLE001  try again the next time
                    if news.is_new("", str(error)):
                        logger.exception("%s failed", name)
                else:
                    news.forget("")
                if self._stop.wait(self._settings.watch_interval):
                    return

        self._start(name, steps)

    def _start(self, name: str, work: Callable[[], None]) -> None:
        # A daemon thread that hangs does not keep the process from exiting.
        thread = Thread(target=work, name=name, daemon=True)
        thread.start()
        self._threads.append(thread)
