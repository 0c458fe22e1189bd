"""A Kubernetes API server for pods only: HTTPS, tokens, resource versions, merge patches."""

from __future__ import annotations

import json
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from copy import deepcopy
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import yaml
from attrs import define, field, frozen

TOKEN = "s3cr3t-t0ken.of-the.node"
NAMESPACE, POD, UID = "shop", "till-0", "0f6c6ae0-31c5-4d2f-8f4b-3f6f5a3a4f10"
ARGS = f"K8S_POD_NAMESPACE={NAMESPACE};K8S_POD_NAME={POD};K8S_POD_UID={UID};IgnoreUnknown=1"
MOUNT = "/var/run/userspace-cni"


@frozen
class Authority:
    """A private certificate authority with certificates for a server and a client."""

    directory: Path

    def path(self, name: str) -> Path:
        return self.directory / name

    @classmethod
    def make(cls, directory: Path) -> Authority:
        directory.mkdir()
        self = cls(directory)
        self._openssl("ca", "/CN=test-ca", "-addext", "keyUsage=critical,keyCertSign")
        issued = ("-CA", self.path("ca.crt"), "-CAkey", self.path("ca.key"))
        names = "subjectAltName=DNS:api.test,IP:127.0.0.1"
        self._openssl("server", "/CN=api", *issued, "-addext", names)
        self._openssl("client", "/CN=node", *issued, "-addext", "extendedKeyUsage=clientAuth")
        return self

    def _openssl(self, name: str, subject: str, *more: str | Path) -> None:
        key, certificate = self.path(f"{name}.key"), self.path(f"{name}.crt")
        kind = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
        files = ("-keyout", key, "-out", certificate)
        subprocess.run(
            ["openssl", "req", "-x509", "-days", "2", *kind, *files, "-subj", subject, *more],
            check=True,
            capture_output=True,
        )


