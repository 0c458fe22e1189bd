"""Publishes a hand-off in all requested formats, and withdraws it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

from userspace_cni.api import Attachment, Handoff, Kernel, Port
from userspace_cni.cni.errors import CniError, InvalidConfig
from userspace_cni.config import NetConf
from userspace_cni.handover import device_info, legacy
from userspace_cni.handover.directory import ContainerDirectory
from userspace_cni.handover.document import ABSTRACT, dump
from userspace_cni.log import logger

#: The maximum length of a directory in bytes: a socket's address has 107, including "/" and a name.
_PLACE_MAX = 105


def require_possible(conf: NetConf) -> None:
    """Raise InvalidConfig if :func:`publish` can never write to a path in *conf*."""
    device_info.path_of(conf.runtime_config)
    if conf.container_dir is not None and len(os.fsencode(conf.container_dir)) > _PLACE_MAX:
        raise InvalidConfig(
            "containerDir",
            f"expected at most {_PLACE_MAX} bytes, so that a socket's address has room for a name "
            f"in there, got {conf.container_dir!r}",
            "mount the directory at a shorter path",
        )
    if conf.shared_dir is not None:
        device_info.require_possible("sharedDir", conf.shared_dir)


def publish(
    directory: ContainerDirectory,
    attachment: Attachment,
    handoff: Handoff,
    conf: NetConf,
    *,
    engine: str,
    undo: ExitStack,
) -> None:
    """Publish *handoff*, which container engine *engine* prepared, to the container.

    Kernel interfaces need no hand-over document. Steps that the directory's ``withdraw`` does not
    reverse are pushed on *undo*.

    Raises:
        CniError: 103 or 5, see :meth:`.ContainerDirectory.publish`.

    """
    if isinstance(handoff.port, Kernel):
        return
    if not handoff.socket and not os.path.lexists(directory.path):
        directory.provide(sockets=False)  # the engine did not need it
    directory.publish(attachment.ifname, dump(attachment, handoff, engine))
    if conf.legacy_file:
        described = legacy.describe(attachment, handoff, engine)
        directory.publish_legacy(attachment.ifname, described)
    info = device_info.describe(handoff, container_socket(handoff, conf))
    path = device_info.path_of(conf.runtime_config)
    if path and info is not None:
        undo.callback(device_info.restore, path, device_info.write(path, info), handoff.port)


def require(directory: ContainerDirectory, attachment: Attachment, handoff: Handoff) -> None:
    """Raise CheckFailed unless what :func:`publish` wrote exists, and the switch can reach it."""
    if isinstance(handoff.port, Kernel):
        return
    directory.require(attachment.ifname, dump(attachment, handoff))
    if handoff.socket and not handoff.socket.startswith(ABSTRACT):
        directory.require_view()


def withdraw(
    directory: ContainerDirectory,
    ifname: str,
    id_: str,
    port: Port,
    runtime_config: Mapping[str, Any],
) -> None:
    """Withdraw what :func:`publish` wrote about *port* of the attachment *id_*.

    *runtime_config* is what the runtime gave for it.

    Raises:
        CniError: 5 when something cannot be removed.

    """
    directory.withdraw(ifname, id_, os.path.basename(port.socket))
    try:
        path = device_info.path_of(runtime_config)
    except CniError as error:
        logger.warning("no ADD can have written it: %s", error)
        return
    if path:
        device_info.remove(path, port)


def container_socket(handoff: Handoff, conf: NetConf) -> str:
    """Return the path of the port's socket in the container; empty for a port without one.

    Without ``containerDir`` the path is the same as on the node.
    """
    socket = handoff.socket
    if not socket or socket.startswith(ABSTRACT) or conf.container_dir is None:
        return socket
    return os.path.join(conf.container_dir, os.path.basename(socket))
