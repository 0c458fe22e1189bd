"""CNI errors: one exception with a code, a message and details.

Codes 1 to 99 are defined by the specification (CNI SPEC 1.1.0, "Error"), 8 and 999 by its reference
library, and codes from 100 on by this project.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable
from enum import IntEnum


class Code(IntEnum):
    """Error codes, in the order of the specification."""

    #: The version of CNI is not supported.
    INCOMPATIBLE_VERSION = 1
    #: The configuration has an unknown key.
    UNSUPPORTED_FIELD = 2
    #: The container is unknown, or does not exist.
    UNKNOWN_CONTAINER = 3
    #: An environment variable, such as CNI_IFNAME, is missing or invalid.
    INVALID_ENVIRONMENT = 4
    #: A file cannot be read or written.
    IO_FAILURE = 5
    #: Something cannot be decoded, such as the configuration as JSON.
    DECODING_FAILURE = 6
    #: A value of the configuration is invalid.
    INVALID_NETWORK_CONFIG = 7
    #: The path is not a network namespace, or no longer exists.
    INVALID_NETNS = 8
    #: The same request may succeed later.
    TRY_AGAIN_LATER = 11
    #: Answer to STATUS: an ADD would fail now.
    NOT_AVAILABLE = 50
    #: Answer to STATUS: an ADD would fail now, and running containers may lack connectivity.
    LIMITED_CONNECTIVITY = 51
    #: The config names an engine whose package is not installed.
    ENGINE_NOT_INSTALLED = 100
    #: The engine's package is installed, but cannot be used.
    ENGINE_BROKEN = 101
    #: The dataplane refused the request.
    DATAPLANE = 102
    #: The container already has an interface of that name.
    ALREADY_ATTACHED = 103
    #: CHECK found a difference from what ADD reported.
    CHECK_FAILED = 104
    #: The IPAM plugin violated the specification.
    IPAM = 105
    #: A bug in core or in an engine.
    INTERNAL = 999


class CniError(Exception):
    """An error that the caller gets as ``{"code", "msg", "details"}``.

    *msg* says in one line what failed and with which value. *details* says what to do about it, or
    has the cause. *code* is an ``int`` because a delegated IPAM plugin may return any number.
    """

    def __init__(self, code: int, msg: str, details: str = "") -> None:
        super().__init__(code, msg, details)
        self.code = int(code)
        self.msg = msg
        self.details = details

    def __str__(self) -> str:
        return f"{self.msg}: {self.details}" if self.details else self.msg

    def to_json(self, cni_version: str) -> dict[str, object]:
        """Return the error object of SPEC section 5, "Error", for *cni_version*."""
        body: dict[str, object] = {
            "cniVersion": cni_version,
            "code": self.code,
            "msg": self.msg,
        }
        if self.details:
            body["details"] = self.details
        return body


class Problems:
    """Collects the errors of a configuration, so that they are reported together.

    As a context manager, it collects a CniError that its body raises.
    """

    def __init__(self) -> None:
        self._found: dict[str, CniError] = {}

    def __enter__(self) -> None:
        pass

    def __exit__(self, _: object, error: BaseException | None, __: object) -> bool:
        if not isinstance(error, CniError):
            return False
        self.add(error)
        return True

    def add(self, *errors: CniError) -> None:
        """Add *errors*; an error that is found twice is reported once."""
        self._found |= {str(error): error for error in errors}

    def settle(self) -> None:
        """Raise the collected errors: a single one as it is, several as one error.

        Its code is their common code, or 7 if they differ.
        """
        errors = list(self._found.values())
        if len(errors) == 1:
            raise errors[0]
        if errors:
            codes = {error.code for error in errors}
            code = codes.pop() if len(codes) == 1 else Code.INVALID_NETWORK_CONFIG
            raise CniError(code, "; ".join(self._found))


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return ``did you mean "vlanId"? `` if *word* resembles a *known* word, else an empty text."""
    from difflib import get_close_matches  # only needed for errors

    folded = {one.lower(): one for one in known}
    close = get_close_matches(word.lower(), folded, n=1)
    return f'did you mean "{folded[close[0]]}"? ' if close else ""


def internal_error(cause: BaseException) -> CniError:
    """Return the error for an exception that nothing has caught.

    It is a bug in core or in an engine, unless the process has run out of something: then the same
    request may succeed later.
    """
    if shortage := _shortage(cause):
        lack, remedy = shortage
        return CniError(
            Code.TRY_AGAIN_LATER,
            f"userspace-cni is out of {lack}: {cause or type(cause).__name__}",
            remedy,
        )
    return CniError(
        Code.INTERNAL,
        f"internal error: {type(cause).__name__}: {cause}",
        "this is a bug in userspace-cni or in the engine; the log has a traceback",
    )


def _shortage(cause: BaseException) -> tuple[str, str] | None:
    """Return what the process has run out of, and the remedy; None for any other exception."""
    number = cause.errno if isinstance(cause, OSError) else None
    # Python has no class for it.
    if isinstance(cause, RuntimeError) and "can't start new thread" in str(cause):
        return "threads", "raise TasksMax of the daemon's service, or the pids limit of its cgroup"
    if number == errno.EMFILE:
        return "file descriptors", "raise LimitNOFILE of the daemon's service"
    if number == errno.ENFILE:
        return "the node's file descriptors", "raise the sysctl fs.file-max"
    if isinstance(cause, MemoryError) or number == errno.ENOMEM:
        return "memory", "raise MemoryMax of the daemon's service, or free memory on the node"
    return None


class DataplaneUnavailable(CniError):
    """The switch cannot be reached now; the same request may succeed later.

    Engines raise it. Core answers ADD and CHECK with code 11, STATUS with 50, and puts a DEL off.
    """

    def __init__(self, msg: str, details: str = "") -> None:
        super().__init__(Code.TRY_AGAIN_LATER, msg, details)


class DataplaneError(CniError):
    """The switch or the kernel refused a request of an engine."""

    def __init__(self, msg: str, details: str = "") -> None:
        super().__init__(Code.DATAPLANE, msg, details)


class InvalidConfig(CniError):
    """A value of the configuration is invalid; *path* is its key (``host.bridge.vlanId``)."""

    def __init__(self, path: str, problem: str, details: str = "") -> None:
        super().__init__(Code.INVALID_NETWORK_CONFIG, f"{path}: {problem}", details)


class CheckFailed(CniError):
    """CHECK found that the attachment is not as ADD left it."""

    def __init__(self, msg: str, details: str = "DEL and ADD make it again") -> None:
        super().__init__(Code.CHECK_FAILED, msg, details)
