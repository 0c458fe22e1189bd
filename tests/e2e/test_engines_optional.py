"""Engines are separate packages: core works without them and finds those installed."""

from __future__ import annotations

import json
import zipfile
from email.parser import Parser
from typing import TYPE_CHECKING, Any

import pytest

from lab import conf as lab_conf
from lab import plugin as lab_plugin
from lab import vpp_lab
from lab import wheels as lab_wheels
from lab.node import Node
from lab.vpp import api_dir
from userspace_cni.cli.new_engine import write
from userspace_cni.cni.errors import CniError
from userspace_cni.install import executables, install

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from lab.plugin import Plugin
    from lab.vpp_lab import VppLab
    from lab.wheels import Virtualenv, Wheels

pytestmark = pytest.mark.own_process("a lab node has namespaces of its own")

DISTRIBUTIONS = {
    "userspace-cni": "userspace_cni",
    "userspace-cni-linux": "userspace_cni_linux",
    "userspace-cni-ovs": "userspace_cni_ovs",
    "userspace-cni-vpp": "userspace_cni_vpp",
    "userspace-cni-shim": "userspace_cni_shim",
    "example-engine": "example_engine",
}


@pytest.fixture(scope="session")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Wheels:
    return lab_wheels.build(tmp_path_factory.mktemp("wheels"))


@pytest.fixture
def venv(wheels: Wheels, tmp_path: Path) -> Virtualenv:
    """A virtualenv with only the core."""
    venv = lab_wheels.virtualenv(tmp_path / "venv", wheels)
    venv.install("userspace-cni")
    return venv


@pytest.fixture
def own(plugin: Plugin, venv: Virtualenv) -> Plugin:
    """The plugin, installed by that virtualenv's command."""
    venv.run("userspace-cni", "install", "--cni-bin-dir", plugin.bin_dir)
    assert str(venv.python) in plugin.executable.read_text()
    return plugin


@pytest.fixture
def node() -> Iterator[Node]:
    with Node() as node:
        yield node


@pytest.fixture
def sim() -> Iterator[VppLab]:
    """A host with a simulated VPP."""
    yield from vpp_lab.make("simulator")


def _network(tmp_path: Path, version: str = "1.0.0") -> dict[str, Any]:
    network = lab_conf.bridge_network("opt", version, "10.44.0.0/24", tmp_path / "leases")
    (conf,) = network["plugins"]
    return {"cniVersion": version, "name": "opt", **conf}


def _assert_works(plugin: Plugin, node: Node, conf: dict[str, Any], netns: str) -> None:
    result = plugin.call("ADD", conf, netns=netns, node=node).result
    assert [item["name"] for item in result["interfaces"] if item.get("sandbox")] == ["eth0"]
    assert node.links(netns)["eth0"]["address"] == result["interfaces"][-1]["mac"]
    node.ping(netns, "10.44.0.1")
    checked = conf | {"prevResult": result}
    plugin.call("CHECK", checked, netns=netns, node=node).succeeded()
    plugin.call("DEL", checked, netns=netns, node=node).succeeded()
    assert list(node.links(netns)) == ["lo"]
    assert node.veths() == []


def test_the_same_network_works_once_the_engine_is_installed(
    own: Plugin, venv: Virtualenv, node: Node, tmp_path: Path
) -> None:
    conf, netns = _network(tmp_path), node.netns("box")
    status = {key: value for key, value in conf.items() if key != "ipam"} | {"cniVersion": "1.1.0"}
    refused = own.call("ADD", conf, netns=netns, node=node)
    unavailable = own.call("STATUS", status, node=node)
    assert (refused.code, unavailable.code) == (100, 50)
    for outcome in (refused, unavailable):
        assert "host engine 'linux' is not installed" in outcome.text
        assert "pip install 'userspace-cni[linux]'" in outcome.text
        assert "installed host engines: none" in outcome.text
    assert list(node.links(netns)) == ["lo"]
    assert lab_conf.leases(tmp_path / "leases") == []
    assert "no host engine is installed" in venv.run("userspace-cni", "engines")

    venv.install("userspace-cni-linux")
    own.call("STATUS", status, node=node).succeeded()
    _assert_works(own, node, conf, netns)
    assert "userspace-cni-linux 0.1.0" in venv.run("userspace-cni", "engines")


