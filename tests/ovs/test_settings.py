"""The table ``[engines.ovs]``, and the choice of the switch."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest

from userspace_cni import config
from userspace_cni.api import CniError, EngineContext
from userspace_cni.config.settings import Settings
from userspace_cni_ovs.host import OvsHostEngine
from userspace_cni_ovs.settings import OvsSettings


def _key(table: dict[str, Any], section: dict[str, Any]) -> str:
    settings = Settings(engines={"ovs": table}).of_engine("ovs", OvsSettings)
    engine = OvsHostEngine(EngineContext(settings=settings, lock=nullcontext))
    raw = {"iftype": "veth", "bridge": {"bridgeName": "br0"}, "ovs": section}
    return engine.switch_key(config.engine_conf(raw, "host", OvsHostEngine.info, {}))


@pytest.mark.parametrize(
    ("table", "section"),
    [
        ({}, {}),
        ({}, {"ifaceIdFromArgs": True}),
        ({}, {"db": "unix:/run/openvswitch/db.sock"}),
        ({}, {"db": "/run/openvswitch/db.sock"}),
        ({"db": "/run/openvswitch/db.sock"}, {}),
        ({"db": "tcp:127.0.0.1:6640"}, {"db": "unix:/run/openvswitch/db.sock"}),
    ],
)
def test_networks_on_one_switch_have_one_key(
    table: dict[str, Any], section: dict[str, Any]
) -> None:
    assert _key(table, section) == "unix:/run/openvswitch/db.sock"


def test_those_on_another_have_another() -> None:
    assert _key({}, {"db": "tcp:127.0.0.1:6640"}) == _key({"db": "tcp:127.0.0.1:6640"}, {})
    assert _key({}, {"db": "tcp:127.0.0.1:6640"}) != _key({}, {})


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ({"db": "localhost"}, "engines.ovs.db: expected unix:PATH, tcp:HOST:PORT or ssl:HOST:PORT"),
        ({"timeout": 0}, "engines.ovs.timeout: expected a number of seconds above 0"),
        ({"ca_cert": "ca.pem"}, "engines.ovs.ca_cert: expected an absolute path"),
        ({"data_base": ""}, "engines.ovs.data_base: unknown key"),
    ],
)
def test_a_wrong_setting_is_told(table: dict[str, Any], says: str) -> None:
    with pytest.raises(CniError, match="node settings") as caught:
        _key(table, {})
    assert says in caught.value.msg


def test_a_wrong_address_in_a_network_is_told() -> None:
    with pytest.raises(CniError, match=r"host\.ovs\.db: expected unix:PATH"):
        _key({}, {"db": "localhost"})
