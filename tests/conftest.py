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
    from collections.abc import Iterator
    from pathlib import Path

    from lab.plugin import Mode, Plugin


# How fast a machine is proves nothing.
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
    """Who serves a test's requests."""
    served: Mode = request.param
    return served


_LEFT_OUT = pytest.StashKey[int]()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Drop what was parametrised with nothing: the real VPPs of a machine that has none."""
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
    """Return the executable under test, installed in a place of its own."""
    with lab_plugin.installed(tmp_path, served_by) as plugin:
        yield plugin
