"""Logging to standard error and to a file, never to standard output."""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from pathlib import Path

    from core.example_lab import ExampleLab

pytestmark = pytest.mark.parity


def _queue_a_del(lab: ExampleLab, **keys: Any) -> str:
    """Do something that logs a warning; return standard error and check that stdout is empty."""
    conf = lab.conf(**keys)
    lab.add(conf)
    lab.switch_down()
    outcome = lab.call("DEL", conf)
    outcome.succeeded()
    lab.switch_up()
    return outcome.err


def test_a_record_tells_of_whom_it_is(lab: ExampleLab) -> None:
    err = _queue_a_del(lab)
    assert "WARNING DEL network=net container=c1 ifname=eth0: removal postponed" in err


def test_the_networks_log_file_gets_the_same(lab: ExampleLab) -> None:
    path = lab.directory / "network.log"
    err = _queue_a_del(lab, logFile=str(path))
    assert path.read_text() == err != ""
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


@pytest.mark.parametrize(("level", "lines"), [("error", 0), ("DEBUG", 1)])
def test_the_level_decides(lab: ExampleLab, level: str, lines: int) -> None:
    err = _queue_a_del(lab, logLevel=level)
    assert err.count("removal postponed") == lines


def test_the_nodes_log_file_is_appended_to(lab: ExampleLab) -> None:
    path = lab.directory / "node.log"
    config = lab.directory / "config.toml"
    config.write_text(f'log_file = "{path}"\nlog_level = "warning"\n{config.read_text()}')
    path.write_text("before\n")
    err = _queue_a_del(lab)
    first, *lines = path.read_text().splitlines(keepends=True)
    assert first == "before\n"
    # The file also contains the daemon's own work.
    assert "".join(line for line in lines if " network=net " in line) == err != ""


@pytest.mark.parametrize("kind", ["symlink", "directory", "missing directory"])
def test_a_log_file_that_cannot_be_written_is_reported_and_fails_nothing(
    lab: ExampleLab, tmp_path: Path, kind: str
) -> None:
    victim, path = tmp_path / "victim", tmp_path / "log"
    victim.write_text("precious")
    match kind:
        case "symlink":
            path.symlink_to(victim)
        case "directory":
            path.mkdir()
        case _:
            path = tmp_path / "missing" / "log"
    outcome = lab.call("ADD", lab.conf(logFile=str(path)))
    assert outcome.result["interfaces"]
    assert f"cannot write the log file {path}" in outcome.err
    assert victim.read_text() == "precious"


def test_debug_output_stays_off_standard_output(lab: ExampleLab) -> None:
    outcome = lab.call("ADD", lab.conf(logLevel="debug", host={"engine": "nope"}))
    assert outcome.code == 100  # its body is one JSON object
    assert lab.call("ADD", lab.conf(logLevel="debug")).result["interfaces"]
