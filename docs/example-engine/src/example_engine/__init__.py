"""An engine whose switch is a directory: a port is a file in it, and its tag is the file's name.

It moves no packets, but is complete otherwise: it tags what it makes, undoes what fails, accepts
the deletion of a port that no longer exists, and distinguishes a switch that is down from one that
refuses.

Configuration::

    "host": {"engine": "example", "iftype": "note", "note": {"text": "hello"}}

Node settings::

    [engines.example]
    directory = "/run/example-switch"
"""

from collections.abc import Iterator
from contextlib import ExitStack
from hashlib import sha256
from pathlib import Path
from typing import ClassVar, Literal

from attrs import field, frozen

from userspace_cni.api import (
    Attachment,
    CheckFailed,
    ContainerEngine,
    DataplaneError,
    DataplaneUnavailable,
    EngineConf,
    EngineInfo,
    Handoff,
    HostEngine,
    HostPort,
)

_TEXT_MAX = 64  # characters


def _short(_: object, __: object, text: str) -> None:
    if len(text) > _TEXT_MAX:
        raise ValueError(f"expected at most {_TEXT_MAX} characters, got {len(text)}")


@frozen(kw_only=True)
class Note:
    """The section ``note``."""

    #: The content of the port's file.
    text: str = field(default="", validator=_short)


@frozen(kw_only=True)
class Settings:
    """The table ``[engines.example]``."""

    #: The switch.
    directory: Path = Path("/run/example-switch")


_INFO = EngineInfo(
    name="example",
    api_version=(1, 0),
    summary="ports are files in a directory",
    interface_types=("note",),
    network_types=("none", "interface"),
    sections={"note": Note},
    settings=Settings,
)


class ExampleHostEngine(HostEngine):
    """Makes a file for each port."""

    info: ClassVar[EngineInfo] = _INFO

    def status(self, conf: EngineConf) -> None:
        self._switch()

    def add(self, attachment: Attachment, conf: EngineConf, undo: ExitStack) -> HostPort:
        port = self._switch() / f"{_digest(attachment.network)}.{attachment.id}"
        try:
            with port.open("x") as file:
                undo.callback(port.unlink, missing_ok=True)
                file.write(conf.section(Note).text)
        except OSError as error:
            raise DataplaneError(f"port {port} cannot be made: {error.strerror}") from error
        return HostPort(
            name=port.name,
            mac=attachment.mac_for("container"),
            mtu=1500,
            generation=self.generation(conf),
        )

    def delete(self, attachment_id: str, conf: EngineConf, netns: str | None) -> None:
        for port in self._switch().glob(f"*.{attachment_id}"):
            port.unlink(missing_ok=True)

    def check(self, attachment: Attachment, conf: EngineConf, port: HostPort) -> None:
        file = self._switch() / port.name
        if not file.exists():
            raise CheckFailed(f"port {file} is gone", "DEL the container and ADD it again")

    def attachments(self, network: str, conf: EngineConf) -> Iterator[str]:
        for port in self._switch().glob(f"{_digest(network)}.*"):
            yield port.suffix.removeprefix(".")

    def switch_key(self, conf: EngineConf) -> str:
        return ""  # a node has one

    def generation(self, conf: EngineConf) -> str:
        return str(self._switch().stat().st_ino)

    def _switch(self) -> Path:
        settings: Settings = self.context.settings
        directory = settings.directory
        if not directory.is_dir():
            raise DataplaneUnavailable(
                f"the example switch {directory} is not running", f"start it: mkdir {directory}"
            )
        return directory


class ExampleContainerEngine(ContainerEngine):
    """The application reads the port's file itself, so there is nothing to configure."""

    info: ClassVar[EngineInfo] = _INFO
    where: ClassVar[Literal["node", "container"]] = "node"

    def prepare(self, attachment: Attachment, conf: EngineConf, port: HostPort) -> Handoff:
        addresses = attachment.wait_for_addresses()
        return Handoff(
            interface=attachment.interface,
            iftype=conf.iftype,
            net_type=conf.net_type,
            mac=port.mac,
            mtu=port.mtu,
            ips=addresses.ips,
            routes=addresses.routes,
            dns=addresses.dns,
        )

    def add(self, handoff: Handoff) -> None:
        pass

    def check(self, handoff: Handoff) -> None:
        pass


def _digest(network: str) -> str:
    # A network's name may be longer than the name of a file.
    return sha256(network.encode()).hexdigest()[:16]
