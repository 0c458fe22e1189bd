"""The documentation's examples are run as they stand."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from lab.node import Node
from userspace_cni import config, registry, settings
from userspace_cni.cni.request import Request

if TYPE_CHECKING:
    from lab.plugin import Plugin

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
        Request(
            command="ADD",
            cni_version="1.0.0",
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
        engines={"linux": {}},
        node=settings.NodeSettings(http="127.0.0.1:9469"),
    )


def test_getting_started_works_as_written(plugin: Plugin) -> None:
    script = "\n".join(blocks(ROOT / "docs/getting-started.md", "sh"))
    with Node() as node:
        bin_dir = node.path("/opt/cni/bin")
        for entry in plugin.bin_dir.iterdir():
            (bin_dir / entry.name).symlink_to(entry.resolve())
        plugin.serve(node)
        done = node.run(
            ["sh", "-euxc", f"cd {node.dir}; PATH=$PATH:{Path(sys.executable).parent}\n{script}"],
            env=plugin.env,
        )
        assert '"address": "10.88.7.2/24"' in done.stdout
        assert "1 packets transmitted, 1 received" in done.stdout
        assert "network blue" in done.stdout
        assert node.veths() == []
