"""The sections of the benchmark: one function each, which returns rows of figures."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median

from attrs import field, frozen

from bench.contender import REFERENCE_PLUGINS, Contender, Execution, measure
from bench.figures import Row, milliseconds, row
from bench.node import Served, namespaces

PHASES = ("store", "ipam", "host", "container", "handover")
AT_ONCE = 32
#: How many ADDs are compared at the beginning and at the end.
_WINDOW = 20

Times = dict[tuple[str, str], list[float]]


@frozen(kw_only=True)
class Bench:
    """The contenders and the extent of the measurement."""

    go: Contender
    daemon: Contender
    one_process: Contender
    peers: Sequence[Contender]
    served: Served
    rounds: int
    attachments: int
    idle: float
    #: How many requests of each contender failed in :func:`at_once`.
    failures: dict[str, int] = field(factory=dict)

    @property
    def everybody(self) -> list[Contender]:
        return [self.go, self.daemon, self.one_process, *self.peers]


def prepare(bench: Bench) -> None:
    """Warm up caches, and give each contender its permanent attachment."""
    for number, contender in enumerate(bench.everybody):
        with namespaces([f"first-{number}"]):
            contender.call("ADD", "first", f"first-{number}")
            contender.call("DEL", "first", f"first-{number}")
    for number, contender in enumerate(bench.everybody):
        contender.call("ADD", "standing", f"standing-{number}")


def calls(bench: Bench) -> list[Row]:
    """Measure ADD and DEL one after the other, each in a new network namespace."""
    times: Times = {}
    field = bench.everybody
    names = [f"calls-{number}" for number in range(bench.rounds * len(field))]
    with namespaces(names):
        for turn in range(bench.rounds):
            for contender in random.sample(field, len(field)):
                namespace = names.pop()
                for command in ("ADD", "DEL"):
                    took = contender.call(command, f"calls-{turn}", namespace)
                    times.setdefault((command, contender.name), []).append(took)
    return [
        milliseconds(
            command, contender.name, times[command, contender.name], times[command, bench.go.name]
        )
        for command in ("ADD", "DEL")
        for contender in field
    ]


def start(bench: Bench) -> list[Row]:
    """Measure calls that do nothing: process start and the round trip to the daemon."""
    nothing = {"cniVersion": "1.0.0"}
    network = {key: value for key, value in bench.daemon.network.items() if key != "ipam"}
    field = [
        ("VERSION", Contender("loopback (Go)", REFERENCE_PLUGINS / "loopback", nothing)),
        ("VERSION", Contender("shim", bench.served.executable, nothing)),
        (
            "STATUS",
            Contender(
                "shim and daemon", bench.served.executable, network | {"cniVersion": "1.1.0"}
            ),
        ),
        ("nothing", Contender("/bin/true", Path("/bin/true"), nothing)),
    ]
    times: list[list[float]] = [[] for _ in field]
    for _ in range(bench.rounds * 10):
        for place in random.sample(range(len(field)), len(field)):
            command, contender = field[place]
            times[place].append(contender.call(command))
    return [
        milliseconds(command, contender.name, times[place], times[0])
        for place, (command, contender) in enumerate(field)
    ]


def phases(bench: Bench) -> list[Row]:
    """Break an ADD down by the daemon's metrics, relative to the whole ADD of the Go plugin."""
    whole: list[float] = []
    parts: dict[str, list[float]] = {}
    names = [f"phases-{number}" for number in range(2 * bench.rounds)]
    with namespaces(names):
        for turn in range(bench.rounds):
            for contender in random.sample((bench.go, bench.daemon), 2):
                namespace, container = names.pop(), f"phases-{turn}"
                before = bench.served.metrics()
                took = contender.call("ADD", container, namespace)
                if contender is bench.go:
                    whole.append(took)
                else:
                    for name, seconds in _parts(before, bench.served.metrics(), took).items():
                        parts.setdefault(name, []).append(seconds)
                contender.call("DEL", container, namespace)
    return [
        milliseconds("ADD", bench.go.name, whole, whole),
        *(milliseconds(name, bench.daemon.name, took, whole) for name, took in parts.items()),
    ]


