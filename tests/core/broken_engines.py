"""Engines that break one rule each, and the test of the kit that must notice.

Each class TestX runs the contract on a broken engine; ``notices`` names the test. The file is
copied beside the example engine's own tests and run by pytest: see test_kit.py.
"""

from __future__ import annotations

import json
import random
import threading
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
from attrs import evolve
from test_contract import ExampleSwitch  # type: ignore[import-not-found]

from example_engine import ExampleContainerEngine, ExampleHostEngine
from userspace_cni import registry
from userspace_cni.cni.errors import DataplaneError
from userspace_cni.testing import EngineContract, Switch

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from userspace_cni.api import (
        Attachment,
        ContainerEngine,
        EngineConf,
        EngineContext,
        Handoff,
        HostEngine,
        HostPort,
    )


class Contract(EngineContract):
    host: ClassVar[type[HostEngine]] = ExampleHostEngine
    container: ClassVar[type[ContainerEngine]] = ExampleContainerEngine
    switch_class: ClassVar[type[ExampleSwitch]] = ExampleSwitch
    notices: ClassVar[str] = ""
    network = {"host": {"engine": "example", "iftype": "note", "note": {"text": "x"}}}

    @pytest.fixture
    def switch(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Switch]:
        monkeypatch.setattr(registry, "host_engine", lambda _: self.host)
        monkeypatch.setattr(registry, "container_engine", lambda _: self.container)
        with self.switch_class(tmp_path) as switch:
            yield switch


class Misnamed(ExampleHostEngine):
    info = evolve(ExampleHostEngine.info, name="specimen")


class TestMisnamed(Contract):
    host = Misnamed
    notices = "test_it_is_announced_and_described"


class Eager(ExampleHostEngine):
    def __init__(self, context: EngineContext) -> None:
        super().__init__(context)
        self._switch().joinpath("hello").exists()
        with open(self._switch() / ".log", "w"):
            pass


class TestEager(Contract):
    host = Eager
    notices = "test_it_opens_nothing_before_it_is_asked"


class Inquisitive(ExampleHostEngine):
    def switch_key(self, conf: EngineConf) -> str:
        with open(self._switch() / ".key", "w") as file:
            return file.name


class TestInquisitive(Contract):
    host = Inquisitive
    notices = "test_it_opens_nothing_before_it_is_asked"


class Untagged(ExampleHostEngine):
    def attachments(self, network: str, conf: EngineConf) -> Iterator[str]:
        return iter(())


class TestUntagged(Contract):
    host = Untagged
    notices = "test_a_port_lives_and_leaves_nothing"


class Littering(ExampleHostEngine):
    def delete(self, attachment_id: str, conf: EngineConf, netns: str | None) -> None:
        for port in self._switch().glob(f"*.{attachment_id}"):
            port.rename(port.with_suffix(".trash"))


class TestLittering(Contract):
    host = Littering
    notices = "test_a_port_lives_and_leaves_nothing"


class Once(ExampleHostEngine):
    def delete(self, attachment_id: str, conf: EngineConf, netns: str | None) -> None:
        (port,) = self._switch().glob(f"*.{attachment_id}")
        port.unlink()


class TestOnce(Contract):
    host = Once
    notices = "test_delete_may_be_repeated"


class Remembering(ExampleHostEngine):
    def __init__(self, context: EngineContext) -> None:
        super().__init__(context)
        self._mine: set[str] = set()

    def add(self, attachment: Attachment, conf: EngineConf, undo: ExitStack) -> HostPort:
        self._mine.add(attachment.id)
        return super().add(attachment, conf, undo)

    def delete(self, attachment_id: str, conf: EngineConf, netns: str | None) -> None:
        if attachment_id in self._mine:
            super().delete(attachment_id, conf, netns)


class TestRemembering(Contract):
    host = Remembering
    notices = "test_tags_alone_suffice"


