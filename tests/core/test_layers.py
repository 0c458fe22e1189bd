"""lint-imports reports engines that import private modules of core."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import userspace_cni_linux

_PYPROJECT = Path(__file__).parents[2] / "pyproject.toml"


def _lint(directory: Path) -> subprocess.CompletedProcess[str]:
    """Run lint-imports with our contracts on the packages in *directory*, which win over ours."""
    return subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--config", _PYPROJECT, "--no-cache"],
        cwd=directory,
        env={"PYTHONPATH": str(directory), "COLUMNS": "1000"},
        capture_output=True,
        check=False,
        text=True,
    )


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    """A module of a copy of an engine."""
    (own,) = userspace_cni_linux.__path__
    package = shutil.copytree(own, tmp_path / "userspace_cni_linux")
    return package / "container.py"


@pytest.mark.parametrize(
    ("line", "imported"),
    [
        ("from userspace_cni import locks", "userspace_cni.locks"),
        ("import userspace_cni.handover.document", "userspace_cni.handover.document"),
        ("from userspace_cni.cni.errors import CniError", "userspace_cni.cni.errors"),
        ("from userspace_cni.api.model import Attachment", "userspace_cni.api.model"),
        ("def late():\n    from userspace_cni import netns", "userspace_cni.netns"),
    ],
)
def test_an_engine_that_imports_a_private_module_is_told(
    engine: Path, line: str, imported: str
) -> None:
    engine.write_text(f"{engine.read_text()}\n{line}\n")
    done = _lint(engine.parents[1])
    assert done.returncode == 1, done.stdout
    assert f"userspace_cni_linux.container -> {imported} " in done.stdout
    assert "Import it from userspace_cni.api" in done.stdout
    assert "1 broken" in done.stdout


def test_an_engine_that_imports_the_contract_and_its_kits_passes(engine: Path) -> None:
    lines = (
        "from userspace_cni.api import HostEngine",
        "from userspace_cni.api.sections import within",
        "from userspace_cni.kernel.links import Links",
        "from userspace_cni.testing import EngineContract",
    )
    engine.write_text("\n".join([engine.read_text(), *lines, ""]))
    done = _lint(engine.parents[1])
    assert done.returncode == 0, done.stdout
    assert "0 broken" in done.stdout
