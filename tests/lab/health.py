"""Client of a daemon's HTTP endpoints."""

from __future__ import annotations

import socket
import urllib.error
import urllib.request
from contextlib import closing

from prometheus_client.parser import text_string_to_metric_families


def free_port() -> int:
    with closing(socket.socket()) as end:
        end.bind(("127.0.0.1", 0))
        port: int = end.getsockname()[1]
        return port


def get(port: int, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=20) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def answers(port: int) -> bool:
    try:
        return get(port, "/healthz") == (200, "ok\n")
    except urllib.error.URLError:
        return False


def figures_of(port: int) -> dict[tuple[str, frozenset[str]], float]:
    _, text = get(port, "/metrics")
    return {
        (sample.name, frozenset(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
