"""Access to pyroute2 for rare requests; importing it takes a quarter of a second."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from userspace_cni.kernel.netlink import Refused

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def iproute(action: str) -> Iterator[Any]:
    """Yield pyroute2's ``IPRoute`` for the calling thread's network namespace.

    Args:
        action: description for error messages, which put "cannot" before it.

    Raises:
        Refused: if the kernel refuses a request made in the body.

    """
    from pyroute2.iproute.linux import IPRoute
    from pyroute2.netlink.exceptions import NetlinkError

    try:
        with IPRoute() as kernel:
            yield kernel
    except NetlinkError as error:
        raise Refused(action, error.code, os.strerror(error.code)) from error
    except OSError as error:
        raise Refused(action, error.errno or 0, error.strerror or str(error)) from error
