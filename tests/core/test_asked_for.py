"""Values in a request that come from Multus, a device plugin or the container's owner."""

from __future__ import annotations

from typing import Any

import pytest

from userspace_cni import config, handover
from userspace_cni.api import attachment_id, mac_address
from userspace_cni.cni.errors import CniError, Problems
from userspace_cni.cni.request import Target
from userspace_cni.config import NetConf


def _loaded(**keys: Any) -> NetConf:
    return config.load(_target({}, keys))


def _target(cni_args: dict[str, str], keys: dict[str, Any]) -> Target:
    raw = {"cniVersion": "1.0.0", "name": "n", "type": "userspace", "host": {}, **keys}
    return Target(network="n", config=raw, args=cni_args)


def _mac(cni_args: dict[str, str], /, command: str = "ADD", **keys: Any) -> str | None:
    """Return the MAC address that a request asks for."""
    target, problems = _target(cni_args, keys), Problems()
    asked = config.ask(config.load(target), target, problems, command)
    problems.settle()
    return asked.mac


_MAC = "02:00:00:00:00:01"


def test_a_mac_address_by_cni_args_must_be_opened_by_the_network() -> None:
    assert _mac({"MAC": _MAC}, "CHECK") is None
    with pytest.raises(CniError, match="lets nobody choose") as caught:
        _mac({"MAC": _MAC})
    assert caught.value.code == 7
    assert _mac({"MAC": _MAC}, macFromArgs=True) == _MAC
    # The attachment's own address, which podman repeats when it reloads a network.
    own = mac_address(attachment_id("n", "", ""), "container")
    assert _mac({"MAC": own.upper()}) is None
    # The key mac takes precedence over CNI_ARGS.
    other = "02:00:00:00:00:02"
    for keys in ({"runtimeConfig": {"mac": other}}, {"args": {"cni": {"mac": other}}}):
        assert _mac({"MAC": _MAC}, **keys) == other


def test_what_multus_puts_in_for_a_device_is_taken() -> None:
    _loaded(deviceID="any", pciBusID="any", runtimeConfig={"deviceID": "0000:00:1f.0"})
    _loaded(resourceName="example.com/memif", resourceID="1")


def test_a_directory_in_the_container_must_leave_room_for_a_name() -> None:
    conf = _loaded(containerDir="/" + "x" * 104)
    handover.require_possible(conf)
    conf = _loaded(containerDir="/" + "x" * 105)
    with pytest.raises(CniError, match="containerDir") as caught:
        handover.require_possible(conf)
    assert caught.value.code == 7
