"""Converts JSON and TOML to attrs classes, with errors that have the path of the key.

cattrs does the conversion. This module adds hooks that produce errors such as
``host.bridge.vlanId: expected 1 to 4094, got 5000``. Values are not coerced: ``"1500"`` is not an
integer, and ``0`` is not false. A path must be absolute.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from types import GenericAlias
from typing import Any, Literal, TypeVar, get_args, get_origin

import attrs
from attrs import Attribute, frozen
from cattrs import (
    AttributeValidationNote,
    BaseValidationError,
    ClassValidationError,
    Converter,
    ForbiddenExtraKeysError,
    IterableValidationError,
)

from userspace_cni.cni.errors import CniError, Code, did_you_mean

_T = TypeVar("_T")
_Hook = Callable[[Any, Any], Any]


def key_of(attribute: Attribute[Any]) -> str:
    """Return the key of *attribute* in JSON: its name in camelCase, or its metadata "key"."""
    explicit = attribute.metadata.get("key")
    if explicit is not None:
        return str(explicit)
    first, *rest = attribute.name.split("_")
    return first + "".join(part.capitalize() for part in rest)


@frozen(eq=False)
class Notation:
    """A file format: how keys are written, and the words for it in errors."""

    key: Callable[[Attribute[Any]], str]
    #: The word for an object with keys.
    table: str
    #: The word for the whole file.
    whole: str


JSON = Notation(key_of, "a JSON object", "the network configuration")
TOML = Notation(lambda attribute: attribute.name, "a table", "the file")


def structure(value: object, kind: type[_T], path: str, notation: Notation = JSON) -> _T:
    """Convert *value* to the attrs class *kind*; *path* is its path in the configuration.

    Attributes with ``"written": False`` in their metadata are not keys.

    Raises:
        CniError: 2 if unknown keys are the only problem, else 7; 101 when *kind*, an engine's
            class, has attributes of a type that is not supported.

    """
    try:
        hook = _converter(notation).get_structure_hook(kind)
    except Exception as error:
        raise CniError(
            Code.ENGINE_BROKEN,
            f"{path}: nothing can be read as {kind.__module__}.{kind.__qualname__}",
            f"{type(error).__name__}: {error}; reinstall the package that has it, or upgrade it",
        ) from error
    try:
        structured: _T = hook(value, kind)
    except (BaseValidationError, ValueError) as error:
        problems = list(_problems(error, path, value, notation))
        code = (
            Code.UNSUPPORTED_FIELD
            if all(unknown for unknown, _ in problems)
            else Code.INVALID_NETWORK_CONFIG
        )
        raise CniError(code, "; ".join(text for _, text in problems)) from None
    return structured


def _keys(kind: type, notation: Notation) -> dict[str, str]:
    """Return the keys of the attributes of *kind*, by name."""
    return {a.name: notation.key(a) for a in attrs.fields(kind) if a.metadata.get("written", True)}


def _problems(
    error: BaseException, path: str, value: object, notation: Notation
) -> Iterator[tuple[bool, str]]:
    """Yield the problems in *error*: whether it is an unknown key, and the message."""
    if isinstance(error, ClassValidationError):
        keys = _keys(error.cl, notation)
        noted, others = error.group_exceptions()
        for inner, note in noted:
            key = keys[note.name]
            below = value.get(key) if isinstance(value, dict) else None
            yield from _problems(inner, f"{path}.{key}".lstrip("."), below, notation)
        for other in others:
            yield from _problems(other, path, value, notation)
    elif isinstance(error, IterableValidationError):
        items, others = error.group_exceptions()
        for inner, position in items:
            below = value[int(position.index)] if isinstance(value, list) else None
            yield from _problems(inner, f"{path}[{position.index}]", below, notation)
        for other in others:
            yield from _problems(other, path, value, notation)
    elif isinstance(error, ForbiddenExtraKeysError):
        assert isinstance(value, dict)  # noqa: S101  it had keys
        known = [*_keys(error.cl, notation).values()] if error.cl else []
        for key in sorted(error.extra_fields):
            told = _with_value(value[key], key, error.cl)
            yield (
                True,
                f"{path}.{key}".lstrip(".") + f": unknown key{told} "
                f"({did_you_mean(key, known)}known: {', '.join(known) or 'none'})",
            )
    elif isinstance(error, KeyError):
        yield False, f"{path}: missing"
    else:
        yield False, f"{path or notation.whole}: {error}"


def _told(value: object) -> str:
    return json.dumps(value, default=str)  # TOML has dates


def _string(value: object, _: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"expected a string, got {_told(value)}")
    return value


def _integer(value: object, _: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"expected an integer, got {_told(value)}")
    return value


def _boolean(value: object, _: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"expected true or false, got {_told(value)}")
    return value


def _number(value: object, _: object) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise ValueError(f"expected a number, got {_told(value)}")
    return float(value)


def _path(value: object, _: object) -> Path:
    if not isinstance(value, str) or not value.startswith("/") or "\0" in value:
        raise ValueError(f"expected an absolute path, got {_told(value)}")
    return Path(value)


def _literal(value: object, kind: Any) -> object:
    known = get_args(kind)
    if value not in known:
        raise ValueError(f"expected one of {', '.join(map(str, known))}, got {_told(value)}")
    return value


def _object_of(kind: type[Any], converter: Converter, notation: Notation) -> _Hook:
    """Return the hook for an attrs class, which refuses unknown keys and checks each value.

    It raises the same errors as the hook that cattrs generates. That one is compiled, which takes
    longer than everything else in a process that serves one request.
    """
    attrs.resolve_types(kind)
    keys = _keys(kind, notation)
    members = [
        (attribute, keys[attribute.name], _member(attribute, converter))
        for attribute in attrs.fields(kind)
        if attribute.name in keys
    ]

    def hook(value: object, _: object) -> Any:
        if not isinstance(value, dict):
            raise ValueError(f"expected {notation.table}, got {shown(value, kind)}")
        values: dict[str, Any] = {}
        errors: list[Exception] = []
        for attribute, key, member in members:
            if key not in value and attribute.default is not attrs.NOTHING:
                continue
            try:
                values[attribute.alias] = member(value[key], attribute.type)
            except Exception as error:  # noqa: BLE001  a validator may raise anything
                error.add_note(AttributeValidationNote(key, attribute.name, attribute.type))
                errors.append(error)
        if unknown := value.keys() - keys.values():
            errors.append(ForbiddenExtraKeysError("", kind, unknown))
        if errors:
            raise ClassValidationError(kind.__name__, errors, kind)
        return kind(**values)

    return hook


def _member(attribute: Attribute[Any], converter: Converter) -> _Hook:
    """Return the hook for one attribute.

    It runs the attribute's validator, because an error of the class's constructor would not have
    the attribute's name.
    """
    structure_value = converter.get_structure_hook(attribute.type)

    def hook(value: object, _: object) -> Any:
        try:
            structured = structure_value(value, attribute.type)
        except ValueError:
            if attribute.repr:
                raise
            raise ValueError("expected a string (its value is not shown)") from None
        if attribute.validator is not None:
            attribute.validator(None, attribute, structured)
        return structured

    return hook


def _tuple_of(kind: Any, converter: Converter, _: Notation) -> _Hook:
    items = GenericAlias(list, get_args(kind)[:1])
    structure_items = converter.get_structure_hook(items)

    def hook(value: object, _: object) -> tuple[Any, ...]:
        if not isinstance(value, list):
            raise ValueError(f"expected a list, got {_told(value)}")
        return tuple(structure_items(value, items))

    return hook


def _table(notation: Notation) -> _Hook:
    def hook(value: object, _: object) -> Mapping[str, Any]:
        if not isinstance(value, dict):
            raise ValueError(f"expected {notation.table}, got {_told(value)}")
        return value

    return hook


def shown(value: object, *kinds: type) -> str:
    """Return *value* for an error message; it was given for one of *kinds*.

    Only the type of a value is shown if the value has or may have a secret: an attribute that its
    class does not show.
    """
    if isinstance(value, dict) and value:
        return "a JSON object"
    if any(not a.repr for kind in kinds if attrs.has(kind) for a in attrs.fields(kind)):
        types = {str: "a string", bool: "a boolean", list: "a list", dict: "a JSON object"}
        return types.get(type(value), "a number" if value is not None else "null")
    return _told(value)


def _with_value(value: object, key: str, kind: type | None) -> str:
    is_secret = "secr" in key.lower()
    return "" if is_secret else f" with value {shown(value, *((kind,) if kind else ()))}"


def _is_literal(kind: Any) -> bool:
    return get_origin(kind) is Literal


def _is_tuple(kind: Any) -> bool:
    return get_origin(kind) is tuple


@cache
def _converter(notation: Notation) -> Converter:
    converter = Converter(detailed_validation=True)
    converter.register_structure_hook(str, _string)
    converter.register_structure_hook(int, _integer)
    converter.register_structure_hook(float, _number)
    converter.register_structure_hook(bool, _boolean)
    converter.register_structure_hook(Path, _path)
    converter.register_structure_hook_func(_is_literal, _literal)
    converter.register_structure_hook_func(lambda kind: kind == Mapping[str, Any], _table(notation))
    for known, factory in ((attrs.has, _object_of), (_is_tuple, _tuple_of)):
        converter.register_structure_hook_factory(
            known, lambda kind, factory=factory: factory(kind, converter, notation)
        )
    return converter
