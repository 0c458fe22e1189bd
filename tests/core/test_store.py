"""The store of attachments."""

from __future__ import annotations

import json
import sqlite3
import stat
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from ipaddress import ip_address, ip_network
from typing import TYPE_CHECKING

import pytest
from attrs import evolve

from userspace_cni.api import HostPort, Kernel, Memif, VhostUser
from userspace_cni.cni.errors import CniError, Code
from userspace_cni.cni.result import Interface, Route
from userspace_cni.store import Record, Store

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from userspace_cni.api import Port

RECORD = Record(
    network="net",
    container_id="c1",
    ifname="eth0",
    netns="/run/netns/x",
    namespace="4:5",
    engine="example",
    config={"name": "net", "ü": [1, None, {"a": 0.5}]},
    args={"K8S_POD_NAME": "till-0"},
    path=("/a", "/b"),
    directory="/volumes/shared-dir",
    container_dir="/mnt",
)
PORT = HostPort(
    name="port",
    mac="02:00:00:00:00:01",
    mtu=1400,
    point_to_point=True,
    interfaces=(Interface(name="br0", mac="02:00:00:00:00:02", mtu=1500, socket_path="/run/s"),),
    routes=(
        Route(dst=ip_network("10.0.0.1/32"), scope=253),
        Route(dst=ip_network("::/0"), gw=ip_address("fe80::1"), table=0),
    ),
)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with closing(Store(tmp_path / "state", 5)) as store:
        yield store


_FORMAT_1 = """
CREATE TABLE attachment (
    id TEXT PRIMARY KEY, network TEXT NOT NULL, container_id TEXT NOT NULL, ifname TEXT NOT NULL,
    netns TEXT NOT NULL, namespace TEXT NOT NULL, engine TEXT NOT NULL, state TEXT NOT NULL,
    config TEXT NOT NULL, args TEXT NOT NULL, path TEXT NOT NULL, port TEXT, result TEXT
) STRICT;
INSERT INTO attachment
    VALUES ('1', 'net', 'c1', 'eth0', '', '', 'example', 'adding', '{}', '{}', '', NULL, NULL);
PRAGMA user_version = 1;
"""


def test_the_first_format_is_upgraded_by_the_fastest(store: Store) -> None:
    store.path.parent.mkdir()
    with closing(sqlite3.connect(store.path)) as old:
        old.executescript(_FORMAT_1)

    def read(_: int) -> list[Record]:
        with closing(Store(store.path.parent, 5)) as other:
            return other.all()

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(read, range(4)))
    (record,) = found[0]
    assert found == [[record]] * 4
    assert (record.container_id, record.directory, record.container_dir) == ("c1", "", "")
    store.begin(RECORD)
    assert store.get(RECORD.id) == RECORD


#: Ports as userspace-cni 0.1.0 wrote them, in both formats of the store.
_FORMER_PORT = (
    '{"name": "p", "mac": "02:00:00:00:00:01", "mtu": 1500, "point_to_point": false, '
    '"generation": "7", %s"lists": {"cniVersion": "1.1.0", "interfaces": [{"name": "p"}]}}'
)
_FORMER_PORTS: dict[str, Port] = {
    "": Kernel(),
    '"vhost_user": {"mode": "server", "socket": "/run/s/eth0.sock", "queues": 2}, ': VhostUser(
        mode="server", socket="/run/s/eth0.sock", queues=2
    ),
    '"memif": {"role": "client", "socket": "@a", "mode": "ip", "id": 3, "secret": "s3cret", '
    '"rx_queues": 2, "tx_queues": 1, "ring_size": 512, "buffer_size": 4096, "zero_copy": true}, ': (
        Memif(
            role="client",
            socket="@a",
            mode="ip",
            id=3,
            secret="s3cret",
            rx_queues=2,
            ring_size=512,
            buffer_size=4096,
            zero_copy=True,
        )
    ),
}


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("told", _FORMER_PORTS)
def test_the_ports_of_a_former_version_are_read(store: Store, version: int, told: str) -> None:
    if version == 1:
        store.path.parent.mkdir()
        with closing(sqlite3.connect(store.path)) as old:
            old.executescript(_FORMAT_1)
    else:
        store.begin(RECORD)
    with closing(sqlite3.connect(store.path)) as old, old:
        old.execute(
            "UPDATE attachment SET id = ?, network = 'net', state = 'attached', port = ?, "
            "result = '{}'",
            (RECORD.id, _FORMER_PORT % told),
        )
    record = store.get(RECORD.id)
    assert record is not None
    assert (record.state, record.damage) == ("attached", "")
    port = HostPort(
        name="p",
        mac="02:00:00:00:00:01",
        mtu=1500,
        interfaces=(Interface(name="p"),),
        generation="7",
        port=_FORMER_PORTS[told],
    )
    assert record.port == port
    store.commit(RECORD.id, port, {})
    with closing(sqlite3.connect(store.path)) as old:
        ((written,),) = old.execute("SELECT port FROM attachment")
    assert json.loads(written) == json.loads(_FORMER_PORT % told)


