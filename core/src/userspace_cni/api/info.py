"""What an engine says of itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs
from attrs import Attribute, field, frozen


def _text(_: Any, attribute: Attribute[Any], value: object) -> None:
    if not isinstance(value, str) or not value:
        raise _wrong(attribute, "a text that is not empty", value)


def _texts(_: Any, attribute: Attribute[Any], value: object) -> None:
    if not isinstance(value, tuple) or not all(isinstance(text, str) for text in value):
        raise _wrong(attribute, 'a tuple of texts, such as ("memif",)', value)


def _some_texts(_: Any, attribute: Attribute[Any], value: object) -> None:
    _texts(_, attribute, value)
    if not value:
        raise _wrong(attribute, "at least one", value)


def _known_network_types(_: Any, attribute: Attribute[Any], value: tuple[str, ...]) -> None:
    _some_texts(_, attribute, value)
    if not {"none", "bridge", "interface"}.issuperset(value):
        raise _wrong(attribute, 'some of "none", "bridge" and "interface"', value)


def _pair(_: Any, attribute: Attribute[Any], value: object) -> None:
    if not isinstance(value, tuple) or [type(number) for number in value] != [int, int]:
        raise _wrong(attribute, "two numbers, such as (1, 0)", value)


def _sections(_: Any, attribute: Attribute[Any], value: object) -> None:
    if not isinstance(value, Mapping) or not all(
        isinstance(key, str) and isinstance(kind, type) and attrs.has(kind)
        for key, kind in value.items()
    ):
        raise _wrong(attribute, "attrs classes by the key in the configuration", value)


def _settings(_: Any, attribute: Attribute[Any], value: object) -> None:
    if value is not None and not (isinstance(value, type) and attrs.has(value)):
        raise _wrong(attribute, "an attrs class", value)
    required = [a.name for a in attrs.fields(value) if a.default is attrs.NOTHING] if value else []
    if required:
        raise _wrong(attribute, f"a class with a default for {required[0]}", value)


def _names(_: Any, attribute: Attribute[Any], value: object) -> None:
    if not isinstance(value, Mapping) or not all(
        isinstance(text, str) for pair in value.items() for text in pair
    ):
        raise _wrong(attribute, "texts by text", value)


def _wrong(attribute: Attribute[Any], expected: str, value: object) -> TypeError:
    return TypeError(f"EngineInfo.{attribute.name}: expected {expected}, got {value!r}")


@frozen(kw_only=True)
class EngineInfo:
    """The description of an engine: its names, and what it supports.

    A value of a wrong type raises TypeError with the name of the field.
    """

    #: The name in the configuration (``host.engine`` or ``container.engine``), which is also the
    #: name of the entry point.
    name: str = field(validator=_text)
    #: The version of the contract that the engine was written for, such as ``(1, 0)``. Do not use
    #: :data:`.API_VERSION`, which is the version of the installed core.
    api_version: tuple[int, int] = field(validator=_pair)
    #: A description of the engine in one line.
    summary: str = field(validator=_text)
    #: The supported values of ``iftype``, such as ``veth`` and ``memif``.
    interface_types: tuple[str, ...] = field(validator=_some_texts)
    #: The supported values of ``netType``, from ``none``, ``bridge`` and ``interface``.
    network_types: tuple[str, ...] = field(validator=_known_network_types)
    #: Further names for the same engine, each with an entry point.
    aliases: tuple[str, ...] = field(default=(), validator=_texts)
    #: The configuration sections: the key in ``host`` or ``container``, and its attrs class. The
    #: attribute ``vlan_id`` is written ``vlanId`` in the configuration.
    sections: Mapping[str, type] = field(factory=dict, validator=_sections)
    #: For a host engine: the attrs class of the table ``[engines.NAME]`` in the node's settings,
    #: or None if it has no settings. An attribute is written under its own name there
    #: (``api_socket``), and must have a default.
    settings: type | None = field(default=None, validator=_settings)
    #: For a host engine: the default container engine of interface types. The default for other
    #: types is the container engine with the host engine's name.
    container_engines: Mapping[str, str] = field(factory=dict, validator=_names)
    #: For a host engine: the interface types for which it implements :attr:`Attachment.bandwidth`.
    bandwidth: tuple[str, ...] = field(default=(), validator=_texts)

    def __attrs_post_init__(self) -> None:
        for name in ("container_engines", "bandwidth"):
            if unknown := sorted(set(getattr(self, name)) - {*self.interface_types}):
                raise ValueError(
                    f"EngineInfo.{name}: {unknown[0]!r} is none of interface_types, "
                    f"{self.interface_types}"
                )
