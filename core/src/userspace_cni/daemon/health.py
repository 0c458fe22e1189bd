"""HTTP endpoints for health and metrics: /healthz, /readyz, /metrics."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread
from typing import TYPE_CHECKING, Any

from userspace_cni.cni.errors import CniError, Code
from userspace_cni.daemon import metrics
from userspace_cni.log import logger

if TYPE_CHECKING:
    from userspace_cni.daemon.metrics import Metrics


#: Maximum number of open connections. Each needs a thread and a descriptor, as CNI requests do.
_CONNECTIONS = 16


class _Server(ThreadingHTTPServer):
    """Closes the oldest connection when there are too many."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        self._guard = Lock()
        self._open: list[socket.socket] = []
        super().__init__(address, handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._guard:
            self._open.append(request)
            if len(self._open) > _CONNECTIONS:
                with suppress(OSError):  # the client may have disconnected
                    self._open.pop(0).shutdown(socket.SHUT_RDWR)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self._guard, suppress(ValueError):
            self._open.remove(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002
        logger.debug("http %s", client_address, exc_info=True)


@contextmanager
def serving(
    endpoint: str, readiness: Callable[[], tuple[bool, dict[str, Any]]], figures: Metrics
) -> Iterator[None]:
    """Serve HTTP while the body runs.

    Args:
        endpoint: ``ADDRESS:PORT``.
        readiness: returns whether the daemon is ready, and a JSON object with details.
        figures: the metrics.

    Raises:
        CniError: 5 if the address cannot be bound.

    """

    class Handler(BaseHTTPRequestHandler):
        timeout = 10  # seconds, for a client that sends nothing

        def do_GET(self) -> None:
            match self.path:
                case "/healthz":
                    self._send(HTTPStatus.OK, "text/plain", b"ok\n")
                case "/readyz":
                    ready, state = readiness()
                    status = HTTPStatus.OK if ready else HTTPStatus.SERVICE_UNAVAILABLE
                    self._send(status, "application/json", json.dumps(state).encode() + b"\n")
                case "/metrics":
                    self._send(HTTPStatus.OK, metrics.CONTENT_TYPE, figures.text())
                case _:
                    self._send(HTTPStatus.NOT_FOUND, "text/plain", b"not found\n")

        def _send(self, status: HTTPStatus, kind: str, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  the base class's name
            logger.debug("http %s", format % args)

    host, _, port = endpoint.rpartition(":")
    address = host.strip("[]")

    class Server(_Server):
        address_family = socket.AF_INET6 if ":" in address else socket.AF_INET

    try:
        server = Server((address, int(port)), Handler)
    except (OSError, OverflowError) as error:
        raise CniError(
            Code.IO_FAILURE, f"daemon.http: cannot serve at {endpoint}", str(error)
        ) from error
    thread = Thread(target=server.serve_forever, name="http", daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
