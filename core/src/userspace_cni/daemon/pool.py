"""Thread pool with a limit per network, so that one network that hangs cannot use all threads."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from math import inf
from queue import SimpleQueue
from threading import Lock, Thread, current_thread

from attrs import define

from userspace_cni.cni.errors import CniError, Code


@define(eq=False)
class Job:
    """A unit of work."""

    #: Name of the network that the work belongs to.
    network: str
    #: Latest time to begin, on the monotonic clock.
    until: float
    run: Callable[[], None]
    #: Called with the reason if the job is not run.
    refuse: Callable[[CniError], None]


class Pool:
    """A pool that starts a thread when none is idle. A single thread must call its methods.

    Each network has a share of threads. Further jobs of a network wait here without a thread, so a
    plugin that hangs does not affect other networks.
    """

    def __init__(self, share: int) -> None:
        """Run at most *share* jobs of a network at the same time."""
        self._share = share
        self._guard = Lock()
        self._running: Counter[str] = Counter()
        self._waiting: dict[str, deque[Job]] = {}
        self._threads: set[Thread] = set()
        self._idle = 0
        self._handed: SimpleQueue[Job | None] = SimpleQueue()
        self._ending = False

    def is_full(self, network: str) -> bool:
        """Return whether a job of *network* would have to wait."""
        with self._guard:
            return self._running[network] >= self._share

    def submit(self, job: Job) -> None:
        """Run *job*, or let it wait for other jobs of its network.

        Raises:
            RuntimeError: if no thread can be started; the job is not run.

        """
        with self._guard:
            if self._running[job.network] >= self._share:
                self._waiting.setdefault(job.network, deque()).append(job)
                return
            self._running[job.network] += 1
            if self._idle:
                self._idle -= 1
                self._handed.put(job)
                return
            thread = Thread(target=self._work, args=(job,), name="request")
            self._threads.add(thread)
            try:
                thread.start()
            except RuntimeError:
                self._threads.discard(thread)
                self._forget(job.network)
                raise

    def refuse_late(self, now: float) -> float:
        """Refuse jobs that have waited too long.

        Args:
            now: the time of the monotonic clock.

        Returns:
            When to call this again; infinity if no job is waiting.

        """
        late: list[Job] = []
        with self._guard:
            for network, jobs in tuple(self._waiting.items()):
                late += (job for job in jobs if job.until <= now)
                left = deque(job for job in jobs if job.until > now)
                if left:
                    self._waiting[network] = left
                else:
                    del self._waiting[network]
            next_time = min(
                (job.until for jobs in self._waiting.values() for job in jobs), default=inf
            )
        for job in late:
            job.refuse(
                CniError(
                    Code.TRY_AGAIN_LATER,
                    f"{self._share} requests of network {job.network!r} are being served, which is "
                    "the maximum, and none has ended in time for this one",
                    "see the log for what they wait for: the IPAM plugin or the switch",
                )
            )
        return next_time

    def drain(self) -> None:
        """Wait until all jobs are done, including waiting ones."""
        with self._guard:
            self._ending = True
            for _ in range(self._idle):
                self._handed.put(None)
            threads = tuple(self._threads)
        for thread in threads:
            thread.join()

    def _work(self, job: Job | None) -> None:
        while job is not None:
            job.run()
            job = self._next(job.network)

    def _next(self, network: str) -> Job | None:
        """Return the next job for a thread that has finished one of *network*; None to end it."""
        with self._guard:
            if jobs := self._waiting.get(network):
                job = jobs.popleft()
                if not jobs:
                    del self._waiting[network]
                return job
            self._forget(network)
            if self._ending or self._idle >= self._share:
                self._threads.discard(current_thread())
                return None
            self._idle += 1
        return self._handed.get()

    def _forget(self, network: str) -> None:
        self._running[network] -= 1
        if not self._running[network]:
            del self._running[network]