class Sweeping(ExampleHostEngine):
    def delete(self, attachment_id: str, conf: EngineConf, netns: str | None) -> None:
        for port in self._switch().iterdir():
            port.unlink()


class TestSweeping(Contract):
    host = Sweeping
    notices = "test_delete_touches_nothing_else"


class Overwriting(ExampleHostEngine):
    def add(self, attachment: Attachment, conf: EngineConf, undo: ExitStack) -> HostPort:
        self.delete(attachment.id, conf, None)
        return super().add(attachment, conf, undo)


class TestOverwriting(Contract):
    host = Overwriting
    notices = "test_an_attachment_is_not_made_twice"


class Talking(ExampleHostEngine):
    def add(self, attachment: Attachment, conf: EngineConf, undo: ExitStack) -> HostPort:
        print("adding", attachment.id)
        return super().add(attachment, conf, undo)


class TestTalking(Contract):
    host = Talking
    notices = "test_nothing_is_printed"


class Unforgiving(ExampleHostEngine):
    def add(self, attachment: Attachment, conf: EngineConf, undo: ExitStack) -> HostPort:
        return super().add(attachment, conf, ExitStack())


class TestUnforgiving(Contract):
    host = Unforgiving
    notices = "test_undo_leaves_nothing"


class Late(ExampleHostEngine):
    """Creates two objects before it pushes any undo step."""

    def add(self, attachment: Attachment, conf: EngineConf, undo: ExitStack) -> HostPort:
        late = ExitStack()
        port = super().add(attachment, conf, late)
        label = self._switch() / f"label-{attachment.id}"
        try:
            label.write_text(attachment.container_id)
        except OSError as error:
            raise DataplaneError(f"no label: {error}") from error
        late.callback(label.unlink)
        undo.push(late.pop_all())
        return port

    def delete(self, attachment_id: str, conf: EngineConf, netns: str | None) -> None:
        super().delete(attachment_id, conf, netns)
        (self._switch() / f"label-{attachment_id}").unlink(missing_ok=True)


class TestLate(Contract):
    host = Late
    notices = "test_a_failure_at_each_call_leaves_nothing"


class Bare(ExampleHostEngine):
    def add(self, attachment: Attachment, conf: EngineConf, undo: ExitStack) -> HostPort:
        with open(self._switch() / ".log", "w"):
            undo.callback((self._switch() / ".log").unlink)
        (self._switch() / ".log").unlink()
        undo.pop_all()
        return super().add(attachment, conf, undo)


class TestBare(Contract):
    """An OSError that reaches the runtime would be an internal error."""

    host = Bare
    notices = "test_a_failure_at_each_call_leaves_nothing"


class Holding(ExampleHostEngine):
    def add(self, attachment: Attachment, conf: EngineConf, undo: ExitStack) -> HostPort:
        with self.context.lock("all"):
            assert attachment.wait_for_addresses().ips == ()
            return super().add(attachment, conf, undo)


class TestHolding(Contract):
    host = Holding
    notices = "test_a_failure_of_ipam_leaves_nothing"


class Confused(ExampleHostEngine):
    """Stores the state of a request in the engine, which all threads share."""

    def add(self, attachment: Attachment, conf: EngineConf, undo: ExitStack) -> HostPort:
        self._attachment = attachment
        time.sleep(0.05)
        return super().add(self._attachment, conf, undo)


class TestConfused(Contract):
    host = Confused
    notices = "test_threads_share_an_engine"


