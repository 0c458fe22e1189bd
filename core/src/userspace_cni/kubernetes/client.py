"""The client: reads a pod, and patches it.

It uses http.client, because the import of the official client takes longer than an ADD. It uses no
proxies and follows no redirects, so the token only goes to the server that the kubeconfig names.
"""

from __future__ import annotations

import json
import socket
import ssl
from collections.abc import Mapping
from contextlib import ExitStack, closing
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException
from io import BufferedReader, RawIOBase
from time import monotonic
from typing import Any

from userspace_cni import deadline
from userspace_cni.cni.errors import CniError, Code
from userspace_cni.kubernetes import kubeconfig

#: Seconds that one call may take.
TIMEOUT = 5.0
_ANSWER_MAX = 4 << 20  # bytes; the API server accepts pods of up to 3 MiB
_TEXT_MAX = 300  # characters of the server's explanation
_MERGE_PATCH = "application/merge-patch+json"  # RFC 7386


class NoSuchPod(CniError):
    """A pod of that name does not exist, or no longer exists."""


class Conflict(CniError):
    """Somebody else has changed the pod since it was read."""


_KINDS: Mapping[int, type[CniError]] = {
    HTTPStatus.NOT_FOUND: NoSuchPod,
    HTTPStatus.CONFLICT: Conflict,
}
#: Errors that do not concern the configuration.
_AGAIN = (*_KINDS, HTTPStatus.TOO_MANY_REQUESTS)


def _left(until: float) -> float:
    """Return how many seconds are left; raise TimeoutError if none are."""
    if (left := until - monotonic()) <= 0:
        raise TimeoutError(f"it takes longer than {TIMEOUT:g} s")
    return left


def _connected(host: str, port: int, until: float) -> socket.socket:
    """Connect to one of the addresses of *host*; all attempts together end before *until*."""
    problem: OSError = OSError("it has no address")
    for family, kind, protocol, _, address in socket.getaddrinfo(host, port, 0, socket.SOCK_STREAM):
        end = socket.socket(family, kind, protocol)
        try:
            end.settimeout(_left(until))
            end.connect(address)
            end.settimeout(_left(until))
        except OSError as error:
            end.close()
            problem = error
        else:
            return end
    raise problem


class _Bounded(RawIOBase):
    """A socket for :mod:`http.client` whose reads and writes together end before *until*.

    The socket's own timeout would start again with every byte that a slow server sends. The caller
    closes the socket.
    """

    def __init__(self, end: socket.socket, until: float) -> None:
        self._end = end
        self._until = until

    def sendall(self, data: bytes) -> None:
        self._end.settimeout(_left(self._until))
        self._end.sendall(data)

    def makefile(self, _mode: str) -> BufferedReader:
        return BufferedReader(self)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._end.settimeout(_left(self._until))
        return self._end.recv_into(buffer)


