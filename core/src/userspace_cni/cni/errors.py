"""CNI errors: one exception that carries a code, a message and details.

Codes 1 to 99 are the specification's (CNI SPEC 1.1.0, "Error"); 8 and 999 come from its reference
library; 100 and above are ours.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntEnum


class Code(IntEnum):
    """Error codes, in the order of the specification."""

    #: The version of CNI is not supported.
    INCOMPATIBLE_VERSION = 1
    #: The configuration has a key that is not known.
    UNSUPPORTED_FIELD = 2
    #: The container is not known, or does not exist.
    UNKNOWN_CONTAINER = 3
    #: A variable of the environment, such as CNI_IFNAME, is missing or wrong.
    INVALID_ENVIRONMENT = 4
    #: A file cannot be read or written.
    IO_FAILURE = 5
    #: Something cannot be decoded, such as the configuration as JSON.
    DECODING_FAILURE = 6
    #: A value of the configuration is wrong.
    INVALID_NETWORK_CONFIG = 7
    #: The network namespace is not one, or is gone.
    INVALID_NETNS = 8
    #: The same request may succeed later.
    TRY_AGAIN_LATER = 11
    #: To STATUS: an ADD could not succeed now.
    NOT_AVAILABLE = 50
    #: To STATUS: an ADD could not succeed now, and containers that run may lack connectivity.
    LIMITED_CONNECTIVITY = 51
    #: The config names an engine whose package is not installed.
    ENGINE_NOT_INSTALLED = 100
    #: The engine's package is installed and cannot be imported or started.
    ENGINE_BROKEN = 101
    #: The dataplane answered and refused.
    DATAPLANE = 102
    #: The container has an interface of that name already.
    ALREADY_ATTACHED = 103
    #: CHECK found something else than what ADD reported.
    CHECK_FAILED = 104
    #: The IPAM plugin did not behave as the specification demands.
    IPAM = 105
    #: A bug, ours or an engine's.
    INTERNAL = 999


class CniError(Exception):
    """What a CNI caller is told: ``{"code", "msg", "details"}``.

    *msg* says in one line what failed and with which value; *details* says what to do about it, or
    carries the cause. *code* is an ``int``, because a delegated IPAM plugin may answer any.
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
    """Collects what is wrong with a configuration, so that all of it is told at once.

    As a context manager it takes the CniError that its body raises.
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
        """Note *errors*; what two stages find is told once."""
        self._found |= {str(error): error for error in errors}

    def settle(self) -> None:
        """Raise what was found: one error as it is, several as one.

        Its code is theirs where they have the same one, else 7.
        """
        errors = list(self._found.values())
        if len(errors) == 1:
            raise errors[0]
        if errors:
            codes = {error.code for error in errors}
            code = codes.pop() if len(codes) == 1 else Code.INVALID_NETWORK_CONFIG
            raise CniError(code, "; ".join(self._found))


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return ``did you mean "vlanId"? `` if *word* looks like one that is *known*, else nothing."""
    from difflib import get_close_matches  # nobody pays for it who makes no mistake

    folded = {one.lower(): one for one in known}
    close = get_close_matches(word.lower(), folded, n=1)
    return f'did you mean "{folded[close[0]]}"? ' if close else ""


def internal_error(cause: BaseException) -> CniError:
    """Return how a caller is told of an exception that is a bug, ours or an engine's."""
    return CniError(
        Code.INTERNAL,
        f"internal error: {type(cause).__name__}: {cause}",
        "this is a bug in userspace-cni or in the engine; the log has a traceback",
    )


class DataplaneUnavailable(CniError):
    """The switch cannot be reached now; the same request may succeed later.

    Engines raise it. The runtime answers code 11 to ADD and CHECK, 50 to STATUS, and queues a DEL.
    """

    def __init__(self, msg: str, details: str = "") -> None:
        super().__init__(Code.TRY_AGAIN_LATER, msg, details)


class DataplaneError(CniError):
    """The switch, or the kernel, refused what an engine asked of it."""

    def __init__(self, msg: str, details: str = "") -> None:
        super().__init__(Code.DATAPLANE, msg, details)


class InvalidConfig(CniError):
    """A value of the configuration cannot be used; *path* names it (``host.bridge.vlanId``)."""

    def __init__(self, path: str, problem: str, details: str = "") -> None:
        super().__init__(Code.INVALID_NETWORK_CONFIG, f"{path}: {problem}", details)


class CheckFailed(CniError):
    """CHECK found the attachment other than ADD left it."""

    def __init__(self, msg: str, details: str = "DEL and ADD make it again") -> None:
        super().__init__(Code.CHECK_FAILED, msg, details)
