"""What the agent makes of hand-over files, both genuine and planted."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from agent.conftest import MEMIF, VHOST, Container, document
from lab.attachments import attachment
from userspace_cni import agent
from userspace_cni.agent import downward_api, sources
from userspace_cni.agent.sources import Found, Sources
from userspace_cni.api import CustomPort, Handoff, Memif, VhostUser
from userspace_cni.cni.errors import CniError
from userspace_cni.handover import Document, legacy, load

STATUS = "k8s.v1.cni.cncf.io/network-status"


def _read(container: Container) -> Found:
    return sources.read(sources.locate(str(container.directory), str(container.annotations)))


def _problem(container: Container) -> str:
    found = _read(container)
    assert found.documents == ()
    (problem,) = found.problems
    return problem


def test_a_socket_lies_beside_its_file_wherever_that_is_mounted(container: Container) -> None:
    container.hand_over(document())
    (found,) = agent.interfaces(str(container.directory), str(container.annotations))
    assert found.handoff.socket == f"{container.directory}/net1.sock"
    assert (found.network, found.engine, found.handoff.mac) == (
        "fast",
        "dpdk",
        "02:00:00:00:00:01",
    )
    assert isinstance(found.handoff.port, Memif)
    assert (found.handoff.port.id, found.handoff.port.rx_queues) == (7, 2)


def test_an_abstract_socket_has_no_place(container: Container) -> None:
    content = document()
    content["memif"]["socket"] = "@userspace-cni-1"
    container.hand_over(content)
    (found,) = _read(container).documents
    assert found.handoff.socket == "@userspace-cni-1"


def test_net2_comes_before_net10(container: Container) -> None:
    names = [f"net{number}" for number in range(1, 11)]
    for name in sorted(names):
        container.hand_over(document(name))
    found = _read(container)
    assert [d.handoff.interface for d in found.documents] == names
    assert found.named("net1") == found.documents[0]
    assert found.named("net") is None


def test_several_directories_and_none(container: Container, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "net2.json").write_text(json.dumps(document("net2")))
    container.hand_over(document("net1"))
    where = f"{container.directory}:{other}:{tmp_path}/absent"
    assert [d.handoff.interface for d in agent.interfaces(where)] == ["net1", "net2"]
    assert agent.interfaces(f"{tmp_path}/absent") == []


def test_where_to_look(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in (sources.DIRECTORY_VARIABLE, sources.ANNOTATIONS_VARIABLE):
        monkeypatch.delenv(variable, raising=False)
    usual = Sources(
        directories=("/var/run/userspace-cni",), annotations="/etc/podnetinfo/annotations"
    )
    assert sources.locate() == usual
    monkeypatch.setenv(sources.DIRECTORY_VARIABLE, "/a:/b")
    assert sources.locate().directories == ("/a", "/b")
    assert sources.locate("/c").directories == ("/c",)


def test_drafts_and_files_of_the_first_plugin_are_no_hand_overs(container: Container) -> None:
    (container.directory / ".net1.json").write_text("{")
    (container.directory / "configData-0123456789ab-net1.json").write_text("{}")
    (container.directory / "notes.txt").write_text("mine")
    assert _read(container) == Found(documents=(), problems=())


def _plant(container: Container, trap: str) -> None:
    file = container.directory / "net1.json"
    match trap:
        case "symbolic link":
            file.symlink_to("/etc/shadow")
        case "FIFO":
            os.mkfifo(file)
        case "directory":
            file.mkdir()
        case "socket":
            with socket.socket(socket.AF_UNIX) as server:
                server.bind(str(file))
        case "larger than":
            with file.open("wb") as stream:
                stream.truncate(1 << 33)
        case "not JSON":
            file.write_bytes(b"\xff{")
        case "nested too deeply":
            file.write_text("[" * 200_000)
        case "no JSON object":
            file.write_text("[]")


@pytest.mark.parametrize(
    "trap",
    [
        "symbolic link",
        "FIFO",
        "directory",
        "socket",
        "larger than",
        "not JSON",
        "nested too deeply",
        "no JSON object",
    ],
)
def test_a_trap_is_named_and_the_rest_is_read(container: Container, trap: str) -> None:
    _plant(container, trap)
    container.hand_over(document("net2"))
    found = _read(container)
    assert [d.handoff.interface for d in found.documents] == ["net2"]
    (problem,) = found.problems
    assert problem.startswith(f"{container.directory}/net1.json")
    assert trap in problem
    with pytest.raises(CniError, match=trap):
        agent.interfaces(str(container.directory), str(container.annotations))


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"version": 2}, "upgrade"),
        ({"version": "1"}, "version"),
        ({"interface": "../../etc"}, "interface"),
        ({"interface": 7}, "interface: expected a string"),
        ({"mac": "02:00:00:00:00:01,path=/x"}, "mac"),
        ({"mtu": -1}, "mtu"),
        ({"mtu": 10**20}, "mtu"),
        ({"ips": [{"address": "not one"}]}, "ips[0].address"),
        ({"routes": {}}, "routes"),
        ({"network": "a\nb"}, "network"),
        ({"memif": None, "vhostUser": []}, "vhostUser"),
    ],
)
def test_a_value_that_cannot_be_used_is_named(
    container: Container, change: dict[str, Any], complaint: str
) -> None:
    container.hand_over(document() | change, "net1.json")
    assert complaint in _problem(container)


@pytest.mark.parametrize("name", ["", ".", "..", "../x.sock", "/x.sock", "a/b", "@", "a\0b"])
def test_a_socket_is_a_bare_name(container: Container, name: str) -> None:
    content = document()
    content["memif"]["socket"] = name
    container.hand_over(content)
    assert "memif.socket: expected the bare name" in _problem(container)


@pytest.mark.parametrize("secret", ["s3cret\n", ["s3cret"]])
def test_a_secret_is_not_repeated(container: Container, secret: object) -> None:
    content = document()
    content["memif"]["secret"] = secret
    container.hand_over(content)
    problem = _problem(container)
    assert "memif.secret" in problem
    assert "s3cret" not in problem


def test_two_files_about_one_interface(container: Container) -> None:
    container.hand_over(document())
    container.hand_over(document(), "other.json")
    found = _read(container)
    assert len(found.documents) == 1
    assert "other.json: another file tells of net1 already" in found.problems[0]


def test_keys_of_a_later_edition_are_passed_over(container: Container) -> None:
    content = document() | {"colour": "blue"}
    content["memif"]["colour"] = "blue"
    container.hand_over(content)
    assert _read(container).problems == ()


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"interface": "a/b"}, "interface: expected an interface name"),
        ({"mtu": -1}, "mtu: expected 0 to"),
        ({"version": 2}, "version: expected 1, got 2"),
        ({"ips": 7}, "ips"),
        ({"memif": {"secret": 7}}, "memif.secret: expected a string"),
        ({"network": 7}, "network: expected a string"),
    ],
)
def test_a_document_that_cannot_be_used_is_told_with_the_remedy(
    container: Container, change: dict[str, Any], says: str
) -> None:
    container.hand_over(document("net1") | change, "net1.json")
    (problem,) = _read(container).problems
    assert f"{container.directory}/net1.json: {says}" in problem
    remedy = "upgrade this one" if "version" in change else "DEL and ADD write it again"
    assert remedy in problem


@given(st.dictionaries(st.sampled_from(sorted(document())), _JSON))
def test_whatever_a_document_says_it_is_read_or_refused(change: dict[str, Any]) -> None:
    try:
        found = load(document() | change, "/shared")
    except CniError:
        return
    assert isinstance(found, Document)
    assert found.handoff.socket.startswith(("/shared/", "@")) or not found.handoff.socket


# -- annotations


def _status(**device_info: Any) -> list[dict[str, Any]]:
    return [
        {"name": "cbr0", "interface": "eth0", "ips": ["10.0.0.2"], "default": True, "dns": {}},
        {
            "name": "default/fast",
            "interface": "net1",
            "ips": ["10.1.0.2", "fd00::2"],
            "mac": "02:00:00:00:00:02",
            "mtu": 9000,
            "dns": {},
            "device-info": device_info,
        },
    ]


def _annotate(container: Container, key: str, value: Any, **more: Any) -> None:
    container.annotate(of_pod={key: json.dumps(value, indent=4), **more})


@pytest.mark.parametrize("key", [STATUS, "k8s.v1.cni.cncf.io/networks-status"])
def test_device_info_of_a_memif(container: Container, key: str) -> None:
    port = {"role": "slave", "path": "/shared/net1.sock", "mode": "punt"}
    info = _status(type="memif", version="1.1.0", memif=port)
    _annotate(container, key, info)
    (found,) = _read(container).documents
    handoff = found.handoff
    assert (handoff.interface, handoff.mac, handoff.mtu) == ("net1", "02:00:00:00:00:02", 9000)
    assert [str(ip.address) for ip in handoff.ips] == ["10.1.0.2/32", "fd00::2/128"]
    assert handoff.port == Memif(role="client", socket="/shared/net1.sock", mode="inject-punt")


def test_device_info_of_a_vhost_user_port(container: Container) -> None:
    port = {"mode": "server", "path": "/shared/net1.sock"}
    info = _status(**{"type": "vhost-user", "version": "1.1.0", "vhost-user": port})
    _annotate(container, STATUS, info)
    (found,) = _read(container).documents
    assert isinstance(found.handoff.port, VhostUser)
    assert found.handoff.port.mode == "server"


def test_devices_of_others_are_passed_over(container: Container) -> None:
    info = _status(type="pci", version="1.1.0", pci={"pci-address": "0000:18:02.5"})
    _annotate(container, STATUS, info)
    assert _read(container) == Found(documents=(), problems=())


def _configuration_data(**socket: str) -> list[dict[str, Any]]:
    return [
        {
            "containerId": "0123456789abcdef",
            "ifName": "net1",
            "name": "fast",
            "config": {"engine": "ovs-dpdk", "iftype": "vhostuser", "memif": {}, "bridge": {},
                       "vhost": {"mode": "server"} | socket},
            "ipResult": {"cniVersion": "0.4.0", "dns": {},
                         "ips": [{"version": "4", "address": "10.1.0.2/24"}]},
        }
    ]  # fmt: skip


@pytest.mark.parametrize("mapped", ["/shared", "/shared/"])
def test_what_the_first_plugin_wrote(container: Container, mapped: str) -> None:
    data = _configuration_data(socketfile="0123-net1.sock")
    _annotate(container, "userspace/configuration-data", data, **{"userspace/mapped-dir": mapped})
    (found,) = _read(container).documents
    assert found.handoff.socket == "/shared/0123-net1.sock"
    assert found.engine == "dpdk"
    assert [str(ip.address) for ip in found.handoff.ips] == ["10.1.0.2/24"]


@pytest.mark.parametrize(
    ("annotations", "complaint"),
    [
        ({STATUS: "{"}, "is not JSON"),
        ({STATUS: "{}"}, "expected a list"),
        ({STATUS: "[" * 100_000}, "nested too deeply"),
        ({STATUS: json.dumps(_status(type="memif", memif={"role": "king"}))}, "path of net1"),
        (
            {STATUS: json.dumps(_status(type="memif", memif={"role": "king", "path": "/x"}))},
            "role: expected one of",
        ),
        (
            {"userspace/configuration-data": json.dumps(_configuration_data(socketfile="x"))},
            "userspace/mapped-dir",
        ),
        (
            {
                "userspace/configuration-data": json.dumps(_configuration_data(socketfile="../x")),
                "userspace/mapped-dir": "/shared",
            },
            "bare name",
        ),
    ],
)
def test_an_annotation_that_cannot_be_used_is_named(
    container: Container, annotations: dict[str, str], complaint: str
) -> None:
    container.annotate(of_pod=annotations)
    assert complaint in _problem(container)


def test_the_most_telling_source_counts(container: Container) -> None:
    port = {"role": "slave", "path": "/elsewhere/net1.sock"}
    _annotate(container, STATUS, _status(type="memif", version="1.1.0", memif=port))
    container.hand_over(document(port=VHOST))
    (found,) = _read(container).documents
    assert isinstance(found.handoff.port, VhostUser)


def test_a_port_of_another_kind_comes_back_from_the_annotations(container: Container) -> None:
    told_of = attachment(network="fast", ifname="net1")
    port = CustomPort(kind="af_xdp", socket="/node/x.sock", role="server", values={"queues": [3]})
    handoff = Handoff(interface="net1", iftype="af_xdp", net_type="none", port=port)
    told = legacy.describe(told_of, handoff, "xdp")
    _annotate(container, legacy.CONFIGURATION_DATA, [told], **{legacy.MAPPED_DIR: "/mnt/"})
    (found,) = _read(container).documents
    assert found.engine == "xdp"
    assert found.handoff == evolve(handoff, port=evolve(port, socket="/mnt/x.sock"))
    for broken in ({"kind": "memif"}, {"socket": "../x"}, {"values": 7}, {"role": "king"}):
        told["config"]["port"] = {"kind": "af_xdp", "values": {}} | broken
        _annotate(container, legacy.CONFIGURATION_DATA, [told], **{legacy.MAPPED_DIR: "/mnt/"})
        assert f"port of net1.{next(iter(broken))}: expected" in _problem(container)


def test_annotations_are_quoted_as_go_does() -> None:
    text = r'a/b="x=\"y\"\n\t\\ \u00e9\x41\U0001F600"' + '\n\nc=""\n'
    assert downward_api.parse(text) == {"a/b": 'x="y"\n\t\\ éA😀', "c": ""}
    for bad in ("a", "a=b", 'a="b', 'a="b"c'):
        with pytest.raises(ValueError, match="line 1"):
            downward_api.parse(bad)


@given(st.dictionaries(st.from_regex(r"[a-z./-]+", fullmatch=True), st.text()))
def test_every_annotation_comes_back(values: dict[str, str]) -> None:
    text = "".join(f"{key}={json.dumps(value)}\n" for key, value in values.items())
    encodable = all(
        not 0xD800 <= ord(c) < 0xE000 and ord(c) < 0x10000 for v in values.values() for c in v
    )
    if encodable:
        assert downward_api.parse(text) == values


@given(st.text())
def test_whatever_annotations_say_they_are_read_or_refused(text: str) -> None:
    try:
        values = downward_api.parse(text)
    except ValueError:
        return
    assert all(isinstance(value, str) for value in values.values())


def test_the_document_of_memif_defaults() -> None:
    assert load(document(), "/d").handoff.port == Memif(
        role=MEMIF.role, socket="/d/net1.sock", id=7, rx_queues=2, tx_queues=2
    )
