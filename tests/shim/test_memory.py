"""Valgrind checks each kind of request."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest

from lab import shim as lab_shim
from lab.shim import Daemon, answer, answering

if TYPE_CHECKING:
    from pathlib import Path

    from lab.shim import Shim


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Shim:
    directory = tmp_path_factory.mktemp("valgrind")
    return lab_shim.make(lab_shim.compile_variant("valgrind", directory), directory, deadline=1)


@pytest.mark.parametrize("command", ["VERSION", "ADD", "DEL", "unknown", ""])
@pytest.mark.parametrize(
    "stdin", [b"", b'{"a": "\\"', b'{"cniVersion": "1.0.0"}'], ids=["none", "torn", "whole"]
)
def test_without_a_daemon(shim: Shim, command: str, stdin: bytes) -> None:
    assert shim.call(command, stdin).returncode in (0, 1)


@pytest.mark.parametrize("frame", [answer(7, b"out", b"err"), answer(7, b"out")[:-1], b""])
def test_with_a_daemon(shim: Shim, frame: bytes) -> None:
    with Daemon(shim.settings.socket, answering([], frame)):
        assert shim.call("ADD").returncode == (7 if frame == answer(7, b"out", b"err") else 1)


def test_valgrind_is_heard(tmp_path: Path) -> None:
    """The tests above can fail: valgrind reports a program that reads beyond its memory."""
    source = tmp_path / "wrong.c"
    source.write_text(
        "#include <stdlib.h>\nint main(int count, char **arguments)\n"
        "{ (void)arguments; char *one = calloc(1, 1); return one[count]; }\n"
    )
    program = lab_shim.compile_variant("valgrind", tmp_path, source)
    done = subprocess.run([*program.runner, program.program], check=False, capture_output=True)
    assert done.returncode == 99