def test_each_engine_of_ours_is_told_with_the_extra_that_installs_it(
    own: Plugin, venv: Virtualenv
) -> None:
    for engine in ("linux", "ovs", "ovs-dpdk", "vpp"):
        refused = own.call("ADD", _host(engine), netns="/nowhere")
        assert refused.code == 100
        assert f"host engine '{engine}' is not installed" in refused.text
        assert f"pip install 'userspace-cni[{engine}]'" in refused.text
    misspelt = own.call("ADD", _host("vpq"), netns="/nowhere")
    assert 'did you mean "vpp"?' in misspelt.text
    venv.install("userspace-cni-linux")
    conf = _host("linux") | {"container": {"engine": "vpp"}}
    conf["host"]["iftype"] = "tap"
    refused = own.call("ADD", conf, netns="/nowhere")
    assert refused.code == 100
    assert "container engine 'vpp' is not installed" in refused.text
    assert "pip install 'userspace-cni[vpp]'" in refused.text


def test_vpp_alone_serves_vhost_user(own: Plugin, venv: Virtualenv, sim: VppLab) -> None:
    venv.install("userspace-cni[vpp]")
    engines = venv.run("userspace-cni", "engines")
    assert "userspace-cni-vpp" in engines
    assert "userspace-cni-ovs" not in engines
    own.settings(f'[engines.vpp]\napi_socket = "{sim.vpp.path}"\napi_dir = "{api_dir()}"\n')
    conf, netns = _host("vpp"), sim.container().path
    conf["host"] |= {"iftype": "vhostuser", "bridge": {"bridgeId": 4}}
    result = own.call("ADD", conf, netns=netns).result
    (document,) = own.run_dir.glob("shared/*/eth0.json")
    told = json.loads(document.read_text())
    assert (told["engine"], told["vhostUser"]["mode"]) == ("dpdk", "server")
    own.call("CHECK", conf | {"prevResult": result}, netns=netns).succeeded()
    own.call("DEL", conf, netns=netns).succeeded()
    sim.assert_clean()


def _host(engine: str) -> dict[str, Any]:
    return {"cniVersion": "1.1.0", "name": "n", "type": "userspace", "host": {"engine": engine}}


def test_the_extra_brings_the_engine_and_what_it_needs(
    wheels: Wheels, plugin: Plugin, node: Node, tmp_path: Path
) -> None:
    venv = lab_wheels.virtualenv(tmp_path / "venv", wheels)
    venv.install("userspace-cni[linux]")
    install(plugin.bin_dir, executables(plugin.bin_dir, str(venv.python)))
    _assert_works(plugin, node, _network(tmp_path), node.netns("box"))


def test_an_engine_of_a_third_party_is_found_and_used(
    own: Plugin, venv: Virtualenv, node: Node, tmp_path: Path
) -> None:
    switch = tmp_path / "switch"
    switch.mkdir()
    own.settings(f'[engines.example]\ndirectory = "{switch}"\n')
    host = {"engine": "example", "iftype": "note", "note": {"text": "hello"}}
    conf = {"cniVersion": "1.1.0", "name": "third", "type": "userspace", "host": host}
    netns = node.netns("box")
    assert own.call("ADD", conf, netns=netns, node=node).code == 100

    venv.install("example-engine")
    own.call("STATUS", conf, node=node).succeeded()
    result = own.call("ADD", conf, netns=netns, node=node).result
    (port,) = switch.iterdir()
    assert port.read_text() == "hello"
    own.call("CHECK", conf | {"prevResult": result}, netns=netns, node=node).succeeded()
    own.call("DEL", conf, netns=netns, node=node).succeeded()
    assert list(switch.iterdir()) == []
    assert lab_plugin.attachments(own) == []
    assert "example-engine 1.0.0" in venv.run("userspace-cni", "engines")


