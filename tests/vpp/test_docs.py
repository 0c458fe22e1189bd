"""The examples on the engine's page are valid."""

from __future__ import annotations

import json
import re
import tomllib
from contextlib import nullcontext
from pathlib import Path

import attrs

from userspace_cni import config
from userspace_cni.api import EngineContext
from userspace_cni.config.decoding import key_of
from userspace_cni.config.settings import Settings
from userspace_cni_vpp.host import VppHostEngine
from userspace_cni_vpp.settings import VppSettings

PAGE = (Path(__file__).parents[2] / "docs/engines/vpp.md").read_text()


def _blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)


def test_every_example_is_a_network() -> None:
    examples = _blocks("json")
    assert examples
    for text in examples:
        for plugin in json.loads(text)["plugins"]:
            conf = config.engine_conf(plugin["host"], "host", VppHostEngine.info, {})
            assert not list(VppHostEngine(EngineContext(lock=nullcontext)).problems(conf))


def test_the_nodes_settings_are_known() -> None:
    (text,) = _blocks("toml")
    engines = tomllib.loads(text)["engines"]
    assert Settings(engines=engines).of_engine("vpp", VppSettings)
    assert engines["vpp"].keys() == {a.name for a in attrs.fields(VppSettings)}


def test_every_key_is_described() -> None:
    for name, section in VppHostEngine.info.sections.items():
        for attribute in attrs.fields(section):
            key = key_of(attribute)
            assert f"`{key}`" in PAGE or f"host.{name}.{key}" in PAGE, (name, key)