def _parts(
    before: Mapping[str, float], after: Mapping[str, float], took: float
) -> dict[str, float]:
    """Return the parts of one ADD, from the metrics before and after it."""

    def difference(name: str) -> float:
        return after.get(name, 0.0) - before.get(name, 0.0)

    if difference("userspace_cni_request_seconds_count ADD") != 1:
        raise SystemExit("the daemon has served another ADD than the one that is measured")
    request = difference("userspace_cni_request_seconds_sum ADD")
    steps = {name: difference(f"userspace_cni_phase_seconds_sum {name}") for name in PHASES}
    return {
        "ADD": took,
        "shim and socket": took - request,
        "request": request,
        **steps,
        "own": request - sum(steps.values()),
    }


def at_once(bench: Bench) -> list[Row]:
    """Measure concurrent ADDs, each in its own network namespace, and then their DELs."""
    rates: Times = {}
    field = [bench.go, bench.daemon, *bench.peers]
    names = [f"at-once-{number}" for number in range(AT_ONCE)]
    with namespaces(names):
        for turn in range(max(2, bench.rounds // 5)):
            for contender in random.sample(field, len(field)):
                for command in ("ADD", "DEL"):
                    requests = [
                        contender.request(command, f"at-once-{turn}-{name}", name) for name in names
                    ]
                    took = measure(requests)
                    rates.setdefault((command, contender.name), []).append(AT_ONCE / took)
                    _count_failures(bench, contender, command, requests)
    return [
        row(command, contender.name, "1/s", rates[command, contender.name],
            rates[command, bench.go.name])
        for command in ("ADD", "DEL")
        for contender in field
    ]  # fmt: skip


def _count_failures(
    bench: Bench, contender: Contender, command: str, requests: Sequence[Execution]
) -> None:
    failed = [one for one in requests if one.status]
    bench.failures[contender.name] = bench.failures.get(contender.name, 0) + len(failed)
    for one in failed:
        print(f"{contender.name} {command}: {one.output}")


def attachments(bench: Bench) -> list[Row]:
    """Fill a bridge, compare the last ADDs with the first, and measure the idle daemon."""
    field = (bench.go, bench.daemon)
    adds: dict[str, list[float]] = {contender.name: [] for contender in field}
    deletions: dict[str, list[float]] = {contender.name: [] for contender in field}
    memory = {f"{what}, before": [mib] for what, mib in bench.served.memory().items()}
    names = [f"many-{number}" for number in range(len(field) * bench.attachments)]
    with namespaces(names):
        own = {field[0].name: names[::2], field[1].name: names[1::2]}
        for number in range(bench.attachments):
            for contender in random.sample(field, len(field)):
                took = contender.call("ADD", f"many-{number}", own[contender.name][number])
                adds[contender.name].append(took)
        memory |= {what: [mib] for what, mib in bench.served.memory().items()}
        begin, used = time.perf_counter(), bench.served.cpu()
        time.sleep(bench.idle)
        idle = (bench.served.cpu() - used) / (time.perf_counter() - begin) * 100
        for number in range(_window(bench)):
            for contender in random.sample(field, len(field)):
                took = contender.call("DEL", f"many-{number}", own[contender.name][number])
                deletions[contender.name].append(took)
    return [
        *_compared(bench, adds, deletions),
        *(row(what, "daemon", "MiB", value) for what, value in memory.items()),
        row("idle", "daemon", "% CPU", [idle]),
    ]


def _window(bench: Bench) -> int:
    return min(_WINDOW, bench.attachments // 2)


def _compared(
    bench: Bench, adds: Mapping[str, list[float]], deletions: Mapping[str, list[float]]
) -> list[Row]:
    first = {name: took[: _window(bench)] for name, took in adds.items()}
    last = {name: took[-_window(bench) :] for name, took in adds.items()}
    growth = {name: [median(last[name]) / median(first[name])] for name in adds}
    named = {"first ADDs": first, "last ADDs": last, "DELs then": deletions}
    return [
        *(
            milliseconds(what, name, took[name], took[bench.go.name])
            for what, took in named.items()
            for name in adds
        ),
        *(row("last by first", name, "", growth[name], growth[bench.go.name]) for name in adds),
    ]


#: Title and function of each section by name, in the order of execution.
SECTIONS: Mapping[str, tuple[str, Callable[[Bench], list[Row]]]] = {
    "calls": ("ADD and DEL of a veth into a bridge, addresses by host-local", calls),
    "start": ("A call that does nothing; ratio to the first", start),
    "phases": ("Where the daemon's ADD spends its time; ratio to Go's whole ADD", phases),
    "at_once": (f"{AT_ONCE} at once, requests per second", at_once),
    "attachments": ("Many attachments", attachments),
}
