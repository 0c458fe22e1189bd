"""The sources of hand-overs in a container: its shared directory, and its pod's annotations."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from typing import Any

from attrs import define, field, frozen

from userspace_cni.agent import downward_api
from userspace_cni.cni.errors import CniError
from userspace_cni.files import read_bytes, read_object
from userspace_cni.handover import Document, load
from userspace_cni.handover.document import REMEDY

DIRECTORY_VARIABLE = "USERSPACE_CNI_DIRECTORY"
DIRECTORY = "/var/run/userspace-cni"
ANNOTATIONS_VARIABLE = "USERSPACE_CNI_ANNOTATIONS"
#: Where the network resources injector mounts the annotations.
ANNOTATIONS = "/etc/podnetinfo/annotations"

_SUFFIX = ".json"
#: Prefix of the names of the first plugin's files, which have another format.
_LEGACY = "configData-"


@frozen(kw_only=True)
class Sources:
    """The places to look in; each of them may be missing."""

    directories: tuple[str, ...]
    annotations: str


@frozen(kw_only=True)
class Found:
    """The hand-overs that were found."""

    #: One for each interface, with net2 before net10.
    documents: tuple[Document, ...]
    #: A sentence for each hand-over that cannot be used.
    problems: tuple[str, ...]

    def named(self, interface: str) -> Document | None:
        """Return the document of *interface*, or None."""
        return next((d for d in self.documents if d.handoff.interface == interface), None)


def locate(directory: str = "", annotations_file: str = "") -> Sources:
    """Return the sources: from the arguments, the environment, or the defaults, in this order."""
    directories = directory or os.environ.get(DIRECTORY_VARIABLE, "") or DIRECTORY
    return Sources(
        directories=tuple(filter(None, directories.split(":"))),
        annotations=annotations_file or os.environ.get(ANNOTATIONS_VARIABLE, "") or ANNOTATIONS,
    )


def read(sources: Sources) -> Found:
    """Read all *sources*. If several describe an interface, use the one with most information.

    That is the hand-over file, then the device-info in ``network-status``, then the first plugin's
    annotation.
    """
    collected = _Collected()
    for directory in sources.directories:
        _read_directory(directory, collected)
    _read_annotations(sources.annotations, collected)
    return Found(
        documents=tuple(sorted(collected.documents.values(), key=_natural)),
        problems=tuple(collected.problems),
    )


@define
class _Collected:
    documents: dict[str, Document] = field(factory=dict)
    problems: list[str] = field(factory=list)


def _read_directory(path: str, collected: _Collected) -> None:
    try:
        directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    except OSError as error:
        collected.problems.append(f"{path} cannot be read: {error.strerror}")
        return
    try:
        for name in sorted(os.listdir(directory)):
            if name.endswith(_SUFFIX) and not name.startswith((".", _LEGACY)):
                _read_file(path, directory, name, collected)
    finally:
        os.close(directory)


def _read_file(path: str, directory: int, name: str, collected: _Collected) -> None:
    file = os.path.join(path, name)
    try:
        document = load(read_object(name, directory), path)
    except FileNotFoundError:
        return  # withdrawn meanwhile
    except CniError as error:
        collected.problems.append(f"{file}: {error}")
    except ValueError as error:
        collected.problems.append(f"{file}: {error}; {REMEDY}")
    except OSError as error:
        collected.problems.append(f"{file} cannot be read: {error.strerror}")
    else:
        interface = document.handoff.interface
        if interface in collected.documents:
            collected.problems.append(f"{file}: another file tells of {interface} already")
        collected.documents.setdefault(interface, document)


def _read_annotations(path: str, collected: _Collected) -> None:
    try:
        # The path is a symbolic link: kubelet updates the file by changing the link's target.
        values = downward_api.parse(read_bytes(path, follow=True).decode())
    except (FileNotFoundError, NotADirectoryError):
        return
    except ValueError as error:
        collected.problems.append(f"{path}: {error}")
        return
    except OSError as error:
        collected.problems.append(f"{path} cannot be read: {error.strerror}")
        return
    for key, reader in downward_api.READERS.items():
        if key not in values:
            continue
        try:
            documents = list(reader(_json_list(values[key]), values))
        except (CniError, ValueError) as error:
            collected.problems.append(f"{path}: {key}: {error}")
            continue
        for document in documents:
            collected.documents.setdefault(document.handoff.interface, document)


def _json_list(text: str) -> Iterable[dict[str, Any]]:
    try:
        items = json.loads(text)
    except RecursionError:
        raise ValueError("is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"is not JSON: {error}") from None
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise ValueError("expected a list of JSON objects")
    return items


def _natural(document: Document) -> list[tuple[int, str]]:
    parts = re.split(r"(\d+)", document.handoff.interface)
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts]
