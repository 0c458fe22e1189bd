"""What can be read of a network configuration that nobody has judged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from userspace_cni.config import RecordedConf

_KEYS = (
    *("host", "ipam", "sharedDir", "kubeconfig", "runtimeConfig", "prevResult"),
    *("logFile", "logLevel", "cniVersion"),
)
_SCALARS = st.none() | st.booleans() | st.integers() | st.text(max_size=3)
_ANYTHING = _SCALARS | st.lists(_SCALARS, max_size=2) | st.dictionaries(st.text(), _SCALARS)


def test_what_is_there_is_read() -> None:
    conf = RecordedConf(
        {
            "host": {"engine": "linux"},
            "ipam": {"type": "host-local"},
            "sharedDir": "/s",
            "kubeconfig": "/k",
            "runtimeConfig": {"mac": "m"},
            "prevResult": {"cniVersion": "1.0.0", "ips": [{"address": "10.0.0.2/24"}]},
            "logFile": "/l",
            "logLevel": "DEBUG",
        }
    )
    assert (conf.host_engine, conf.ipam_type) == ("linux", "host-local")
    assert (conf.shared_dir, conf.kubeconfig) == ("/s", "/k")
    assert conf.runtime_config == {"mac": "m"}
    assert len(conf.previous.ips) == 1
    assert (conf.log_file, conf.log_level) == (Path("/l"), "debug")


@given(st.dictionaries(st.sampled_from(_KEYS), _ANYTHING))
def test_what_is_not_what_it_should_be_reads_as_absent(raw: dict[str, Any]) -> None:
    conf = RecordedConf({key: raw[key] for key in raw if key != "prevResult"})
    assert isinstance(conf.host_engine, str)
    assert isinstance(conf.ipam_type, str)
    assert conf.shared_dir is None or isinstance(conf.shared_dir, str)
    assert isinstance(conf.kubeconfig, str)
    assert conf.runtime_config is not None
    assert conf.log_level in ("", "debug", "info", "warning", "error")
    assert conf.log_file is None or conf.log_file.is_absolute()
    assert not conf.previous.ips


@pytest.mark.parametrize("previous", [None, [], "result", 7, {}])
def test_no_previous_result_is_an_empty_one(previous: object) -> None:
    assert not RecordedConf({"prevResult": previous}).previous.interfaces
