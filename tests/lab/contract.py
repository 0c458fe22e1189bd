"""What every host engine must do, whatever it drives: called by each engine's own tests."""

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
    """Take *attachment* through its life: status, add, list, check, delete, delete again.

    Args:
        engine: under test.
        attachment: not there yet.
        conf: the ``host`` part of the configuration.
        call: ``call(function, *args)`` calls it where the engine's host is.
        listed: whether this kind of port is seen by ``list``.

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
    """Add *attachment*, then undo it as the runtime does when a later step fails."""
    undo = ExitStack()
    call(engine.add, attachment, conf, undo)
    call(undo.close)
    assert attachment.id not in call(engine.attachments, attachment.network, conf)
