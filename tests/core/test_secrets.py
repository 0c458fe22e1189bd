"""A memif's secret never appears in errors or in files that other users can read."""

from __future__ import annotations

import json
import stat
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest
from attrs import field, frozen

from userspace_cni import config
from userspace_cni.api import EngineInfo
from userspace_cni.cni.errors import CniError
from userspace_cni.cni.request import Target
from userspace_cni.store import Store

if TYPE_CHECKING:
    from pathlib import Path

_SECRET = "s3cret"


@frozen(kw_only=True)
class _Section:
    secret: str = field(default="", repr=False)


_INFO = EngineInfo(
    name="e",
    api_version=(1, 0),
    summary="e",
    interface_types=("memif",),
    network_types=("none",),
    sections={"memif": _Section},
)


@pytest.mark.parametrize(
    "host",
    [
        {"memif": {"secret": [_SECRET]}},
        {"memif": {"secret": {"is": _SECRET}}},
        {"memif": {"secrt": _SECRET}},
        {"memif": {"password": _SECRET}},
        {"memif": _SECRET},
        {"memif": [_SECRET]},
        {"secret": _SECRET},
        {"memiff": {"secret": _SECRET}},
    ],
)
def test_no_error_has_the_secret(host: dict[str, Any]) -> None:
    with pytest.raises(CniError) as caught:
        config.engine_conf({"iftype": "memif", **host}, "host", _INFO, {})
    assert _SECRET not in f"{caught.value.msg} {caught.value.details}"


@pytest.mark.parametrize(
    "keys", [{"hosts": {"memif": {"secret": _SECRET}}}, {"secret": _SECRET}, {"secrt": _SECRET}]
)
def test_nor_has_that_of_a_network(keys: dict[str, Any]) -> None:
    raw = {"cniVersion": "1.0.0", "name": "n", "type": "userspace", "host": {}, **keys}
    with pytest.raises(CniError) as caught:
        config.load(Target(network="n", config=raw))
    assert _SECRET not in json.dumps(caught.value.to_json("1.0.0"))


def test_the_store_is_for_root_alone(tmp_path: Path) -> None:
    for _ in range(2):
        with closing(Store(tmp_path, 1)) as store:
            store.require_writable()
            modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
            assert modes == dict.fromkeys(modes, 0o600)
        # Earlier versions created it with this mode.
        store.path.chmod(0o640)
