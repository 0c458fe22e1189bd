"""What the messages look like that we exchange with VPP.

We carry a definition of our own (``definitions.json``: names, fields, types and CRCs) of just the
messages that we use. VPP tells each message's CRC when a client connects; where one is not ours,
the definition comes from the API files of the VPP that is running (``*.api.json``).
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

#: The plugins of VPP that have the messages of a module; all else is in its core.
PLUGINS = {
    "memif": "memif_plugin.so",
    "vhost_user": "vhost_plugin.so",
    "tapv2": "tap_plugin.so",
    "af_packet": "af_packet_plugin.so",
}
_TYPE_PREFIX = "vl_api_"
#: vpp-papi keeps one table of types for the process.
_types_lock = threading.Lock()


@frozen
class Message:
    """One message: its name, the CRC of its definition, and how it is written and read."""

    name: str
    #: Eight hexadecimal digits.
    crc: str
    _codec: Any

    @property
    def key(self) -> str:
        """What VPP calls this definition of the message in its table."""
        return f"{self.name}_{self.crc}"

    def pack(self, fields: Mapping[str, Any]) -> bytes:
        """Return the message as VPP reads it; a field that is not given is 0 or empty."""
        return bytes(self._codec.pack(dict(fields)))

    def unpack(self, data: bytes) -> Any:
        """Return a named tuple of the message's fields; addresses stay bytes."""
        return self._codec.unpack(data, ntc=True)[0]


@frozen
class Request:
    """A message that we send, and what VPP answers."""

    message: Message
    reply: Message
    #: VPP answers with any number of *reply*, whose end a ``control_ping`` finds.
    stream: bool
    #: The API file that defines it, without ``.api.json``.
    module: str

    @property
    def messages(self) -> tuple[Message, Message]:
        """Both of them."""
        return self.message, self.reply


@cache
def own() -> Mapping[str, Request]:
    """Return our own definitions, by the name of the request."""
    text = files(__package__).joinpath("definitions.json").read_text(encoding="utf-8")
    modules: dict[str, list[str]] = json.loads(text)["modules"]
    return _requests(_parse([text]), {n: m for m, names in modules.items() for n in names})


def of_running(api_dir: str, requests: Iterable[Request]) -> Mapping[str, Request]:
    """Return the definitions of *requests* that the API files below *api_dir* have.

    Raises:
        OSError: when a file cannot be read.
        ValueError: when it is no API file.

    """
    wanted = {request.message.name: request.module for request in requests}
    paths = {path.name.partition(".")[0]: path for path in Path(api_dir).rglob("*.api.json")}
    texts = [paths[module].read_text("utf-8") for module in set(wanted.values()) if module in paths]
    return _requests(_parse(texts), wanted)


def _parse(texts: Iterable[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return messages and services of API files, by name.

    Each file has all types that it needs. The same name may mean something else in another VPP, so
    none of them may outlive this in vpp-papi's table.
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
