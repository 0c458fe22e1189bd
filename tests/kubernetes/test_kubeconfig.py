"""Kubeconfig files, and the client that uses them."""

from __future__ import annotations

import json
import socket
import sys
import threading
import time
from base64 import b64encode
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from lab.kubernetes_api import NAMESPACE, POD, TOKEN, Authority, KubernetesApi
from userspace_cni import deadline
from userspace_cni.cni.errors import CniError
from userspace_cni.kubernetes import client, kubeconfig
from userspace_cni.kubernetes.client import Client

if TYPE_CHECKING:
    from collections.abc import Iterator


def _data(path: Path) -> str:
    return b64encode(path.read_bytes()).decode()


def _name(path: Path) -> str:
    """Read the pod from the API server; return its name."""
    return str(Client(str(path)).get_pod(NAMESPACE, POD)["metadata"]["name"])


def _refused(path: Path) -> CniError:
    with pytest.raises(CniError) as caught:
        _name(path)
    assert TOKEN not in str(caught.value)
    return caught.value


def _cluster(api: KubernetesApi, **keys: Any) -> dict[str, Any]:
    """Return a cluster without an authority, with *keys* changed; ``_`` stands for ``-``."""
    own = {"server": f"https://127.0.0.1:{api.port}"}
    return own | {key.replace("_", "-"): value for key, value in keys.items()}


# -- what works


@pytest.mark.parametrize("form", ["path", "relative", "data", "name", "insecure", "slash"])
def test_ways_to_know_the_server(api: KubernetesApi, tmp_path: Path, form: str) -> None:
    authority = api.authority.path("ca.crt")
    match form:
        case "path":
            cluster = _cluster(api, certificate_authority=str(authority))
        case "relative":
            (tmp_path / "pki").mkdir()
            (tmp_path / "pki/ca.crt").write_bytes(authority.read_bytes())
            cluster = _cluster(api, certificate_authority="pki/ca.crt")
        case "data":
            cluster = _cluster(
                api,
                certificate_authority_data=_data(authority),
                certificate_authority="/nowhere",
                disable_compression=True,
                extensions=[],
            )
        case "name":
            cluster = _cluster(
                api,
                certificate_authority=str(authority),
                tls_server_name="api.test",
                server=f"https://localhost:{api.port}",
            )
        case "insecure":
            cluster = _cluster(api, insecure_skip_tls_verify=True)
        case "slash":
            cluster = _cluster(api, certificate_authority=str(authority))
            cluster["server"] += "/"
    assert _name(api.kubeconfig(tmp_path / "kubeconfig", cluster=cluster)) == POD


@pytest.mark.parametrize("form", ["token", "file", "certificate", "certificate data"])
def test_ways_to_say_who_we_are(api: KubernetesApi, tmp_path: Path, form: str) -> None:
    certificate, key = api.authority.path("client.crt"), api.authority.path("client.key")
    match form:
        case "token":
            user = {"token": TOKEN}
        case "file":
            (tmp_path / "token").write_text(f"{TOKEN}\n")
            user = {"tokenFile": "token", "token": "old"}
        case "certificate":
            user = {"client-certificate": str(certificate), "client-key": str(key)}
        case _:
            user = {"client-certificate-data": _data(certificate), "client-key-data": _data(key)}
    assert _name(api.kubeconfig(tmp_path / "kubeconfig", user=user)) == POD


def test_a_token_is_read_anew(api: KubernetesApi, tmp_path: Path) -> None:
    token = tmp_path / "token"
    path = api.kubeconfig(tmp_path / "kubeconfig", user={"tokenFile": str(token)})
    token.write_text("expired")
    assert "does not accept the user of kubeconfig" in str(_refused(path))
    token.write_text(TOKEN)
    assert _name(path) == POD


def test_json_is_yaml_and_the_server_may_have_a_path(api: KubernetesApi, tmp_path: Path) -> None:
    path = api.kubeconfig(tmp_path / "kubeconfig")
    content = yaml.safe_load(path.read_text())
    path.write_text(json.dumps(content))
    assert _name(path) == POD
    content["clusters"][0]["cluster"]["server"] += "/k8s/clusters/c-1/"
    path.write_text(json.dumps(content))
    said = "could not find /k8s/clusters/c-1/api/v1/namespaces/shop/pods/till-0"
    assert said in str(_refused(path))


