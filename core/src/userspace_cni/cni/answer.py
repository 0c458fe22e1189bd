"""How a CNI call ends: an exit status, and at most one JSON object on standard output."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple

from userspace_cni.cni.errors import CniError, Code
from userspace_cni.cni.versions import SUPPORTED

if TYPE_CHECKING:
    from userspace_cni.cni.request import Request


class Answer(NamedTuple):
    """What the caller gets, and the request that it was."""

    #: The exit status.
    status: int
    #: Standard output: one JSON object, or nothing where the specification has none.
    out: str
    #: The code of the error, 0 for a success.
    code: int
    #: None for VERSION, and for what is not a request.
    request: Request | None = None


def success(body: dict[str, Any] | None, request: Request | None = None) -> Answer:
    """Return the answer to a *request* that succeeded, with the *body* that it is told."""
    return Answer(0, "" if body is None else json.dumps(body) + "\n", 0, request)


def failure(
    error: CniError, version: str = SUPPORTED[-1], request: Request | None = None
) -> Answer:
    """Return how a caller of CNI *version* is told of *error*."""
    out = json.dumps(error.to_json(version)) + "\n"
    return Answer(1, out, error.code or Code.INTERNAL, request)
