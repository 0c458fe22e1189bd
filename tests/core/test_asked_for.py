"""What others put into a request: Multus, a device plugin, whoever starts the container."""

from __future__ import annotations

from typing import Any

import pytest

from userspace_cni import config, handover
from userspace_cni.api import attachment_id, mac_address
from userspace_cni.cni.errors import CniError
from userspace_cni.cni.request import Request
from userspace_cni.config import NetConf


def _loaded(cni_args: dict[str, str] | None = None, /, **keys: Any) -> tuple[NetConf, Request]:
    raw = {"cniVersion": "1.0.0", "name": "n", "type": "userspace", "host": {}, **keys}
    request = Request(
        command="ADD", cni_version="1.0.0", network="n", config=raw, args=cni_args or {}
    )
    return config.load(request), request


_MAC = "02:00:00:00:00:01"


def test_a_mac_address_by_cni_args_must_be_opened_by_the_network() -> None:
    conf, request = _loaded({"MAC": _MAC})
    assert conf.requested_mac(request) is None
    with pytest.raises(CniError, match="lets nobody choose") as caught:
        conf.require_open(request)
    assert caught.value.code == 7
    conf, request = _loaded({"MAC": _MAC}, macFromArgs=True)
    conf.require_open(request)
    assert conf.requested_mac(request) == _MAC
    # What it has anyway, as podman repeats when it reloads a network.
    own = mac_address(attachment_id("n", "", ""), "container")
    conf, request = _loaded({"MAC": own.upper()})
    conf.require_open(request)
    # What counts before CNI_ARGS anyway.
    other = "02:00:00:00:00:02"
    for keys in ({"runtimeConfig": {"mac": other}}, {"args": {"cni": {"mac": other}}}):
        conf, request = _loaded({"MAC": _MAC}, **keys)
        conf.require_open(request)
        assert conf.requested_mac(request) == other


def test_what_multus_puts_in_for_a_device_is_taken() -> None:
    _loaded(deviceID="any", pciBusID="any", runtimeConfig={"deviceID": "0000:00:1f.0"})
    _loaded(resourceName="example.com/memif", resourceID="1")


def test_a_directory_in_the_container_must_leave_room_for_a_name() -> None:
    conf, _ = _loaded(containerDir="/" + "x" * 104)
    handover.require_possible(conf)
    conf, _ = _loaded(containerDir="/" + "x" * 105)
    with pytest.raises(CniError, match="containerDir") as caught:
        handover.require_possible(conf)
    assert caught.value.code == 7
