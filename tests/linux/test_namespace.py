"""How often a request looks up the network namespace of its container."""

from __future__ import annotations

import json
import os
from io import StringIO
from typing import TYPE_CHECKING, Any

from linux.conftest import Lab
from userspace_cni.dispatch import Dispatcher

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


def test_a_request_opens_the_namespace_of_its_container_once(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The path could lead to another namespace when it is looked up again."""
    container = lab.container()
    settings = tmp_path / "config.toml"
    settings.write_text(f'state_dir = "{tmp_path}/state"\nrun_dir = "{tmp_path}/run"\n')
    host = {"engine": "linux", "iftype": "veth", "netType": "bridge", "bridge": {"bridgeName": "b"}}
    network = {"cniVersion": "1.1.0", "name": "net", "type": "userspace", "host": host}
    opened: list[str] = []
    real = os.open

    def spy(path: Any, *args: Any, **kwargs: Any) -> int:
        opened.append(str(path))
        return real(path, *args, **kwargs)

    monkeypatch.setattr(os, "open", spy)

    def call(command: str, **more: object) -> Any:
        opened.clear()
        environ = {
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": "c1",
            "CNI_NETNS": container.path,
            "CNI_IFNAME": "eth0",
            "CNI_PATH": str(tmp_path),
            "USERSPACE_CNI_CONFIG": str(settings),
        }
        with Dispatcher() as dispatcher:
            stdin = json.dumps(network | more).encode()
            answer = lab.call(dispatcher.call, environ, stdin, StringIO())
        assert answer.status == 0, answer.out
        assert opened.count(container.path) == 1
        return json.loads(answer.out) if answer.out else None

    result = call("ADD")
    call("CHECK", prevResult=result)
    call("DEL")
