"""Directories get the requested mode, independent of the umask."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

import pytest

from userspace_cni import files
from userspace_cni.handover import ContainerDirectory

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from core.example_lab import ExampleLab


@pytest.fixture(params=[0, 0o077])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    former = os.umask(request.param)
    yield request.param
    os.umask(former)


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.usefixtures("umask")
def test_every_level_has_its_mode(tmp_path: Path) -> None:
    path = tmp_path / "a/b/c"
    files.make(path)
    assert [_mode(path), _mode(path.parent), _mode(path.parents[1])] == [0o750, 0o755, 0o755]
    path.chmod(0o700)
    files.make(path)
    assert _mode(path) == 0o700
    (tmp_path / "file").write_text("")
    with pytest.raises(FileExistsError):
        files.make(tmp_path / "file")
    with pytest.raises(NotADirectoryError):
        files.make(tmp_path / "file/below")


@pytest.mark.usefixtures("umask")
def test_nobody_else_may_write_to_what_a_request_makes(lab: ExampleLab) -> None:
    lab.add(lab.conf())
    own = (lab.plugin.state_dir, lab.plugin.run_dir)
    made = [path for base in own for path in (base, *base.glob("**/*")) if path.is_dir()]
    assert {*own, lab.plugin.run_dir / "locks"} <= {*made}
    assert {path: _mode(path) & 0o022 for path in made} == dict.fromkeys(made, 0)
    lab.call("DEL", lab.conf()).succeeded()
    lab.assert_clean()


@pytest.mark.usefixtures("umask")
def test_nobody_else_may_write_to_a_shared_directory(tmp_path: Path) -> None:
    ContainerDirectory(tmp_path / "more/base", "c1", None).provide()
    assert [_mode(tmp_path / path) for path in ("more", "more/base", "more/base/c1")] == [
        0o755,
        0o750,
        0o750,
    ]
