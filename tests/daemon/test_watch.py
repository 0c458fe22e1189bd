"""The daemon watches switches; one that hangs does not affect others or block readiness."""

from __future__ import annotations

import json
import signal
from contextlib import closing
from threading import Event
from typing import TYPE_CHECKING

import pytest

from core import example_lab
from lab import health
from lab.daemon_lab import daemon_of, started
from lab.node import poll
from userspace_cni.config.settings import DaemonSettings, Settings
from userspace_cni.daemon.observer import Observer
from userspace_cni.daemon.recorded import Recorded
from userspace_cni.daemon.watch import Watch
from userspace_cni.runtime import Runtime

if TYPE_CHECKING:
    from pathlib import Path

    from core.example_lab import ExampleLab

OFTEN = "watch_interval = 0.05\nreconcile_interval = 0.05\n"


def _ready(port: int) -> tuple[int, dict[str, str]]:
    status, body = health.get(port, "/readyz")
    dataplanes: dict[str, str] = json.loads(body)["dataplanes"]
    return status, dataplanes


def _is_up(port: int, engine: str) -> float | None:
    return health.figures_of(port).get(("userspace_cni_dataplane_up", frozenset({engine})))


def _configure(lab: ExampleLab, name: str, network: object) -> Path:
    directory = lab.directory / "net.d"
    directory.mkdir(exist_ok=True)
    file = directory / name
    file.write_text(json.dumps(network))
    return file


@pytest.mark.parametrize("step", ["generation", "restore"])
def test_an_engine_that_hangs_harms_no_other_and_no_end(
    lab: ExampleLab, trouble_interpreter: Path, step: str
) -> None:
    port = health.free_port()
    trouble = example_lab.with_trouble(lab, trouble_interpreter)
    daemon = started(lab, f'http = "127.0.0.1:{port}"\n{OFTEN}')
    lab.add(lab.conf(), container="other")
    trouble.add(trouble.conf(name="troubled"))
    both = {"example": "up", "trouble": "up"}
    poll(lambda: _ready(port) == (200, both), "both are known")
    (lab.switch / f"hang-{step}").touch()
    for file in lab.switch.glob("*.*"):
        file.unlink()
    poll((lab.switch / f"hanging-{step}").exists, "one engine hangs")
    poll(lambda: len(lab.ports()) == 1, "the other engine's port is back")
    poll(lambda: _ready(port) == (503, both | {"trouble": "unknown"}), "nothing is known of it")
    assert (_is_up(port, "trouble"), _is_up(port, "example")) == (0, 1)
    daemon.signal(signal.SIGTERM)
    assert daemon.wait(25) == 0
    assert "watching the switches of engine trouble hangs" in daemon.said()


def test_an_engine_that_hangs_at_the_start_is_not_known_to_be_up(
    lab: ExampleLab, trouble_interpreter: Path
) -> None:
    trouble = example_lab.with_trouble(lab, trouble_interpreter)
    trouble.add(trouble.conf())
    daemon_of(lab).stop()
    (lab.switch / "hang-generation").touch()
    port = health.free_port()
    lab.plugin.settings(f'http = "127.0.0.1:{port}"\n')
    daemon_of(lab).start()
    poll((lab.switch / "hanging-generation").exists, "it is asked")
    assert _ready(port) == (503, {"trouble": "unknown"})
    (lab.switch / "hang-generation").unlink()
    poll(lambda: _ready(port) == (200, {"trouble": "up"}), "it has answered")


def test_switches_of_configured_networks_are_asked_too(lab: ExampleLab) -> None:
    port = health.free_port()
    _configure(lab, "10-net.conflist", {"name": "net", "plugins": [lab.conf(), {"type": "tuning"}]})
    _configure(lab, "20-theirs.conf", {"name": "theirs", "type": "bridge", "host": 7})
    _configure(lab, "30-broken.conf", ["no", "network"])
    started(lab, f'http = "127.0.0.1:{port}"\n{OFTEN}networks = "{lab.directory}/net.d"')
    poll(lambda: _ready(port) == (200, {"example": "up"}), "it answers")
    assert _is_up(port, "example") == 1
    lab.switch_down()
    poll(lambda: _ready(port) == (503, {"example": "down"}), "it does not answer")
    assert _is_up(port, "example") == 0
    lab.switch_up()
    poll(lambda: _ready(port) == (200, {"example": "up"}), "it answers again")
    file = _configure(lab, "40-more.json", lab.conf(host={"engine": "nosuch", "iftype": "x"}))
    poll(lambda: _ready(port) == (503, {"example": "up", "nosuch": "unknown"}), "it is missing")
    file.unlink()
    poll(lambda: _ready(port)[0] == 200, "it is not asked for any more")
    assert daemon_of(lab).said().count("'nosuch' is not installed") == 1


