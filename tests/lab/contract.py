"""Checks of the contract that the tests of every host engine call."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from userspace_cni.api import Attachment, EngineConf, HostEngine, HostPort


def host_engine_life(
    engine: HostEngine,
    attachment: Attachment,
    conf: EngineConf,
    call: Callable[..., Any],
    *,
    listed: bool = True,
) -> HostPort:
    """Run the life cycle of *attachment*: status, add, list, check, delete, delete again.

    Args:
        engine: the engine under test.
        attachment: an attachment that does not exist yet.
        conf: the ``host`` part of the configuration.
        call: ``call(function, *args)`` calls a function in the host's network namespace.
        listed: whether ``attachments`` lists this kind of port.

    """
    call(engine.status, conf)
    assert attachment.id not in call(engine.attachments, attachment.network, conf)

    undo = ExitStack()
    port: HostPort = call(engine.add, attachment, conf, undo)
    undo.pop_all()
    assert port.name
    assert (attachment.id in call(engine.attachments, attachment.network, conf)) is listed
    assert attachment.id not in call(engine.attachments, f"{attachment.network}-2", conf)
    call(engine.check, attachment, conf, port)

    call(engine.delete, attachment.id, conf, attachment.netns)
    assert attachment.id not in call(engine.attachments, attachment.network, conf)
    call(engine.delete, attachment.id, conf, attachment.netns)
    call(engine.delete, attachment.id, conf, None)
    return port


def host_engine_undo(
    engine: HostEngine, attachment: Attachment, conf: EngineConf, call: Callable[..., Any]
) -> None:
    """Add *attachment*, then run the undo steps as the runtime does if a later step fails."""
    undo = ExitStack()
    call(engine.add, attachment, conf, undo)
    call(undo.close)
    assert attachment.id not in call(engine.attachments, attachment.network, conf)
