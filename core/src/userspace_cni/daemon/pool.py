"""Threads that serve requests: so many of one network at most, however many of it hang."""

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
    """Work that may take long."""

    #: The network that it is about.
    network: str
    #: When it is too late to begin, of the monotonic clock.
    until: float
    run: Callable[[], None]
    #: Is called instead, with the reason.
    refuse: Callable[[CniError], None]


class Pool:
    """Threads, each begun when there is no idle one. One thread calls all but the work itself.

    A network whose plugin hangs takes its own share and no other's: what is more of it waits here,
    without a thread.
    """

    def __init__(self, share: int) -> None:
        """Do the work of one network *share* at once."""
        self._share = share
        self._guard = Lock()
        self._running: Counter[str] = Counter()
        self._waiting: dict[str, deque[Job]] = {}
        self._threads: set[Thread] = set()
        self._idle = 0
        self._handed: SimpleQueue[Job | None] = SimpleQueue()
        self._ending = False

    def is_full(self, network: str) -> bool:
        """Tell whether work of *network* would have to wait."""
        with self._guard:
            return self._running[network] >= self._share

    def submit(self, job: Job) -> None:
        """Do *job*, or let it wait for those of its network.

        Raises:
            RuntimeError: there is no thread to be had; nothing is done.

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
        """Refuse what has waited too long; return when there may be more of it."""
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
                    f"{self._share} requests of network {job.network!r} are being served, as many "
                    "as may be, and none has ended in time for this one",
                    "see what they wait for, the IPAM plugin or the switch: the log names it",
                )
            )
        return next_time

    def drain(self) -> None:
        """Return once all is done, what waits included."""
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
        """Return what to do after a job of *network*; None for the end."""
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