class Client:
    """One API server, for the few calls of one request."""

    def __init__(self, path: str) -> None:
        """Use the server that the kubeconfig *path* names.

        Raises:
            CniError: 7 when the file cannot be used.

        """
        self._path = path
        self._access = kubeconfig.load(path)

    def get_pod(self, namespace: str, name: str) -> dict[str, Any]:
        """Return the pod.

        Raises:
            NoSuchPod: the pod does not exist.
            CniError: 11 when the server cannot be reached or fails; 7 when it refuses.

        """
        return self._call("GET", namespace, name)

    def patch_pod(self, namespace: str, name: str, patch: Mapping[str, Any]) -> dict[str, Any]:
        """Apply the merge patch (RFC 7386) to the pod's metadata; return the pod.

        The request goes to the subresource ``status``, which accepts metadata but no changes to the
        spec. The token therefore cannot be used to run anything.

        Raises:
            Conflict: the patch has a ``resourceVersion`` that is not the pod's.
            NoSuchPod: the pod does not exist.
            CniError: as :meth:`get_pod`.

        """
        return self._call("PATCH", namespace, name, "/status", json.dumps(patch).encode())

    def _call(
        self, method: str, namespace: str, name: str, part: str = "", body: bytes | None = None
    ) -> dict[str, Any]:
        path = f"{self._access.prefix}/api/v1/namespaces/{namespace}/pods/{name}{part}"
        try:
            status, reason, content = self._exchange(method, path, body)
        except ssl.SSLCertVerificationError as error:
            raise CniError(
                Code.INVALID_NETWORK_CONFIG,
                f"{self._server} has a certificate that is not trusted: {error.verify_message}",
                f"check certificate-authority and tls-server-name in {self._path}",
            ) from None
        except (OSError, HTTPException, ValueError) as error:
            raise CniError(
                Code.TRY_AGAIN_LATER,
                f"{self._server} cannot be reached: {self._shown(error)}",
                f"kubeconfig {self._path}",
            ) from None
        answer = _json_object(content)
        if status == HTTPStatus.OK and answer is not None:
            return answer
        said = self._shown((answer or {}).get("message") or reason)
        raise self._failure(method, f"{namespace}/{name}", status, said)

    def _exchange(self, method: str, path: str, body: bytes | None) -> tuple[int, str, bytes]:
        access = self._access
        headers = {"Accept": "application/json", "User-Agent": "userspace-cni"}
        if access.token:
            headers["Authorization"] = f"Bearer {access.token}"
        if body is not None:
            headers["Content-Type"] = _MERGE_PATCH
        until = deadline.after(TIMEOUT)
        with ExitStack() as stack:
            raw = stack.enter_context(_connected(access.host, access.port, until))
            # The socket's own timeout limits the whole handshake, and each write.
            end = stack.enter_context(
                access.context.wrap_socket(raw, server_hostname=access.server_name)
            )
            connection = stack.enter_context(closing(HTTPConnection(access.host, access.port)))
            connection.sock = _Bounded(end, until)
            connection.request(method, path, body, headers)
            with connection.getresponse() as response:
                content = b""
                while chunk := response.read1(1 << 16):
                    content += chunk
                    if len(content) > _ANSWER_MAX:
                        raise HTTPException(f"its answer is larger than {_ANSWER_MAX} bytes")
                return response.status, response.reason, content

    def _failure(self, method: str, pod: str, status: int, said: str) -> CniError:
        """Return the error for an answer with *status*; *said* is the server's explanation."""
        again = status in _AGAIN or status >= HTTPStatus.INTERNAL_SERVER_ERROR
        problem, details = f"{self._server} answered {status} to {method} of pod {pod}", said
        if status == HTTPStatus.OK:
            again, details = True, "with what is no JSON object"
        elif status == HTTPStatus.UNAUTHORIZED:
            problem = f"{self._server} does not accept the user of kubeconfig {self._path}"
            details = "renew its token or certificate"
        elif status == HTTPStatus.FORBIDDEN:
            problem = f"the user of kubeconfig {self._path} may not {method.lower()} pod {pod}"
            details = f"grant it get on pods, and patch on pods/status: {said}"
        code = Code.TRY_AGAIN_LATER if again else Code.INVALID_NETWORK_CONFIG
        return _KINDS.get(status, CniError)(code, problem, details)

    @property
    def _server(self) -> str:
        return f"the API server {self._access.host}:{self._access.port}"

    def _shown(self, said: object) -> str:
        """Return the part of an error or of the server's explanation that may be shown."""
        text = str(said) or type(said).__name__
        if self._access.token:
            text = text.replace(self._access.token, "(token)")
        return "".join(char if char.isprintable() else " " for char in text)[:_TEXT_MAX]


def _json_object(content: bytes) -> dict[str, Any] | None:
    try:
        parsed = json.loads(content)
    except (ValueError, RecursionError):
        return None
    return parsed if isinstance(parsed, dict) else None
