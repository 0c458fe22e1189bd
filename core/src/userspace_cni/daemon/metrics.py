"""Prometheus metrics of the daemon. This module is imported only if metrics are served."""

from __future__ import annotations

import platform
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from importlib.metadata import version
from time import perf_counter
from typing import TYPE_CHECKING

import prometheus_client as prometheus
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from userspace_cni import registry
from userspace_cni.daemon.observer import Observer, Served
from userspace_cni.log import logger

if TYPE_CHECKING:
    from userspace_cni.store import Store

CONTENT_TYPE = prometheus.CONTENT_TYPE_LATEST
_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)


class Metrics(Observer):
    """Collects metrics in a private registry."""

    def __init__(self) -> None:
        """Create all metrics with the value 0."""
        self._registry = prometheus.CollectorRegistry()
        #: Per thread: seconds of the steps nested in the current one, such as the wait for IPAM in
        #: the host engine. They are not counted twice.
        self._local = threading.local()
        prometheus.ProcessCollector(registry=self._registry)
        self._requests = prometheus.Counter(
            "userspace_cni_requests",
            "Requests by command, host engine and CNI error code (0: success)",
            ("command", "engine", "code"),
            registry=self._registry,
        )
        self._seconds = prometheus.Histogram(
            "userspace_cni_request_seconds",
            "Duration of requests",
            ("command",),
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._phases = prometheus.Histogram(
            "userspace_cni_phase_seconds",
            "Duration of the steps of requests: store, ipam, host, handover, container",
            ("phase",),
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._reconciled = prometheus.Counter(
            "userspace_cni_reconciled",
            "Attachments that were restored or removed unasked",
            ("action", "outcome"),
            registry=self._registry,
        )
        self._replayed = prometheus.Counter(
            "userspace_cni_queued_deletions",
            "DELs from the queue: done, failed, bad or later",
            ("outcome",),
            registry=self._registry,
        )
        self._registry.register(_Build())

    def count_attachments(self, store: Store) -> None:
        """Add the number of attachments in *store* to the metrics."""
        self._registry.register(_Attachments(store))

    def tell_dataplanes(self, states: Callable[[], Mapping[str, str]]) -> None:
        """Add the state of each engine's switches to the metrics, read from *states*."""
        self._registry.register(_Dataplanes(states))

    def text(self) -> bytes:
        """Return all metrics in the Prometheus text format."""
        return prometheus.generate_latest(self._registry)

    def phase(self, name: str) -> AbstractContextManager[object]:
        """See :meth:`.Observer.phase`."""
        return _Timed(self._phases.labels(name), self._local)

    def request(self, served: Served) -> None:
        """See :meth:`.Observer.request`."""
        self._requests.labels(served.command, served.engine, served.code).inc()
        self._seconds.labels(served.command).observe(served.seconds)

    def reconciled(self, action: str, *, succeeded: bool) -> None:
        """See :meth:`.Observer.reconciled`."""
        self._reconciled.labels(action, "success" if succeeded else "failure").inc()

    def replayed(self, outcome: str) -> None:
        """See :meth:`.Observer.replayed`."""
        self._replayed.labels(outcome).inc()


class _Timed:
    """Times a step; a class, because a generator-based context manager is several times slower."""

    __slots__ = ("_around", "_histogram", "_local", "_start")

    def __init__(self, histogram: prometheus.Histogram, local: threading.local) -> None:
        self._histogram = histogram
        self._local = local

    def __enter__(self) -> None:
        self._around = getattr(self._local, "inside", 0.0)
        self._local.inside = 0.0
        self._start = perf_counter()

    def __exit__(self, *_: object) -> None:
        seconds = perf_counter() - self._start
        self._histogram.observe(seconds - self._local.inside)
        self._local.inside = self._around + seconds


class _Build(Collector):
    """Collects the versions of the daemon and the engines as labels, with the value 1."""

    def collect(self) -> Iterator[GaugeMetricFamily]:
        labels = {"version": version("userspace-cni"), "python": platform.python_version()}
        build = GaugeMetricFamily(
            "userspace_cni_build_info", "The daemon's version, and Python's", labels=[*labels]
        )
        build.add_metric([*labels.values()], 1)
        yield build
        engines = GaugeMetricFamily(
            "userspace_cni_engine_info",
            "Installed host engines, and their packages' versions",
            labels=["engine", "version"],
        )
        for name, its_version in registry.host_versions().items():
            engines.add_metric([name, its_version], 1)
        yield engines


class _Dataplanes(Collector):
    """Collects the state of the switches when metrics are read."""

    def __init__(self, states: Callable[[], Mapping[str, str]]) -> None:
        self._states = states

    def collect(self) -> Iterator[GaugeMetricFamily]:
        family = GaugeMetricFamily(
            "userspace_cni_dataplane_up",
            "1 while all switches of a host engine that is in use are known to answer",
            labels=["engine"],
        )
        for engine, state in self._states().items():
            family.add_metric([engine], state == "up")
        yield family


class _Attachments(Collector):
    """Counts the attachments in the store when metrics are read."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def collect(self) -> Iterator[GaugeMetricFamily]:
        family = GaugeMetricFamily(
            "userspace_cni_attachments",
            "Recorded attachments; adding and deleting are on the way",
            labels=("network", "engine", "state"),
        )
        try:
            outlines = self._store.outlines()
        except Exception as error:  # noqa: BLE001  the other metrics must still be served
            logger.warning("cannot count attachments: %s", error)
            outlines = []
        numbers = Counter((line.network, line.engine, line.state) for line in outlines)
        for labels, number in numbers.items():
            family.add_metric(labels, number)
        yield family
