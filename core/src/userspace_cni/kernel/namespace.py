"""Handle of a container's network namespace."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import ParamSpec, Self, TypeVar

from userspace_cni import netns
from userspace_cni.cni.errors import CniError

_P = ParamSpec("_P")
_T = TypeVar("_T")


class Namespace:
    """An open network namespace; a context manager that closes it.

    Use one handle for everything that a request does in a container: a second lookup of the path
    could lead to another namespace.
    """

    def __init__(self, path: str) -> None:
        """Open the namespace at *path*.

        Raises:
            CniError: code 4 if *path* is not a network namespace, or no longer one.

        """
        self.path = path
        try:
            #: File descriptor, for netlink's ``IFLA_NET_NS_FD``.
            self.fd = netns.open_namespace(path)
        except CniError as error:
            raise CniError(
                error.code,
                f"the container's network namespace {path} cannot be opened",
                f"{error.details or error.msg}; has the container ended?",
            ) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.fd)

    def call(self, function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """Call *function* in the namespace and return its result.

        A socket stays in the namespace in which it was opened: the result of ``call(Links)`` works
        in the container although it is used from outside.

        Raises:
            Exception: the exception that *function* raises.

        """
        return netns.call_in(self.fd, function, *args, **kwargs)