class Indexed(ExampleHostEngine):
    """Keeps an index that is protected only against threads of the same process."""

    _guard = threading.Lock()

    def add(self, attachment: Attachment, conf: EngineConf, undo: ExitStack) -> HostPort:
        undo.callback(self._write, attachment.id, present=False)
        self._write(attachment.id, present=True)
        return super().add(attachment, conf, undo)

    def delete(self, attachment_id: str, conf: EngineConf, netns: str | None) -> None:
        super().delete(attachment_id, conf, netns)
        self._write(attachment_id, present=False)

    def _write(self, attachment_id: str, *, present: bool) -> None:
        with self._guard:
            index = self._switch().parent / "index"
            ids = set(json.loads(index.read_text())) if index.exists() else set()
            time.sleep(0.1)
            ids = ids | {attachment_id} if present else ids - {attachment_id}
            index.write_text(json.dumps(sorted(ids)))

    def check(self, attachment: Attachment, conf: EngineConf, port: HostPort) -> None:
        index = self._switch().parent / "index"
        time.sleep(0.3)  # until the other processes have written theirs
        if attachment.id not in json.loads(index.read_text()):
            raise DataplaneError("it is not in the index")
        super().check(attachment, conf, port)


class TestIndexed(Contract):
    host = Indexed
    notices = "test_processes_share_a_switch"


class Repairing(ExampleHostEngine):
    """Restores a missing port in ``status``, which must not repair anything."""

    def __init__(self, context: EngineContext) -> None:
        super().__init__(context)
        self._made: set[Path] = set()

    def add(self, attachment: Attachment, conf: EngineConf, undo: ExitStack) -> HostPort:
        port = super().add(attachment, conf, undo)
        self._made.add(self._switch() / port.name)
        return port

    def delete(self, attachment_id: str, conf: EngineConf, netns: str | None) -> None:
        super().delete(attachment_id, conf, netns)
        if netns is not None:
            self._made.clear()

    def status(self, conf: EngineConf) -> None:
        super().status(conf)
        for path in self._made:
            path.touch()


class TestRepairing(Contract):
    host = Repairing
    notices = "test_check_notices_each_damage_and_restore_mends_it"


class Trusting(ExampleHostEngine):
    def check(self, attachment: Attachment, conf: EngineConf, port: HostPort) -> None:
        self._switch()


class TestTrusting(Contract):
    host = Trusting
    notices = "test_check_notices_each_damage_and_restore_mends_it"


class Changing(ExampleHostEngine):
    def add(self, attachment: Attachment, conf: EngineConf, undo: ExitStack) -> HostPort:
        port = super().add(attachment, conf, undo)
        return evolve(port, mtu=random.getrandbits(16))


class TestChanging(Contract):
    host = Changing
    notices = "test_check_notices_each_damage_and_restore_mends_it"


class Refusing(ExampleHostEngine):
    def _switch(self) -> Any:
        try:
            return super()._switch()
        except Exception as error:
            raise DataplaneError("the switch is down", "start it") from error


class TestRefusing(Contract):
    """Reports a switch that is down as a refusal, so that a DEL would not be put off."""

    host = Refusing
    notices = "test_a_switch_that_is_down_is_told_apart"


class Forgetful(ExampleSwitch):  # type: ignore[misc]
    forgets = True

    def kill(self) -> None:
        if self.directory.exists():
            for port in self.directory.iterdir():
                port.unlink()
        super().kill()


class TestUnnoticed(Contract):
    """Its ``generation`` is always the same."""

    switch_class = Forgetful
    notices = "test_a_restart_is_noticed_and_mended"


class Preparing(ExampleContainerEngine):
    def prepare(self, attachment: Attachment, conf: EngineConf, port: HostPort) -> Handoff:
        with open("/proc/self/status"):
            return super().prepare(attachment, conf, port)


class TestPreparing(Contract):
    container = Preparing
    notices = "test_prepare_touches_nothing"


class Renaming(ExampleContainerEngine):
    def prepare(self, attachment: Attachment, conf: EngineConf, port: HostPort) -> Handoff:
        return evolve(super().prepare(attachment, conf, port), interface="other0")


class TestRenaming(Contract):
    container = Renaming
    notices = "test_prepare_touches_nothing"


class Failing(ExampleContainerEngine):
    def check(self, handoff: Handoff) -> None:
        raise DataplaneError("it is never right")


class TestFailing(Contract):
    container = Failing
    notices = "test_the_container_gets_its_interface"
