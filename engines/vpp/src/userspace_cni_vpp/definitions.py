"""Definitions of the VPP API messages that the engine uses.

``definitions.json`` contains the names, fields, types and CRCs of these messages. VPP sends the CRC
of each message when a client connects. If a CRC differs from ours, the definition is read from the
API files of the running VPP (``*.api.json``).
"""

from __future__ import annotations

import json
import threading
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrs import frozen

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

#: The VPP plugin that provides a module's messages; other modules belong to VPP's core.
PLUGINS = {
    "memif": "memif_plugin.so",
    "vhost_user": "vhost_plugin.so",
    "tapv2": "tap_plugin.so",
    "af_packet": "af_packet_plugin.so",
}
_TYPE_PREFIX = "vl_api_"
#: Protects vpp-papi's process-wide table of types.
_types_lock = threading.Lock()


@frozen
class Message:
    """A message: its name, the CRC of its definition, and its codec."""

    name: str
    #: Eight hexadecimal digits.
    crc: str
    _codec: Any

    @property
    def key(self) -> str:
        """The name of this definition in VPP's message table."""
        return f"{self.name}_{self.crc}"

    def pack(self, fields: Mapping[str, Any]) -> bytes:
        """Encode the message; a missing field is 0 or empty."""
        return bytes(self._codec.pack(dict(fields)))

    def unpack(self, data: bytes) -> Any:
        """Decode a message to a named tuple; addresses remain bytes."""
        return self._codec.unpack(data, ntc=True)[0]


@frozen
class Request:
    """A request and its reply."""

    message: Message
    reply: Message
    #: VPP answers with any number of replies; a ``control_ping`` marks their end.
    stream: bool
    #: The API file that defines it, without ``.api.json``.
    module: str

    @property
    def messages(self) -> tuple[Message, Message]:
        """The request and the reply."""
        return self.message, self.reply


@cache
def own() -> Mapping[str, Request]:
    """Return the definitions in this package by name of the request."""
    text = files(__package__).joinpath("definitions.json").read_text(encoding="utf-8")
    modules: dict[str, list[str]] = json.loads(text)["modules"]
    return _requests(_parse([text]), {n: m for m, names in modules.items() for n in names})


def of_running(api_dir: str, requests: Iterable[Request]) -> Mapping[str, Request]:
    """Return the definitions of *requests* from the API files below *api_dir*.

    Raises:
        OSError: if a file cannot be read.
        ValueError: if a file is not an API file.

    """
    wanted = {request.message.name: request.module for request in requests}
    paths = {path.name.partition(".")[0]: path for path in Path(api_dir).rglob("*.api.json")}
    texts = [paths[module].read_text("utf-8") for module in set(wanted.values()) if module in paths]
    return _requests(_parse(texts), wanted)


def _parse(texts: Iterable[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the messages and services of API files by name.

    Each file contains all types that it needs. A type's definition may differ between VPP versions,
    so types of earlier files are removed from vpp-papi's table first.
    """
    from vpp_papi import vpp_serializer
    from vpp_papi.vpp_papi import VPPApiJSONFiles

    messages: dict[str, Any] = {}
    services: dict[str, Any] = {}
    with _types_lock:
        for text in texts:
            for name in [n for n in vpp_serializer.types if n.startswith(_TYPE_PREFIX)]:
                del vpp_serializer.types[name]
            found, served = VPPApiJSONFiles.process_json_str(text)
            messages |= found
            services |= served
    return messages, services


def _requests(
    parsed: tuple[dict[str, Any], dict[str, Any]], modules: Mapping[str, str]
) -> Mapping[str, Request]:
    messages, services = parsed

    def message(name: str) -> Message:
        return Message(name, messages[name].crc.removeprefix("0x"), messages[name])

    return {
        name: Request(
            message(name),
            message(services[name]["reply"]),
            bool(services[name].get("stream")),
            module,
        )
        for name, module in modules.items()
        if name in messages
    }
