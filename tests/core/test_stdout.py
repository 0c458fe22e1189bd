"""Standard output contains only the answer, whatever an engine prints."""

from __future__ import annotations

import json
import subprocess
from typing import TYPE_CHECKING

import pytest
from attrs import evolve

from core import example_lab
from userspace_cni.api import CONTAINER_ENGINES, HOST_ENGINES

if TYPE_CHECKING:
    from pathlib import Path

    from core.example_lab import ExampleLab

pytestmark = [pytest.mark.own_process("it is about the streams of a process"), pytest.mark.parity]

#: An engine that executes the file "sin" in its switch whenever it is called.
_SINNER = """
import ctypes, os, subprocess, sys
from attrs import evolve
from example_engine import ExampleContainerEngine, ExampleHostEngine

print("imported")

class Host(ExampleHostEngine):
    info = evolve(ExampleHostEngine.info, name="sinner")

    def status(self, conf):
        exec((self._switch() / "sin").read_text())

    def add(self, attachment, conf, undo):
        port = super().add(attachment, conf, undo)
        self.status(conf)
        return port

class Container(ExampleContainerEngine):
    info = Host.info
"""
_PRINTS = {
    "print": "print('dirt', flush=True)",
    "print without flush": "print('dirt')",
    "the original stream": "sys.__stdout__.write('dirt')",
    "the file descriptor": "os.write(1, b'dirt')",
    "a C library": "ctypes.CDLL(None).dprintf(1, b'dirt')",
    "the buffer of a C library": "ctypes.CDLL(None).printf(b'dirt')",
    "a child": "subprocess.run(['echo', 'dirt'], check=True)",
    "a child that is forked": "pid = os.fork() or (os.write(1, b'dirt'), os._exit(0)); os.wait()",
}
_EXITS = {
    "sys.exit": ("sys.exit(0)", "SystemExit: 0"),
    "os._exit": ("os._exit(0)", "SystemExit: os._exit(0)"),
    "os._exit after a print": ("os.write(1, b'{}'); os._exit(7)", "SystemExit: os._exit(7)"),
}


@pytest.fixture(scope="session")
def sinners_interpreter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return example_lab.make_venv(
        tmp_path_factory.mktemp("sinner") / "venv",
        {"lab_sinner": _SINNER},
        {
            HOST_ENGINES: "sinner = lab_sinner:Host",
            CONTAINER_ENGINES: "sinner = lab_sinner:Container",
        },
    )


@pytest.fixture
def sinner(
    lab: ExampleLab, sinners_interpreter: Path, monkeypatch: pytest.MonkeyPatch
) -> ExampleLab:
    # The measurement of coverage changes how a process ends, and with it what is written then.
    monkeypatch.delenv("COVERAGE_PROCESS_CONFIG", raising=False)
    lab.plugin.interpreted_by(sinners_interpreter)
    lab.plugin.settings(f'[engines.sinner]\ndirectory = "{lab.switch}"\n')
    return evolve(lab, engine="sinner")


@pytest.mark.parametrize("sin", _PRINTS.values(), ids=_PRINTS)
def test_what_an_engine_prints_is_not_in_the_answer(sinner: ExampleLab, sin: str) -> None:
    (sinner.switch / "sin").write_text(sin)
    sinner.call("STATUS", sinner.conf()).succeeded()
    result = sinner.add(sinner.conf())
    assert [item["name"] for item in result["interfaces"]] == ["eth0"]
    sinner.call("DEL", sinner.conf()).succeeded()
    if sinner.plugin.daemon is None:
        (sinner.switch / "sin").write_text(sin)
        assert "dirt" in sinner.call("STATUS", sinner.conf()).err


@pytest.mark.parametrize(("sin", "says"), _EXITS.values(), ids=_EXITS)
def test_an_engine_that_exits_is_told_and_its_work_undone(
    sinner: ExampleLab, sin: str, says: str
) -> None:
    (sinner.switch / "sin").write_text(sin)
    before = sinner.plugin.daemon.pid if sinner.plugin.daemon and sinner.plugin.executable else 0
    outcome = sinner.call("ADD", sinner.conf() | {"ipam": sinner.host_local()})
    assert outcome.code == 999
    assert says in outcome.text
    sinner.assert_clean()
    (sinner.switch / "sin").write_text("")
    sinner.add(sinner.conf())
    assert (sinner.plugin.daemon.pid if sinner.plugin.daemon else 0) == before


@pytest.mark.one_process("the shim has its own standard output")
@pytest.mark.parametrize("closing", [">&-", "2>&-", ">/dev/full"])
def test_streams_that_cannot_be_written_end_in_no_traceback(lab: ExampleLab, closing: str) -> None:
    done = subprocess.run(
        ["/bin/sh", "-c", f'exec "$0" {closing}', lab.plugin.executable],
        input=json.dumps({"cniVersion": "1.1.0"}).encode(),
        env={**lab.plugin.env, "CNI_COMMAND": "VERSION"},
        capture_output=True,
        check=False,
    )
    assert b"Traceback" not in done.stderr
    if closing == "2>&-":
        assert (done.returncode, "supportedVersions" in json.loads(done.stdout)) == (0, True)
    else:
        assert done.returncode == 1
        assert b"standard output cannot be written" in done.stderr
