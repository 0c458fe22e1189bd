"""A container's network namespace as a handle."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import ParamSpec, Self, TypeVar

from userspace_cni import netns
from userspace_cni.cni.errors import CniError

_P = ParamSpec("_P")
_T = TypeVar("_T")


class Namespace:
    """The network namespace at a path, opened once; a context manager that closes it.

    All that an engine does in a container for one request goes through one handle: the path could
    lead elsewhere when it is looked up again.
    """

    def __init__(self, path: str) -> None:
        """Open the namespace.

        Raises:
            CniError: code 4 when *path* is no network namespace, or no longer one.

        """
        self.path = path
        try:
            #: For netlink's ``IFLA_NET_NS_FD``.
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
        """Call *function* inside and return what it returns.

        A socket stays in the namespace that it was opened in: ``call(Links)`` returns one that
        works inside from out here.

        Raises:
            Exception: whatever *function* raises.

        """
        return netns.call_in(self.fd, function, *args, **kwargs)
