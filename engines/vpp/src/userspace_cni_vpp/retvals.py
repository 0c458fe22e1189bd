"""VPP's error numbers that the engine's requests can return, with descriptions."""

from __future__ import annotations

from enum import IntEnum


class Retval(IntEnum):
    """The ``retval`` of a reply."""

    INVALID_SW_IF_INDEX = -2
    NO_SUCH_FIB = -3
    NO_SUCH_ENTRY = -6
    INVALID_VALUE = -7
    SYSCALL_ERROR_1 = -11
    SYSCALL_ERROR_2 = -12
    SYSCALL_ERROR_3 = -13
    SYSCALL_ERROR_4 = -14
    INVALID_REGISTRATION = -31
    SUBIF_ALREADY_EXISTS = -68
    INVALID_INTERFACE = -71
    INVALID_ARGUMENT = -73
    UNEXPECTED_INTF_STATE = -74
    IF_ALREADY_EXISTS = -79
    VALUE_EXIST = -81
    ADDRESS_IN_USE = -105
    ADDRESS_FOUND_FOR_INTERFACE = -114
    ENTRY_ALREADY_EXISTS = -116
    BD_ALREADY_EXISTS = -119
    BD_IN_USE = -120
    BD_NOT_MODIFIABLE = -121
    BD_ID_EXCEED_MAX = -122
    DUPLICATE_IF_ADDRESS = -127
    BD_ALREADY_HAS_BVI = -152


_WORDS = {
    Retval.INVALID_SW_IF_INDEX: "there is no such interface",
    Retval.NO_SUCH_FIB: "there is no such table",
    Retval.NO_SUCH_ENTRY: "there is no such entry",
    Retval.SYSCALL_ERROR_4: "a system call failed, for example because the socket's directory is "
    "missing or its name is taken",
    Retval.SYSCALL_ERROR_1: "a system call failed, for example because /dev/vhost-net is missing",
    Retval.SYSCALL_ERROR_2: "a system call failed, for example because the socket's directory is "
    "missing",
    Retval.SUBIF_ALREADY_EXISTS: "the socket already has an interface with that id",
    Retval.ENTRY_ALREADY_EXISTS: "it already exists",
    Retval.BD_IN_USE: "the bridge domain has interfaces",
    Retval.ADDRESS_IN_USE: "an interface in the same table has this address or one of its network",
    Retval.DUPLICATE_IF_ADDRESS: "another interface in the same table has this address",
    Retval.BD_ALREADY_HAS_BVI: "the bridge domain already has a BVI",
}


def describe(retval: int) -> str:
    """Describe *retval* for error messages: its meaning, VPP's name for it, and its number."""
    try:
        known = Retval(retval)
    except ValueError:
        return f"error {retval}"
    words = _WORDS.get(known)
    return f"{words} ({known.name} {retval})" if words else f"{known.name} ({retval})"