def test_proxies_are_not_used(
    api: KubernetesApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("https_proxy", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    assert _name(api.kubeconfig(tmp_path / "kubeconfig")) == POD


# -- what does not


def test_a_server_of_another_authority_is_refused(api: KubernetesApi, tmp_path: Path) -> None:
    other = Authority.make(tmp_path / "other")
    cluster = _cluster(api, certificate_authority=str(other.path("ca.crt")))
    for wrong in (cluster, _cluster(api)):
        refused = _refused(api.kubeconfig(tmp_path / "kubeconfig", cluster=wrong))
        assert refused.code == 7
        assert "has a certificate that is not trusted" in refused.msg
        assert "certificate-authority" in refused.details
    cluster = _cluster(
        api,
        certificate_authority=str(api.authority.path("ca.crt")),
        tls_server_name="other.test",
    )
    refused = _refused(api.kubeconfig(tmp_path / "kubeconfig", cluster=cluster))
    assert refused.code == 7
    assert "not valid for 'other.test'" in refused.msg
    assert api.requests == []


@pytest.mark.parametrize(
    ("key", "cluster"),
    [
        ("server", {"server": "http://127.0.0.1"}),
        ("server", {"server": "https://"}),
        ("server", {"server": "https://h:99999"}),
        ("server", {"server": "https://a:b@h"}),
        ("server", {"server": "https://h/?q"}),
        ("server", {"server": 7}),
        ("server", {}),
        ("certificate-authority", {"certificate-authority": "nowhere"}),
        ("certificate-authority", {"certificate-authority": "kubeconfig"}),
        ("certificate-authority-data", {"certificate-authority-data": "%"}),
        ("certificate-authority", {"certificate-authority-data": "eA=="}),
        ("insecure-skip-tls-verify", {"insecure-skip-tls-verify": "yes"}),
        ("proxy-url", {"proxy-url": "http://proxy"}),
    ],
)
def test_a_cluster_that_cannot_be_used(
    api: KubernetesApi, tmp_path: Path, key: str, cluster: dict[str, Any]
) -> None:
    if "server" not in cluster and cluster:
        cluster = _cluster(api) | cluster
    path = api.kubeconfig(tmp_path / "kubeconfig", cluster=cluster)
    refused = _refused(path)
    assert refused.code == 7
    assert f"kubeconfig {path}: clusters[here].cluster.{key}: " in refused.msg


def test_an_authority_is_not_given_to_be_ignored(api: KubernetesApi, tmp_path: Path) -> None:
    authority = str(api.authority.path("ca.crt"))
    cluster = _cluster(api, certificate_authority=authority, insecure_skip_tls_verify=True)
    refused = _refused(api.kubeconfig(tmp_path / "kubeconfig", cluster=cluster))
    assert "insecure-skip-tls-verify: there is a certificate-authority" in refused.msg


@pytest.mark.parametrize(
    ("key", "user"),
    [
        ("exec", {"exec": {"command": "aws", "env": [TOKEN]}}),
        ("auth-provider", {"auth-provider": {"name": "oidc"}}),
        ("password", {"username": "a", "password": TOKEN}),
        ("as", {"as": "admin"}),
        ("token", {"token": 7}),
        ("token", {"token": f"{TOKEN}\n"}),
        ("token", {"token": f"ü{TOKEN}"}),
        ("tokenFile", {"tokenFile": "nowhere"}),
        ("tokenFile", {"tokenFile": "kubeconfig"}),
        ("tokenFile", {"tokenFile": "/dev/null"}),
        ("tokenFile", {"tokenFile": "/dev/zero"}),
        ("client-key", {"client-certificate": "kubeconfig"}),
        ("client-certificate", {"client-key": "kubeconfig"}),
        ("client-certificate", {"client-certificate": "kubeconfig", "client-key": "kubeconfig"}),
    ],
)
def test_a_user_who_cannot_be_used(
    api: KubernetesApi, tmp_path: Path, key: str, user: dict[str, Any]
) -> None:
    path = api.kubeconfig(tmp_path / "kubeconfig", user=user)
    refused = _refused(path)
    assert refused.code == 7
    assert f"kubeconfig {path}: users[node].user.{key}: " in refused.msg


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "expected clusters, users and contexts"),
        ("[]", "expected clusters, users and contexts"),
        (f"token: [{TOKEN}", "is not YAML, line 1"),
        (f"a: &a {TOKEN}\nb: !!python/object:os.system {TOKEN}", "is not YAML, line 2"),
        ("a: \0", "is not YAML"),
        ("{}", "current-context: missing"),
        ("current-context: x", "contexts: none is called 'x'"),
        ("current-context: x\ncontexts: 7", "contexts: none is called 'x'"),
        ("current-context: x\ncontexts: [{name: x}]", "contexts[x].context: missing"),
        (
            "current-context: x\ncontexts: [{name: x, context: {user: y}}]",
            "contexts[x].context.cluster: missing",
        ),
        (
            "current-context: x\ncontexts: [{name: x, context: {cluster: y}}]\nclusters: []",
            "clusters: none is called 'y'",
        ),
    ],
)
def test_a_file_that_is_none(tmp_path: Path, text: str, problem: str) -> None:
    path = tmp_path / "kubeconfig"
    path.write_text(text)
    refused = _refused(path)
    assert refused.code == 7
    assert f"kubeconfig {path}: {problem}" in refused.msg


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    assert "cannot be read: No such file" in _refused(tmp_path / "nowhere").msg
    assert "cannot be read: Is a directory" in _refused(tmp_path).msg
    (tmp_path / "large").write_bytes(b" " * (2 << 20))
    assert "cannot be read: it is larger than" in _refused(tmp_path / "large").msg


