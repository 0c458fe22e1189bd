"""Fixtures for the tests of the core."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest

from core import example_lab
from lab import plugin as lab_plugin
from userspace_cni.api import CONTAINER_ENGINES, HOST_ENGINES

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from core.example_lab import ExampleLab
    from lab.plugin import Mode, Plugin


@pytest.fixture(scope="session")
def netns() -> Iterator[str]:
    """An empty network namespace, like a new container's."""
    holder = subprocess.Popen(
        ["unshare", "--net", "sh", "-c", "echo ready; exec sleep infinity"],
        stdout=subprocess.PIPE,
    )
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"ready\n"
        yield f"/proc/{holder.pid}/ns/net"
        holder.kill()


@pytest.fixture
def lab(plugin: Plugin, tmp_path: Path, netns: str) -> ExampleLab:
    """The plugin with the example engine."""
    return example_lab.make(plugin, tmp_path, netns)


@pytest.fixture(scope="module")
def shared_lab(
    tmp_path_factory: pytest.TempPathFactory, netns: str, served_by: Mode
) -> Iterator[ExampleLab]:
    """A lab for a whole module whose tests leave nothing behind."""
    directory = tmp_path_factory.mktemp("lab")
    with lab_plugin.installed(directory, served_by) as plugin:
        yield example_lab.make(plugin, directory, netns)


@pytest.fixture(scope="session")
def trouble_interpreter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An interpreter that also has the engine "trouble"."""
    return example_lab.make_venv(
        tmp_path_factory.mktemp("trouble") / "venv",
        {"lab_trouble": example_lab.TROUBLE},
        {
            HOST_ENGINES: "trouble = lab_trouble:Host",
            CONTAINER_ENGINES: "trouble = lab_trouble:Container",
        },
    )


@pytest.fixture
def trouble(lab: ExampleLab, trouble_interpreter: Path) -> ExampleLab:
    """The plugin with an engine that fails on request."""
    return example_lab.with_trouble(lab, trouble_interpreter)
