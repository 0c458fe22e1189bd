"""Fixtures for every test.

What executes the plugin runs twice: served in one process, and by the daemon. The marker
``one_process`` says why a test makes sense in one process alone.
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


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "one_process(reason): not served by the daemon as well")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "served_by" in metafunc.fixturenames:
        alone = metafunc.definition.get_closest_marker("one_process")
        modes = ["process"] if alone else ["process", "daemon"]
        metafunc.parametrize("served_by", modes, indirect=True, scope="session")


@pytest.fixture(scope="session")
def served_by(request: pytest.FixtureRequest) -> Mode:
    """Who serves the executable's requests."""
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