def test_without_pyyaml_the_extra_is_named(
    api: KubernetesApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = api.kubeconfig(tmp_path / "kubeconfig")
    monkeypatch.setitem(sys.modules, "yaml", None)
    refused = _refused(path)
    assert refused.code == 7
    assert refused.details.endswith("-m pip install 'userspace-cni[kubernetes]'")


def test_what_is_kept_secret_is_not_in_its_repr(api: KubernetesApi, tmp_path: Path) -> None:
    access = kubeconfig.load(str(api.kubeconfig(tmp_path / "kubeconfig")))
    assert access.token == TOKEN
    assert TOKEN not in repr(access)


# -- servers that misbehave


@pytest.mark.parametrize("way", ["nothing", "headers", "100 Continue", "body"])
def test_a_slow_server_is_not_waited_for(
    api: KubernetesApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    monkeypatch.setattr(client, "TIMEOUT", 0.5)
    api.hang, api.drip = way == "nothing", way if way != "nothing" else ""
    begun = time.monotonic()
    refused = _refused(api.kubeconfig(tmp_path / "kubeconfig"))
    assert refused.code == 11
    assert "cannot be reached" in refused.msg
    assert time.monotonic() - begun < 10


def test_a_request_that_has_little_time_left_waits_no_longer(
    api: KubernetesApi, tmp_path: Path
) -> None:
    api.drip = "headers"
    begun = time.monotonic()
    with deadline.within(0.3):
        assert _refused(api.kubeconfig(tmp_path / "kubeconfig")).code == 11
    assert time.monotonic() - begun < client.TIMEOUT


@contextmanager
def _answering(content: bytes) -> Iterator[int]:
    """Answer the first client with *content*; yield the port."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(1 << 16)
                connection.sendall(content)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield server.getsockname()[1]
        finally:
            thread.join()


@pytest.mark.parametrize("content", [b"", b"SSH-2.0-x\r\n", b"HTTP/1.1 200 OK\r\n\r\n{}"])
def test_a_server_that_speaks_something_else(
    api: KubernetesApi, tmp_path: Path, content: bytes
) -> None:
    with _answering(content) as port:
        cluster = _cluster(api, server=f"https://127.0.0.1:{port}")
        refused = _refused(api.kubeconfig(tmp_path / "kubeconfig", cluster=cluster))
    assert refused.code == 11
    assert f"127.0.0.1:{port} cannot be reached" in refused.msg


@pytest.mark.parametrize("host", ["a..b", "nowhere.invalid", "x" * 300])
def test_a_host_that_has_no_address(api: KubernetesApi, tmp_path: Path, host: str) -> None:
    cluster = _cluster(api, server=f"https://{host}")
    refused = _refused(api.kubeconfig(tmp_path / "kubeconfig", cluster=cluster))
    assert refused.code == 11
    assert "cannot be reached" in refused.msg


def test_a_redirect_is_not_followed(api: KubernetesApi, tmp_path: Path) -> None:
    api.answer = (302, b"")
    refused = _refused(api.kubeconfig(tmp_path / "kubeconfig"))
    assert refused.code == 7
    assert "answered 302 to GET of pod shop/till-0" in refused.msg
    assert api.requests == ["GET till-0"]
