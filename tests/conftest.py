"""Fixtures for every test.

A test of a request (fixture ``served_by``) can be served in three ways: "direct" in this process,
"process" by the executable, and "daemon". It runs in the first way that it allows. Markers:

* ``own_process``: not in this process, because the test needs one that can be killed, has standard
  streams or namespaces of its own, and the like.
* ``one_process``: not by the daemon.
* ``parity``: in every way that it allows, on every commit. The option ``--all-ways`` does so for
  all tests.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

from lab import plugin as lab_plugin

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator
    from pathlib import Path

    from lab.plugin import Mode, Plugin


# Deadlines are disabled, because machines differ in speed.
settings.register_profile("tests", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tests")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--all-ways", action="store_true", help="serve each test's requests in every way it allows"
    )


def pytest_configure(config: pytest.Config) -> None:
    for line in (
        "one_process(reason): not served by the daemon as well",
        "own_process(reason): not served in the process of the tests",
        "parity: served in every way, always",
    ):
        config.addinivalue_line("markers", line)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "served_by" not in metafunc.fixturenames:
        return
    marked = metafunc.definition.get_closest_marker
    ways = [
        way
        for way, refusal in (("direct", "own_process"), ("process", ""), ("daemon", "one_process"))
        if not (refusal and marked(refusal))
    ]
    if not (marked("parity") or metafunc.config.getoption("--all-ways")):
        del ways[1:]
    metafunc.parametrize("served_by", ways, indirect=True, scope="session")


@pytest.fixture(scope="session")
def served_by(request: pytest.FixtureRequest) -> Mode:
    """The way in which a test's requests are served."""
    served: Mode = request.param
    return served


#: Files of tests that take long, the longest first.
_SLOWEST = [
    "tests/agent/test_handed_over.py",
    "tests/ovs/test_dpdk.py",
    "tests/core/test_runtime.py",
    "tests/ovs/test_restarts.py",
    "tests/ovs/test_failures.py",
    "tests/linux/test_vlan.py",
    "tests/ovs/test_contract.py",
    "tests/ovs/test_restore.py",
    "tests/e2e/test_conformance.py",
    "tests/e2e/test_parity.py",
    "tests/e2e/test_engines_optional.py",
    "tests/e2e/test_containerd.py",
    "tests/e2e/test_libcni.py",
    "tests/e2e/test_podman.py",
    "tests/e2e/test_docs.py",
    "tests/e2e/test_dpdk_containers.py",
    "tests/ovs/test_kernel.py",
    "tests/core/test_stdout.py",
    "tests/core/test_install.py",
    "tests/core/test_killed_in_ipam.py",
    "tests/core/test_ipam.py",
    "tests/daemon/test_daemon.py",
    "tests/daemon/test_leaks.py",
    "tests/daemon/test_crash.py",
    "tests/daemon/test_protocol.py",
    "tests/daemon/test_reconcile.py",
    "tests/daemon/test_watch.py",
    "tests/vpp/test_failures.py",
    "tests/core/test_bad_input.py",
    "tests/core/test_registry.py",
    "tests/shim/test_daemon.py",
]


def _rank(item: pytest.Item) -> int:
    name = item.nodeid.partition("::")[0]
    return _SLOWEST.index(name) if name in _SLOWEST else len(_SLOWEST)


@pytest.hookimpl(wrapper=True)
def pytest_report_to_serializable() -> Generator[None, object, object]:
    """Escape what a worker cannot send to its controller: surrogates, which the fuzz tests make."""
    return _escaped((yield))


def _escaped(data: object) -> object:
    if isinstance(data, str):
        return data.encode(errors="backslashreplace").decode()
    if isinstance(data, dict):
        return {_escaped(key): _escaped(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return type(data)(map(_escaped, data))
    return data


_LEFT_OUT = pytest.StashKey[int]()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Sort slow tests first, so that no worker is left with one at the end.

    Drop tests without parameters: those with a real VPP on a machine without one.
    """
    items.sort(key=_rank)
    empty = [item for item in items if "NOTSET" in item.name]
    if empty:
        config.stash[_LEFT_OUT] = len(empty)
        config.hook.pytest_deselected(items=empty)
        items[:] = [item for item in items if item not in empty]


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    if left_out := config.stash.get(_LEFT_OUT, 0):
        terminalreporter.write_line(
            f"{left_out} tests are left out: they need a real VPP, and there is no program vpp "
            "(in PATH, or in the directory that VPP_PREFIX names)"
        )


@pytest.fixture
def plugin(tmp_path: Path, served_by: Mode) -> Iterator[Plugin]:
    """Return the plugin under test, installed in a private directory."""
    with lab_plugin.installed(tmp_path, served_by) as plugin:
        yield plugin