def test_a_new_engine_passes_its_tests_and_attaches(
    own: Plugin, venv: Virtualenv, node: Node, tmp_path: Path
) -> None:
    package = tmp_path / "userspace-cni-my-switch"
    said = venv.run("userspace-cni", "new-engine", "my-switch", "--directory", tmp_path)
    assert f"wrote {package}" in said
    venv.install("hatchling", "userspace-cni[testing]")
    venv.install("--no-build-isolation", package)
    assert " passed" in venv.run("python", "-m", "pytest", "-p", "no:cacheprovider", package)

    switch = tmp_path / "switch"
    switch.mkdir()
    own.settings(f'[engines.my-switch]\ndirectory = "{switch}"\n')
    conf = _host("my-switch") | {"host": {"engine": "my-switch", "iftype": "note"}}
    netns = node.netns("box")
    result = own.call("ADD", conf, netns=netns, node=node).result
    assert len(list(switch.iterdir())) == 1
    own.call("CHECK", conf | {"prevResult": result}, netns=netns, node=node).succeeded()
    own.call("DEL", conf, netns=netns, node=node).succeeded()
    assert list(switch.iterdir()) == []


@pytest.mark.parametrize("name", ["", "My", "a_b", "-a", "a/b"])
def test_a_name_that_no_engine_can_have(name: str, tmp_path: Path) -> None:
    with pytest.raises(CniError, match="lower-case letters"):
        write(name, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_kubeconfig_is_read_once_its_extra_is_installed(
    own: Plugin, venv: Virtualenv, node: Node, tmp_path: Path
) -> None:
    venv.install("example-engine")
    switch = tmp_path / "switch"
    switch.mkdir()
    own.settings(f'[engines.example]\ndirectory = "{switch}"\n')
    host = {"engine": "example", "iftype": "note"}
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_text("{}")
    conf = {"cniVersion": "1.1.0", "name": "n", "type": "userspace", "host": host}
    conf["kubeconfig"] = str(kubeconfig)
    pod = "K8S_POD_NAMESPACE=a;K8S_POD_NAME=b"
    refused = own.call("ADD", conf, netns=node.netns("box"), node=node, args=pod)
    assert refused.code == 7
    assert "pip install 'userspace-cni[kubernetes]'" in refused.text
    venv.install("userspace-cni[kubernetes]")
    refused = own.call("STATUS", conf, node=node)
    assert refused.code == 7
    assert f"kubeconfig {kubeconfig}: current-context: missing" in refused.text


@pytest.mark.parametrize(("distribution", "package"), DISTRIBUTIONS.items())
def test_a_wheel_is_typed_licensed_and_holds_its_package_alone(
    wheels: Wheels, distribution: str, package: str
) -> None:
    with zipfile.ZipFile(wheels.named(distribution)) as wheel:
        names = wheel.namelist()
        (metadata,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        fields = Parser().parsestr(wheel.read(metadata).decode())
        assert f"{package}/py.typed" in names
        assert {name.partition("/")[0] for name in names} == {package, metadata.partition("/")[0]}
        assert not [name for name in names if "__pycache__" in name or name.startswith("test")]
        assert fields["License-Expression"] == "Apache-2.0"
        (licence,) = (name for name in names if name.endswith("/licenses/LICENSE"))
        assert "Apache License" in wheel.read(licence).decode()


def test_the_core_needs_no_engine_and_has_an_extra_for_each(wheels: Wheels) -> None:
    with zipfile.ZipFile(wheels.named("userspace-cni")) as wheel:
        (metadata,) = (name for name in wheel.namelist() if name.endswith("METADATA"))
        fields = Parser().parsestr(wheel.read(metadata).decode())
    required = [value for value in fields.get_all("Requires-Dist", []) if "extra" not in value]
    assert sorted(value.partition(">")[0] for value in required) == ["attrs", "cattrs", "stevedore"]
    assert {"kubernetes", "linux", "vpp", "ovs", "shim", "all"} <= {
        *fields.get_all("Provides-Extra", [])
    }