def test_a_record_goes_through_its_states_as_it_was_given(store: Store) -> None:
    store.begin(RECORD)
    assert store.get(RECORD.id) == RECORD
    store.commit(RECORD.id, PORT, {"cniVersion": "1.1.0", "ips": []})
    attached = evolve(
        RECORD, state="attached", port=PORT, result={"cniVersion": "1.1.0", "ips": []}
    )
    assert store.get(RECORD.id) == attached
    assert store.deleting() == []
    store.mark(RECORD.id, "deleting")
    assert store.deleting() == [evolve(attached, state="deleting")]
    store.remove(RECORD.id)
    store.remove(RECORD.id)
    assert store.all() == []


def test_records_outlive_the_process_and_are_told_apart(store: Store, tmp_path: Path) -> None:
    records = [
        RECORD,
        evolve(RECORD, ifname="eth1"),
        evolve(RECORD, container_id="c2"),
        evolve(RECORD, network="other"),
    ]
    for record in records:
        store.begin(record)
    with closing(Store(tmp_path / "state", 5)) as another:
        assert {record.id for record in another.all()} == {record.id for record in records}
        assert len(another.of_network("net")) == 3


def test_one_key_has_one_record(store: Store) -> None:
    store.begin(RECORD)
    with pytest.raises(CniError) as caught:
        store.begin(RECORD)
    assert caught.value.code == Code.IO_FAILURE


def test_reading_makes_no_file_and_no_directory(store: Store, tmp_path: Path) -> None:
    assert store.all() == []
    assert store.get("x") is None
    assert list(tmp_path.iterdir()) == []


def test_only_root_may_look(store: Store) -> None:
    """The store contains configurations, which may contain secrets."""
    store.begin(RECORD)
    assert stat.S_IMODE(store.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(store.path.parent.stat().st_mode) & 0o027 == 0


def test_many_processes_make_the_store_at_once(tmp_path: Path) -> None:
    def add(number: int) -> None:
        with closing(Store(tmp_path / "state", 30)) as store:
            store.begin(evolve(RECORD, container_id=f"c{number}"))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(add, range(24)))
    with closing(Store(tmp_path / "state", 5)) as store:
        assert len(store.all()) == 24


def test_a_directory_that_cannot_be_made_is_code_5(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with closing(Store(tmp_path / "file" / "state", 5)) as store, pytest.raises(CniError) as caught:
        store.begin(RECORD)
    assert caught.value.code == Code.IO_FAILURE
    assert str(tmp_path / "file" / "state") in caught.value.msg


def test_the_revision_changes_with_every_write_by_anyone(tmp_path: Path) -> None:
    with closing(Store(tmp_path, 10)) as store, closing(Store(tmp_path, 10)) as other:
        seen = [store.revision()]
        for writer in (store, other):
            writer.begin(evolve(RECORD, container_id=f"c{len(seen)}"))
            seen.append(store.revision())
            assert store.revision() == seen[-1]
        assert len({str(one) for one in seen}) == 3
        assert [line.network for line in store.outlines()] == ["net", "net"]
