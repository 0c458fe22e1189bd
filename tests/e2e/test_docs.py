"""The documentation's examples are executed unchanged."""

from __future__ import annotations

import json
import re
import shutil
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import griffe
import pytest

from lab import wheels
from lab.node import Node
from userspace_cni import api, config, kernel, registry, runtime, testing
from userspace_cni.cni.request import Target
from userspace_cni.config import settings

if TYPE_CHECKING:
    from types import ModuleType

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)


def networks() -> list[Any]:
    found: list[Any] = []
    for page in PAGES:
        for text in blocks(page, "json"):
            example = json.loads(text)
            plugins = example.get("plugins", [example])
            found += [pytest.param(plugin, id=f"{page.stem}-{len(found)}") for plugin in plugins]
    return found


@pytest.mark.parametrize("network", networks())
def test_every_example_of_a_network_is_one(network: dict[str, Any]) -> None:
    conf = config.load(
        Target(
            network="docs",
            config={"name": "docs", **network},
        )
    )
    info = registry.host_engine(config.engine_name(conf, "host")).info
    host = config.engine_conf(conf.host, "host", info, {})
    container = registry.container_engine(config.engine_name(conf, "container")).info
    defaults = {"iftype": host.iftype, "netType": "none"}
    config.engine_conf(conf.container, "container", container, defaults)


def test_the_example_of_the_nodes_settings_is_one(tmp_path: Path) -> None:
    (example,) = blocks(ROOT / "docs/configuration.md", "toml")
    file = tmp_path / "config.toml"
    file.write_text(example)
    assert settings.load({settings.VARIABLE: str(file)}) == settings.Settings(
        log_file=Path("/var/log/userspace-cni.log"),
        engines={"vpp": {"api_socket": "/run/vpp/api.sock"}},
        daemon=settings.DaemonSettings(http="127.0.0.1:9469"),
    )


@pytest.mark.parametrize("module", [api, testing], ids=["api", "testing"])
def test_the_reference_has_every_public_name(module: ModuleType) -> None:
    page = ROOT / f"docs/reference/{module.__name__.rpartition('.')[2]}.md"
    shown = re.findall(rf"^::: {module.__name__}\.(\w+)$", page.read_text(), re.MULTILINE)
    assert sorted(shown) == sorted([*module.__all__, *(["sections"] if module is api else [])])


def test_the_reference_has_every_module_of_the_kernel_package() -> None:
    page = ROOT / "docs/reference/kernel.md"
    shown = re.findall(r"^::: userspace_cni\.kernel\.(\w+)$", page.read_text(), re.MULTILINE)
    modules = {path.stem for path in Path(*kernel.__path__).glob("*.py")}
    assert set(shown) == modules - {"__init__"}


def test_the_reference_shows_comments_of_fields_and_links() -> None:
    extensions = griffe.load_extensions(str(ROOT / "setup/reference.py"))
    core = griffe.load(
        "userspace_cni",
        search_paths=[ROOT / "core/src"],
        docstring_parser="google",
        extensions=extensions,
    )
    field = core["api.model.Attachment.interface"].docstring
    assert field.value.startswith("The name that the interface must have in the container.")
    method = core["api.engine.HostEngine.status"].docstring
    link = '<autoref identifier="userspace_cni.api.engine.HostEngine.add" optional>`add`</autoref>'
    assert f"Return if an {link} with *conf*" in method.value
    raised = [one for part in method.parsed if part.kind == "raises" for one in part.value]
    assert [str(one.annotation) for one in raised] == ["DataplaneUnavailable"]


def test_the_architecture_shows_the_layers_that_are_checked() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    (layers,) = (one["layers"] for one in contracts["contracts"] if one["type"] == "layers")
    (shown,) = blocks(ROOT / "docs/architecture.md", "text")
    assert shown.replace("│", "|").splitlines() == layers


def test_every_module_of_the_runtime_and_every_decision_is_on_the_page() -> None:
    page = (ROOT / "docs/architecture.md").read_text()
    modules = {path.stem for path in Path(*runtime.__path__).glob("*.py")} - {"__init__"}
    table = page.partition("### Modules of the runtime")[2].partition("Tests have")[0]
    assert set(re.findall(r"`(\w+)`[,| ]", table)) == modules | {"Attachment"}
    decisions = {path.name for path in (ROOT / "docs/adr").iterdir()}
    assert set(re.findall(r"^\d+\. .*\(adr/(.*)\)$", page, re.MULTILINE)) == decisions


#: Debian's default PATH, so that the reader's Python is Debian's.
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def followed(node: Node, *scripts: str) -> str:
    """Run *scripts* as a reader would, in a clone on a node without our files."""
    clone = node.dir / "clone"
    # Copy everything, because a package may have links to other directories.
    shutil.copytree(ROOT, clone, symlinks=True, ignore=shutil.ignore_patterns(".*"))
    patience = node.dir / "apt.conf"
    patience.write_text('DPkg::Lock::Timeout "300";\n')
    environ = {
        "PATH": PATH,
        "APT_CONFIG": str(patience),
        # A node has no network, so packages come from a directory instead of an index.
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(wheels.wheelhouse()),
    }
    shell = ["env", "-i", *(f"{name}={value}" for name, value in environ.items()), "sh", "-euxc"]
    return node.run([*shell, f"cd {clone}\n" + "\n".join(scripts)], timeout=170).stdout


def test_the_readme_installs() -> None:
    with Node() as node:
        (install,) = blocks(ROOT / "README.md", "sh")
        engines = "/opt/userspace-cni/bin/userspace-cni engines"
        said = followed(node, install, engines)
        assert node.path("/opt/cni/bin/userspace").exists()
        assert {"linux", "ovs", "vpp"} <= set(said.split())


def test_the_pages_for_operators_work_as_written() -> None:
    with Node() as node:
        (daemon,) = blocks(ROOT / "docs/daemon.md", "sh")
        said = followed(
            node,
            *blocks(ROOT / "docs/getting-started.md", "sh"),
            *blocks(ROOT / "docs/install.md", "sh"),
            # A lab node has no systemd, and must not write into the machine's.
            re.sub("^systemctl .*$", "", daemon, flags=re.MULTILINE).replace(
                "/etc/systemd", "/opt"
            ),
            "/opt/userspace-cni/bin/userspace-cni install --check --unit-dir /opt/system",
        )
        assert '"address": "10.88.7.2/24"' in said
        assert "1 packets transmitted, 1 received" in said
        assert "network blue" in said
        assert "/opt/system/userspace-cni.service" in said
        assert node.path("/opt/cni/bin/userspace").read_bytes().startswith(b"\x7fELF")
        assert node.veths() == []


def test_an_engine_is_written_as_the_tutorial_says() -> None:
    with Node() as node:
        said = followed(node, *blocks(ROOT / "docs/writing-engines.md", "sh"))
        assert said.count(" passed") == 2
        assert "veth pairs on a bridge" in said
        assert "1 packets transmitted, 1 received" in said
        assert node.veths() == []