def test_versions_are_told(lab: ExampleLab) -> None:
    port = health.free_port()
    started(lab, f'http = "127.0.0.1:{port}"')
    _, text = health.get(port, "/metrics")
    assert 'userspace_cni_build_info{python="3.' in text
    assert 'userspace_cni_engine_info{engine="linux",version="' in text


@pytest.mark.parametrize("fails", ["check", "restore"])
def test_what_cannot_be_restored_is_told_once(
    lab: ExampleLab, trouble_interpreter: Path, fails: str
) -> None:
    """This includes a restore that reports success every time."""
    trouble = example_lab.with_trouble(lab, trouble_interpreter)
    daemon = started(lab, OFTEN)
    trouble.add(trouble.conf())
    exception = "__import__('userspace_cni.cni.errors').cni.errors.CheckFailed('by design')"
    trouble.fail(fails, exception)
    for file in lab.switch.glob("*.*"):
        file.unlink()
    calls = lab.switch / "restores"
    poll(lambda: calls.exists() and len(calls.read_text()) > 5, "attempts")
    said = daemon.said()
    assert said.count("attachment") == 1, said
    assert "by design" in said
    trouble.fail(fails, exception.replace("design", "accident"))
    poll(lambda: "by accident" in daemon.said(), "another error is told")
    trouble.mend()
    poll(lambda: len(lab.ports()) == 1, "it is back")


def test_a_switch_with_ten_networks_is_asked_once_in_a_round(
    lab: ExampleLab, trouble_interpreter: Path
) -> None:
    trouble = example_lab.with_trouble(lab, trouble_interpreter)
    started(lab, OFTEN)
    for number in range(11):
        text = f"one-{number}" if number < 10 else "other"
        host = {"engine": "trouble", "iftype": "note", "note": {"text": text}}
        trouble.add(trouble.conf(name=f"net{number}", host=host), container=f"c{number}")
    asked = lab.switch / "asked"
    asked.touch()
    poll(lambda: asked.read_text().count("other") > 5, "some rounds")
    keys = asked.read_text().split()
    assert abs(keys.count("one") - keys.count("other")) <= 1


def test_a_switch_that_cannot_be_told_from_others_is_told(
    lab: ExampleLab, trouble_interpreter: Path
) -> None:
    trouble = example_lab.with_trouble(lab, trouble_interpreter)
    port = health.free_port()
    daemon = started(lab, f'http = "127.0.0.1:{port}"\n{OFTEN}')
    trouble.fail("key")
    trouble.add(trouble.conf())
    poll(lambda: "by design" in daemon.said(), "it is told")
    poll(lambda: _ready(port) == (503, {"trouble": "unknown"}), "nothing is known of it")
    trouble.mend()
    poll(lambda: _ready(port) == (200, {"trouble": "up"}), "it is asked again")


def test_what_tells_switches_apart_is_forgotten_with_the_last_network(tmp_path: Path) -> None:
    """Otherwise memory would grow with each pod that has a different ``host`` part."""
    settings = Settings(state_dir=tmp_path, run_dir=tmp_path)
    with closing(Runtime(settings, alone=False)) as runtime:
        recorded = Recorded(runtime.store)
        watch = Watch("linux", runtime, DaemonSettings(), recorded, Observer(), compare=False)
        for number in range(3):
            host = {"engine": "linux", "iftype": "veth", "bridge": {"bridgeName": f"br{number}"}}
            watch.configured = [host]
            watch._look(Event())
            assert watch.knows(host)
            assert list(watch._keys) == [json.dumps(host)]
