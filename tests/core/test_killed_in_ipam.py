"""A process killed during an IPAM call: the plugin finishes its work and others wait."""

from __future__ import annotations

import json
import random
import re
import time
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from attrs import frozen

from core.example_lab import ExampleLab
from lab.node import poll

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from lab.plugin import Outcome

pytestmark = [
    pytest.mark.one_process("the daemon goes on when its client is killed"),
    pytest.mark.own_process("it is killed"),
]

GC = "cni.dev/valid-attachments"


@frozen
class SlowLocal:
    """A stand-in for host-local that creates a lease's file, waits to be released, and writes it.

    It frees leases that contain the container's ID, so an empty lease would stay forever.
    """

    lab: ExampleLab
    conf: dict[str, Any]

    @classmethod
    def install(cls, lab: ExampleLab, slow: str) -> SlowLocal:
        """Install a plugin whose command *slow* waits."""
        leases = lab.directory / "leases"
        leases.mkdir()
        work = f"touch {lab.directory}/begun; until [ -e {lab.directory}/go ]; do sleep 0.02; done"
        script = lab.script(
            "cat > /dev/null\n"
            f"lease={leases}/10.66.0.2\n"
            f"work() {{ [ $CNI_COMMAND != {slow} ] || {{ {work}; }}; }}\n"
            "case $CNI_COMMAND in\n"
            "ADD) : > $lease; work; printf %s $CNI_CONTAINERID > $lease\n"
            '  echo \'{"cniVersion": "1.1.0", "ips": [{"address": "10.66.0.2/24"}]}\';;\n'
            'DEL) work; [ ! -e $lease ] || [ "$(cat $lease)" != $CNI_CONTAINERID ] || rm $lease;;\n'
            "esac"
        )
        return cls(lab, lab.conf(ipam=script))

    @property
    def begun(self) -> Path:
        return self.lab.directory / "begun"

    def let_go(self) -> None:
        (self.lab.directory / "go").touch()

    @contextmanager
    def killed(self, command: str) -> Iterator[None]:
        """Kill *command* while the plugin works; release the plugin at the end at the latest."""
        try:
            with self.lab.started(command, json.dumps(self.conf).encode()) as process:
                poll(self.begun.exists, "the IPAM plugin's work")
                process.kill()
                process.wait()
            yield
        finally:
            self.let_go()


def _after(slow: SlowLocal, waiting: Future[Outcome]) -> Outcome:
    """Release the plugin, for which *waiting* must have waited; return the outcome."""
    wait([waiting], timeout=0.5)
    assert not waiting.done()
    slow.let_go()
    return waiting.result()


def test_an_add_loses_no_address(lab: ExampleLab) -> None:
    slow = SlowLocal.install(lab, "ADD")
    with slow.killed("ADD"), ThreadPoolExecutor() as pool:
        assert lab.states() == {"c1": "adding"}
        _after(slow, pool.submit(lab.call, "DEL", slow.conf)).succeeded()
    lab.assert_clean()


def test_gc_leaves_it_until_the_plugin_has_ended(lab: ExampleLab) -> None:
    slow = SlowLocal.install(lab, "ADD")
    with slow.killed("ADD"):
        lab.call("GC", slow.conf | {GC: []}).succeeded()
        assert lab.states() == {"c1": "adding"}
    poll(
        lambda: lab.call("GC", slow.conf | {GC: []}).status == 0 and not lab.states(), "it is gone"
    )
    lab.assert_clean()


def test_a_del_that_waits_in_vain_names_the_plugin(lab: ExampleLab) -> None:
    config = lab.directory / "config.toml"
    config.write_text("timeout = 0.5\n" + config.read_text())
    slow = SlowLocal.install(lab, "ADD")
    with slow.killed("ADD"):
        outcome = lab.call("DEL", slow.conf)
        assert outcome.code == 11
        assert re.search(r"is held by process \d+ \(ipam-script\)", outcome.text)
    poll(lambda: lab.call("DEL", slow.conf).status == 0, "the plugin has ended")
    lab.assert_clean()


def test_a_del_frees_no_address_of_a_later_add(lab: ExampleLab) -> None:
    slow = SlowLocal.install(lab, "DEL")
    lab.add(slow.conf)
    with slow.killed("DEL"), ThreadPoolExecutor() as pool:
        _after(slow, pool.submit(lab.call, "DEL", slow.conf)).succeeded()
    lab.add(slow.conf)
    assert lab.leases() == ["10.66.0.2"]
    lab.call("DEL", slow.conf).succeeded()
    lab.assert_clean()


def test_host_local_loses_no_address_at_whatever_moment(lab: ExampleLab) -> None:
    conf = lab.conf(ipam=lab.host_local())
    chance = random.Random(1)
    for number in range(30):
        container = f"c{number}"
        stdin = json.dumps(conf).encode()
        with lab.started("ADD", stdin, CNI_CONTAINERID=container) as process:
            poll(lambda: lab.locks() or process.poll() is not None, "the ADD has begun")
            time.sleep(chance.uniform(0, 0.03))
        lab.call("DEL", conf, container=container).succeeded()
        lab.assert_clean()
