"""A database reached over the network, with and without TLS."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from lab.ovs_lab import OvsLab, vhost

pytestmark = pytest.mark.own_process("a lab node has namespaces of its own")


@pytest.fixture
def certificate(lab: OvsLab, tmp_path: Path) -> tuple[Path, Path]:
    """A key and its certificate, which both ends use and trust."""
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=lab"),
            *("-days", "2", "-keyout", key, "-out", certificate),
        ],
        check=True,
        capture_output=True,
    )
    lab.ovs.vsctl("--no-wait", "set-ssl", str(key), str(certificate), str(certificate))
    return key, certificate


def at(db: str) -> dict[str, object]:
    config = vhost()
    config["host"] = config["host"] | {"ovs": {"db": db}}
    return config


def test_by_tcp(lab: OvsLab) -> None:
    lab.ovs.listen("ptcp:6640:127.0.0.1")
    container = lab.attach(at("tcp:127.0.0.1:6640"))
    assert lab.ovs.ports("br0") == [container.port]
    container.check().succeeded()
    container.delete()


def test_nobody_listens(lab: OvsLab) -> None:
    outcome = lab.container(at("tcp:127.0.0.1:6639")).call("ADD")
    assert outcome.code == 11
    assert "tcp:127.0.0.1:6639" in outcome.text


@pytest.mark.one_process("the daemon reads its settings once")
def test_by_tls(lab: OvsLab, certificate: tuple[Path, Path], tmp_path: Path) -> None:
    lab.ovs.listen("pssl:6641:127.0.0.1")
    container = lab.container(at("ssl:127.0.0.1:6641"))
    refused = container.call("ADD")
    assert refused.code == 7
    assert "engines.ovs" in refused.text
    assert "private_key" in refused.text

    key, cert = certificate
    settings = Path(lab.plugin.env["USERSPACE_CNI_CONFIG"])
    own = tmp_path / "tls.toml"
    tls = "".join(
        f'{name} = "{path}"\n'
        for name, path in (("private_key", key), ("certificate", cert), ("ca_cert", cert))
    )
    own.write_text(f"{settings.read_text()}\n{tls}")
    environ = {"USERSPACE_CNI_CONFIG": str(own)}
    result = container.call("ADD", environ=environ).result
    assert lab.ovs.ports("br0") == [result["interfaces"][0]["name"]]
    container.call("DEL", environ=environ).succeeded()
