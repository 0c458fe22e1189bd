"""The table ``[engines.vpp]``, and the choice of the switch."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest

from userspace_cni import config
from userspace_cni.api import CniError, EngineContext
from userspace_cni.config.settings import Settings
from userspace_cni_vpp.host import VppHostEngine
from userspace_cni_vpp.settings import VppSettings


def _key(table: dict[str, Any], section: dict[str, Any]) -> str:
    settings = Settings(engines={"vpp": table}).of_engine("vpp", VppSettings)
    engine = VppHostEngine(EngineContext(settings=settings, lock=nullcontext))
    raw = {"iftype": "memif", "netType": "none", "vpp": section}
    return engine.switch_key(config.engine_conf(raw, "host", VppHostEngine.info, {}))


@pytest.mark.parametrize(
    ("table", "section"),
    [
        ({}, {}),
        ({}, {"apiDir": "/opt/vpp/api"}),
        ({}, {"apiSocket": "/run/vpp/api.sock"}),
        ({"api_socket": "/run/vpp/api.sock", "timeout": 3}, {}),
        ({"api_socket": "/elsewhere"}, {"apiSocket": "/run/vpp/api.sock"}),
    ],
)
def test_networks_on_one_switch_have_one_key(
    table: dict[str, Any], section: dict[str, Any]
) -> None:
    assert _key(table, section) == "/run/vpp/api.sock"


def test_those_on_another_have_another() -> None:
    assert _key({}, {"apiSocket": "/elsewhere"}) == _key({"api_socket": "/elsewhere"}, {})
    assert _key({}, {"apiSocket": "/elsewhere"}) != _key({}, {})


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ({"api_socket": "api.sock"}, "engines.vpp.api_socket: expected an absolute path"),
        ({"timeout": True}, "engines.vpp.timeout: expected a number"),
        ({"apiSocket": "/x"}, 'engines.vpp.apiSocket: unknown key with value "/x"'),
    ],
)
def test_a_wrong_setting_is_told(table: dict[str, Any], says: str) -> None:
    with pytest.raises(CniError, match="node settings") as caught:
        _key(table, {})
    assert says in caught.value.msg
