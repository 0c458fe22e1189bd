"""The answer to a CNI call: an exit status, and at most one JSON object on standard output."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple

from userspace_cni.cni.errors import CniError, Code
from userspace_cni.cni.versions import SUPPORTED

if TYPE_CHECKING:
    from userspace_cni.cni.request import Request


class Answer(NamedTuple):
    """The answer for the caller, with the request."""

    #: The exit status.
    status: int
    #: Standard output: one JSON object, or nothing if the specification does not define one.
    out: str
    #: The error code; 0 for success.
    code: int
    #: The request; None for VERSION, and if the input is not a valid request.
    request: Request | None = None


def success(body: dict[str, Any] | None, request: Request | None = None) -> Answer:
    """Return the answer to a successful *request*, with *body* on standard output."""
    return Answer(0, "" if body is None else json.dumps(body) + "\n", 0, request)


def failure(
    error: CniError, version: str = SUPPORTED[-1], request: Request | None = None
) -> Answer:
    """Return the answer for *error*, in CNI *version*."""
    out = json.dumps(error.to_json(version)) + "\n"
    return Answer(1, out, error.code or Code.INTERNAL, request)
