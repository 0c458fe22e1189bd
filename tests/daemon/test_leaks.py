"""A daemon that has served many requests uses no more resources than a new one."""

from __future__ import annotations

import json
import os
import socket
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from typing import TYPE_CHECKING, Any

import pytest

from lab.conf import host_local
from lab.daemon_lab import connected, daemon_of, environ, exchanged, queued, rss, started
from lab.node import Node, poll
from userspace_cni import frames

if TYPE_CHECKING:
    from collections.abc import Iterator

    from core.example_lab import ExampleLab
    from lab.plugin import Outcome

_AT_ONCE = 4
_WARM_UP, _LIVES = 20, 80
_GROWTH = 3 << 20  # bytes: what an allocator keeps, not what 80 lives would leave of 50 KiB each

_ALLOCATING = 'echo \'{"cniVersion": "1.1.0", "ips": [{"address": "10.66.0.9/24"}]}\''

Call = Callable[[str, Any, str], "Outcome"]


@pytest.fixture
def node(lab: ExampleLab) -> Iterator[Node]:
    with Node() as node:
        yield node
        daemon_of(lab).stop()


def _caller(lab: ExampleLab, netns: str) -> Call:
    path = daemon_of(lab).socket

    def call(command: str, config: Any, container: str) -> Outcome:
        variables = environ(lab, command, container, CNI_NETNS=netns, CNI_IFNAME=container)
        return exchanged(path, frames.dump_request(variables, json.dumps(config).encode()))

    return call


def _live(call: Call, config: dict[str, Any], broken: dict[str, Any], container: str) -> None:
    """Run one attachment from ADD to DEL, with failing requests in between."""
    if config["cniVersion"] == "1.1.0":
        call("STATUS", config, container).succeeded()
    result = call("ADD", config, container).result
    previous = config | {"prevResult": result}
    call("CHECK", previous, container).succeeded()
    assert call("ADD", config, container).code == 103
    wrong = previous | {"prevResult": {**result, "interfaces": []}}
    assert call("CHECK", wrong, container).code
    call("DEL", config, container).succeeded()
    call("DEL", config, container).succeeded()
    assert call("ADD", broken, container).code == 105
    assert call("CHECK", previous, container).code
    assert call("NONSENSE", config, container).code == 4


def _measured(pid: int) -> tuple[set[str], int]:
    """Return the open files of a process and its number of threads."""
    directory = f"/proc/{pid}/fd"
    found = set()
    for number in os.listdir(directory):
        with suppress(FileNotFoundError):  # closed since
            found.add(f"{number}: {os.readlink(f'{directory}/{number}')}")
    return found, len(os.listdir(f"/proc/{pid}/task"))


def _stays_as_it_is(pid: int, live: Callable[[int], None]) -> None:
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        list(pool.map(live, range(_WARM_UP)))
        before, memory = _measured(pid), rss(pid)
        list(pool.map(live, range(_WARM_UP, _WARM_UP + _LIVES)))

    def is_as_before() -> bool:
        opened, threads = _measured(pid)
        # Threads that serve requests are started on demand.
        return len(opened) <= len(before[0]) and threads <= before[1] + _AT_ONCE

    try:
        poll(is_as_before, "what it has open")
    except TimeoutError:
        assert _measured(pid) == before
    assert rss(pid) - memory < _GROWTH


def test_the_example_engine_leaks_nothing(lab: ExampleLab) -> None:
    with closing(socket.socket()) as end:
        end.bind(("127.0.0.1", 0))
        port = end.getsockname()[1]
    daemon = started(lab, f'workers = {_AT_ONCE}\nwatch_interval = 0.05\nhttp = "127.0.0.1:{port}"')
    call = _caller(lab, lab.netns)
    config = lab.conf(ipam=lab.script(_ALLOCATING))
    broken = config | {"ipam": lab.script("exit 1", "broken")}

    def live(number: int) -> None:
        container = f"c{number}"
        _live(call, config, broken, container)
        with closing(connected(daemon.socket)) as end:
            end.sendall(b"ucni garbage")
        queued(lab, frames.dump_request(environ(lab, "DEL", container), b"{}"), number)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=20) as answer:
            assert answer.read()

    _stays_as_it_is(daemon.pid, live)
    poll(lambda: not any((lab.plugin.state_dir / "queue").iterdir()), "the queue is done")
    lab.assert_clean()


def test_the_linux_engine_leaks_nothing(lab: ExampleLab, node: Node) -> None:
    daemon = daemon_of(lab)
    lab.plugin.settings(
        f'[daemon]\nsocket = "{daemon.socket}"\nworkers = {_AT_ONCE}\nwatch_interval = 0.05\n'
    )
    lab.plugin.serve(node)
    call = _caller(lab, node.netns("c1"))
    config = {
        "cniVersion": "1.0.0",
        "name": "blue",
        "type": "userspace",
        "host": {
            "engine": "linux",
            "iftype": "veth",
            "bridge": {"bridgeName": "blue0", "gateway": True},
        },
        "ipam": host_local("10.66.0.0/16", lab.directory / "leases"),
    }
    broken = config | {"ipam": lab.script("exit 1", "broken")}
    _stays_as_it_is(daemon.pid, lambda number: _live(call, config, broken, f"e{number}"))
    assert (node.veths(), "blue0" in node.links()) == ([], False)
    assert (lab.records(), lab.leases(), lab.locks()) == ([], [], [])