@define(eq=False)
class KubernetesApi:
    """The server. Tests make it fail by setting attributes."""

    authority: Authority
    pods: dict[str, dict[str, Any]] = field(factory=dict)
    #: ``METHOD name`` of each authenticated request.
    requests: list[str] = field(factory=list)
    #: Verb and resource of each request, as in roles.
    resources: list[tuple[str, str]] = field(factory=list)
    #: Status and body that answer every request.
    answer: tuple[int, bytes] | None = None
    #: Status and body that answer every PATCH.
    refusal: tuple[int, bytes] | None = None
    #: Number of PATCHes before which somebody else changes the pod.
    meddling: int = 0
    #: Number of PATCHes that are executed but never answered.
    dropped: int = 0
    #: Never answer (True), or never finish the "headers", the "body" or "100 Continue".
    hang: bool = False
    drip: str = ""
    _server: ThreadingHTTPServer = field(init=False)
    _guard: threading.Lock = field(factory=threading.Lock, init=False)
    _ended: threading.Event = field(factory=threading.Event, init=False)

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    @contextmanager
    def running(self) -> Iterator[KubernetesApi]:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(
            self.authority.path("server.crt"), self.authority.path("server.key")
        )
        context.load_verify_locations(self.authority.path("ca.crt"))
        context.verify_mode = ssl.CERT_OPTIONAL
        self._server = _Server(context, self)
        thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield self
        finally:
            self._ended.set()
            self._server.shutdown()
            thread.join()
            self._server.server_close()

    def stop_listening(self) -> None:
        """Refuse connections from now on."""
        self._server.socket.close()

    def pod(self, name: str = POD) -> dict[str, Any]:
        return self.pods[name]

    @property
    def annotations(self) -> dict[str, str]:
        annotations: dict[str, str] = self.pod()["metadata"]["annotations"]
        return annotations

    @property
    def entries(self) -> list[dict[str, Any]]:
        """The pod's annotation that describes its interfaces."""
        listed = json.loads(self.annotations.get("userspace/configuration-data", "[]"))
        assert isinstance(listed, list)
        return listed

    def create(self, name: str = POD, uid: str = UID, **spec: Any) -> dict[str, Any]:
        """Create a pod with an emptyDir for the shared directory, or with *spec*."""
        mounts = [{"name": "shared-dir", "mountPath": MOUNT}]
        self.pods[name] = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "namespace": NAMESPACE,
                "name": name,
                "uid": uid,
                "resourceVersion": "1",
                "annotations": {"theirs": "stays"},
            },
            "spec": {
                "containers": [{"name": "app", "volumeMounts": mounts}],
                "volumes": [{"name": "shared-dir", "emptyDir": {}}],
                **spec,
            },
        }
        return self.pods[name]

    def kubeconfig(self, path: Path, **parts: Any) -> Path:
        """Write a kubeconfig for this server; *parts* replace ``cluster`` and ``user``."""
        cluster = {
            "server": f"https://127.0.0.1:{self.port}",
            "certificate-authority": str(self.authority.path("ca.crt")),
        }
        content = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "node",
            "contexts": [{"name": "node", "context": {"cluster": "here", "user": "node"}}],
            "clusters": [{"name": "here", "cluster": parts.get("cluster", cluster)}],
            "users": [{"name": "node", "user": parts.get("user", {"token": TOKEN})}],
        }
        path.write_text(yaml.safe_dump(content))
        return path

    # -- answers

    def get(self, name: str) -> tuple[int, dict[str, Any]]:
        with self._guard:
            pod = self.pods.get(name)
            return (200, deepcopy(pod)) if pod else _status(404, f'pods "{name}" not found')

    def patch(self, name: str, patch: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        with self._guard:
            pod = self.pods.get(name)
            if pod is None:
                return _status(404, f'pods "{name}" not found')
            if self.meddling:
                self.meddling -= 1
                _touch(pod)
            asked = patch["metadata"].pop("resourceVersion", None)
            assert patch.keys() == {"metadata"}
            assert patch["metadata"].keys() == {"annotations"}
            if asked != pod["metadata"]["resourceVersion"]:
                return _status(409, "the object has been modified")
            merged = _merged(pod, patch)
            _touch(merged)
            self.pods[name] = merged
            return 200, deepcopy(merged)

    def wait(self, seconds: float | None = None) -> bool:
        """Wait until the server stops, or for *seconds*; return whether it has stopped."""
        return self._ended.wait(seconds)


def _status(code: int, message: str) -> tuple[int, dict[str, Any]]:
    return code, {"kind": "Status", "status": "Failure", "code": code, "message": message}


def _touch(pod: dict[str, Any]) -> None:
    pod["metadata"]["resourceVersion"] = str(int(pod["metadata"]["resourceVersion"]) + 1)


def _merged(target: Any, patch: Any) -> Any:
    """Apply a JSON merge patch (RFC 7386)."""
    if not isinstance(patch, dict):
        return patch
    result = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = _merged(result.get(key), value)
    return result


class _Server(ThreadingHTTPServer):
    def __init__(self, context: ssl.SSLContext, api: KubernetesApi) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.context = context
        self.api = api

    def get_request(self) -> tuple[Any, Any]:
        raw, address = super().get_request()
        # The handler's thread performs the handshake.
        return self.context.wrap_socket(raw, True, False), address

    def handle_error(self, *_: object) -> None:
        """Ignore clients that disconnect."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Log nothing."""

    def do_GET(self) -> None:
        self._serve()

    def do_PATCH(self) -> None:
        self._serve()

    def _serve(self) -> None:
        api = self.server.api
        self.close_connection = True
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = self.path.removesuffix("/status") if self.command == "PATCH" else self.path
        prefix, _, name = path.rpartition("/")
        api.requests.append(f"{self.command} {name}")
        status = self.path.endswith("/status")
        api.resources.append((self.command, "pods/status" if status else "pods"))
        if api.hang:
            api.wait()
        elif api.drip:
            self._drip(api.drip)
        elif api.answer is not None:
            self._send(*api.answer)
        else:
            self._carry_out(prefix, name, body, status=status)

    def _carry_out(self, prefix: str, name: str, body: bytes, *, status: bool) -> None:
        api = self.server.api
        peer = self.connection.getpeercert()
        if not peer and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._reply(*_status(401, "Unauthorized"))
        elif prefix != f"/api/v1/namespaces/{NAMESPACE}/pods":
            self._reply(*_status(404, f"the server could not find {self.path}"))
        elif self.command == "GET":
            self._reply(*api.get(name))
        elif not status:
            self._reply(*_status(403, "pods is forbidden: pods/status is not"))
        elif api.refusal is not None:
            self._send(*api.refusal)
        elif self.headers["Content-Type"] != "application/merge-patch+json":
            self._reply(*_status(415, "unsupported media type"))
        else:
            answer = api.patch(name, json.loads(body))
            if api.dropped:
                api.dropped -= 1
                return
            self._reply(*answer)

    def _drip(self, part: str) -> None:
        """Send bytes or interim answers forever, each one before any timeout per read."""
        drop = b"HTTP/1.1 100 Continue\r\n\r\n" if part == "100 Continue" else b"x"
        with suppress(OSError):
            if part == "headers":
                self.wfile.write(b"HTTP/1.1 200 OK\r\nX-")
            elif part == "body":
                self.send_response(200)
                self.end_headers()
            while not self.server.api.wait(0.02):
                self.wfile.write(drop)

    def _reply(self, status: int, body: dict[str, Any]) -> None:
        self._send(status, json.dumps(body).encode())

    def _send(self, status: int, content: bytes) -> None:
        with suppress(OSError):
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.send_header("Location", "https://elsewhere.invalid/")
            self.end_headers()
            self.wfile.write(content)
