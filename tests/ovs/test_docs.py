"""The examples on the engine's page are valid."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import attrs
import pytest

from userspace_cni import config
from userspace_cni.application import ApplicationEngine
from userspace_cni.config.decoding import key_of
from userspace_cni.config.settings import Settings
from userspace_cni_ovs import ports
from userspace_cni_ovs.host import OvsHostEngine
from userspace_cni_ovs.settings import OvsSettings

PAGE = (Path(__file__).parents[2] / "docs/engines/ovs.md").read_text()


def _blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("text", _blocks("json"))
def test_every_example_is_a_network(text: str) -> None:
    network: dict[str, Any] = json.loads(text)
    conf = config.engine_conf(network["host"], "host", OvsHostEngine.info, {})
    assert list(ports.problems(conf)) == []


def test_the_nodes_settings_are_known() -> None:
    (text,) = _blocks("toml")
    engines = tomllib.loads(text)["engines"]
    assert Settings(engines=engines).of_engine("ovs", OvsSettings)
    assert engines["ovs"].keys() == {a.name for a in attrs.fields(OvsSettings)}


@pytest.mark.parametrize("info", [OvsHostEngine.info, ApplicationEngine.info])
def test_every_section_is_described(info: Any) -> None:

    for name, section in info.sections.items():
        for attribute in attrs.fields(section):
            if (name, attribute.name) not in {("memif", "role"), ("memif", "mode")}:
                assert f"`{key_of(attribute)}`" in PAGE, (name, attribute.name)
