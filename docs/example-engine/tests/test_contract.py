"""Test that this engine keeps the contract of engines."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from userspace_cni.api import Attachment, HostPort
from userspace_cni.testing import Damage, EngineContract, Switch


class ExampleSwitch(Switch):
    """A directory. The switch is down while the directory has another name."""

    forgets = False

    def __init__(self, directory: Path) -> None:
        self.directory = directory / "switch"
        self._down = directory / "down"
        self._down.mkdir()

    @property
    def settings(self) -> Mapping[str, Any]:
        return {"directory": str(self.directory)}

    def start(self) -> None:
        self._down.rename(self.directory)

    def kill(self) -> None:
        if self.directory.exists():
            self.directory.rename(self._down)

    def objects(self) -> Iterable[str]:
        return [path.name for path in self.directory.iterdir()]

    def damages(self, attachment: Attachment, port: HostPort) -> Iterable[Damage]:
        return [Damage("the file is removed", (self.directory / port.name).unlink)]


class TestNote(EngineContract):
    """A port that is a file."""

    network = {"host": {"engine": "example", "iftype": "note"}}

    @pytest.fixture
    def switch(self, tmp_path: Path) -> Iterator[Switch]:
        with ExampleSwitch(tmp_path) as switch:
            yield switch
