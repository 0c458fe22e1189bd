"""Fixtures for tests with real CNI clients."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

import attrs
import pytest
from google.protobuf.descriptor import ServiceDescriptor

from lab import cri as cri_client
from lab import images as image_maker
from lab import libcni
from lab.client_lab import NETWORK, ClientLab
from lab.containerd import Containerd
from lab.images import Images
from lab.node import Node
from lab.podman import Podman
from lab.spy import Spy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from lab.cri import Cri
    from lab.plugin import Plugin


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Images:
    """Image archives for containerd and podman."""
    return image_maker.make(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="session")
def cri_service(tmp_path_factory: pytest.TempPathFactory) -> ServiceDescriptor:
    """The compiled CRI."""
    return cri_client.compile_proto(tmp_path_factory.mktemp("cri"))


@pytest.fixture(scope="session")
def libcni_binary() -> Path:
    """The libcni client."""
    return libcni.build()


@pytest.fixture
def client_lab(plugin: Plugin, libcni_binary: Path) -> Iterator[ClientLab]:
    """A node with the plugin under test and the spy."""
    with Node() as node:
        spy = Spy.install(plugin.bin_dir, node.dir / "spy.log")
        plugin.serve(node)
        yield ClientLab(node, plugin, spy, libcni_binary)


@attrs.frozen
class Starter:
    """Starts clients once the test has configured its network."""

    lab: ClientLab
    images: Images
    service: ServiceDescriptor
    stack: ExitStack

    def containerd(self) -> Containerd:
        """Return a running containerd with the images."""
        plugin = self.lab.plugin
        daemon = Containerd(self.lab.node, plugin.bin_dir, self.lab.conf_dir, plugin.env)
        self.stack.enter_context(daemon)
        daemon.load(self.images)
        return daemon

    def cri(self) -> Cri:
        """Return a CRI client of a new containerd."""
        return self.stack.enter_context(self.containerd().cri(self.service))

    def podman(self) -> Podman:
        """Return podman with the image."""
        plugin = self.lab.plugin
        podman = Podman(self.lab.node, plugin.bin_dir, self.lab.conf_dir, NETWORK, plugin.env)
        podman.load(self.images)
        return podman


@pytest.fixture
def start(
    client_lab: ClientLab, images: Images, cri_service: ServiceDescriptor
) -> Iterator[Starter]:
    """Starts containerd, its CRI client, or podman."""
    with ExitStack() as stack:
        yield Starter(client_lab, images, cri_service, stack)


@pytest.fixture
def start_cri(start: Starter) -> Callable[[], Cri]:
    """Start containerd and return its CRI client."""
    return start.cri


@pytest.fixture
def start_containerd(start: Starter) -> Callable[[], Containerd]:
    """Start containerd."""
    return start.containerd


@pytest.fixture
def start_podman(start: Starter) -> Callable[[], Podman]:
    """Set podman up."""
    return start.podman
