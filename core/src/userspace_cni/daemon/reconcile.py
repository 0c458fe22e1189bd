"""What the daemon does unasked: attachments that a switch has lost are put back, dead ones removed.

Nothing is touched that the store does not know, and a request that works on an attachment comes
first. One attachment that fails never keeps the others from their turn, and one engine that hangs
none of the other engines: each has two threads of its own.
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

#: Seconds that the work of engines may take to end, in all.
_END = 5.0


class Reconciler:
    """Looks after the attachments of a node, from :meth:`start` to :meth:`end`."""

    def __init__(
        self,
        runtime: Runtime,
        settings: DaemonSettings,
        observer: Observer,
        stop: Event,
        between: Callable[[], None],
    ) -> None:
        """Look after those of *runtime*, as often as *settings* say, until *stop* is set.

        *between* is called as often.
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
        #: Engines of configured networks that cannot be used.
        self._unusable: set[str] = set()
        self._news = News()
        self._has_looked = False

    @property
    def has_looked(self) -> bool:
        """Whether it is known which engines there are to look after."""
        return self._has_looked

    @property
    def dataplanes(self) -> dict[str, State]:
        """By the name of each engine with attachments or networks, what is known of its switches.

        ``up`` where all of them answer.
        """
        states: dict[str, State] = dict.fromkeys(tuple(self._unusable), "unknown")
        return states | {name: watch.state for name, watch in tuple(self._watches.items())}

    def start(self) -> None:
        """Begin."""
        self._run("reconcile", self._look)
        self._run("queue", self._between)

    def notice(self, host: Mapping[str, Any]) -> None:
        """Learn that a port has been made by a ``host`` part; its switch is watched from now on.

        If no thread is to be had, the next look begins to watch it: the ADD has succeeded.
        """
        try:
            watch = self._watch(registry.host_engine(host["engine"]).info.name)
            if not watch.knows(host):
                watch.wake()
        except Exception:  # noqa: BLE001  see above
            logger.exception("a switch of engine %s cannot be watched yet", host["engine"])

    def wake(self) -> None:
        """Let those who wait see that they are to stop; may be called by a signal."""
        for watch in tuple(self._watches.values()):
            watch.wake()

    def end(self) -> None:
        """Wait until all has ended, or as long as that may take."""
        self.wake()
        deadline = monotonic() + _END
        for thread in self._threads:
            thread.join(max(deadline - monotonic(), 0.0))
            if thread.is_alive():
                logger.error("%s hangs, and is left to itself", thread.name)

    def _look(self) -> None:
        """Find out which engines there are to look after."""
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
        """Return what watches the switches of *engine*; at first, let it begin."""
        with self._guard:
            if engine not in self._watches:
                shared = self._runtime, self._settings, self._recorded, self._observer
                # What is there already may have changed while no daemon ran.
                watch = Watch(engine, *shared, compare=not self._has_looked)
                removal = Removal(engine, *shared)
                self._run(f"removing of engine {engine}", lambda: removal.look(self._stop))
                self._start(
                    f"watching the switches of engine {engine}", lambda: watch.run(self._stop)
                )
                # Last: without its threads, it is tried again. A second Removal does no harm.
                self._watches[engine] = watch
            return self._watches[engine]

    def _run(self, name: str, step: Callable[[], None]) -> None:
        """Do *step* again and again, in a thread of its own."""

        def steps() -> None:
            news = News()
            while True:
                try:
                    step()
                except (Exception, SystemExit) as error:  # noqa: BLE001  the next time may go better
                    if news.is_new("", str(error)):
                        logger.exception("%s failed", name)
                else:
                    news.forget("")
                if self._stop.wait(self._settings.watch_interval):
                    return

        self._start(name, steps)

    def _start(self, name: str, work: Callable[[], None]) -> None:
        # A thread that hangs does not keep the process from its end.
        thread = Thread(target=work, name=name, daemon=True)
        thread.start()
        self._threads.append(thread)
