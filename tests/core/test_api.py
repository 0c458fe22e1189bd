"""The contract for authors of engines: its version, names and documentation."""

from __future__ import annotations

import ast
import inspect
from textwrap import dedent
from typing import TYPE_CHECKING, Any

import pytest
from attrs import frozen

from userspace_cni import api, config
from userspace_cni.api import CniError, EngineInfo, sections

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType

_INFO: dict[str, Any] = {
    "name": "e",
    "api_version": (1, 0),
    "summary": "an engine",
    "interface_types": ("memif",),
    "network_types": ("none",),
}


@frozen
class _Section:
    """Of a network."""


@frozen
class _Demanding:
    api_socket: str


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", ""),
        ("name", 7),
        ("summary", ""),
        ("summary", None),
        ("api_version", "1.0"),
        ("api_version", (1,)),
        ("api_version", (1, True)),
        ("api_version", [1, 0]),
        ("interface_types", "memif"),
        ("interface_types", ["memif"]),
        ("interface_types", ()),
        ("interface_types", (1,)),
        ("network_types", ()),
        ("network_types", ("switch",)),
        ("aliases", "f"),
        ("sections", {"memif": dict}),
        ("sections", {"memif": _Section()}),
        ("sections", {7: _Section}),
        ("sections", [_Section]),
        ("settings", dict),
        ("settings", _Section()),
        ("settings", _Demanding),
        ("container_engines", {"memif": None}),
        ("container_engines", {"memi": "dpdk"}),
        ("bandwidth", "memif"),
        ("bandwidth", ("memi",)),
    ],
)
def test_what_an_engine_says_of_itself_is_judged(field: str, value: object) -> None:
    with pytest.raises((TypeError, ValueError), match=rf"^EngineInfo\.{field}: ") as caught:
        EngineInfo(**_INFO | {field: value})
    assert repr(value) in str(caught.value) or "memi" in str(caught.value)


@frozen
class _Odd:
    number: complex = 0j


@frozen
class _Unresolved:
    number: Nowhere | None = None  # type: ignore[name-defined]  # noqa: F821


@pytest.mark.parametrize("kind", [_Odd, _Unresolved])
def test_a_section_that_nothing_can_be_read_as_is_its_packages_fault(kind: type) -> None:
    info = EngineInfo(**_INFO | {"sections": {"odd": kind}})
    with pytest.raises(CniError) as caught:
        config.engine_conf({"iftype": "memif", "odd": {}}, "host", info, {})
    assert caught.value.code == 101
    assert caught.value.msg.startswith("host.odd: nothing can be read as ")
    assert kind.__qualname__ in caught.value.msg
    assert "reinstall the package" in caught.value.details


def test_an_engine_must_say_for_which_contract_it_was_written() -> None:
    without = {key: value for key, value in _INFO.items() if key != "api_version"}
    with pytest.raises(TypeError, match="api_version"):
        EngineInfo(**without)


@pytest.mark.parametrize("module", [api, sections])
def test_all_that_is_public_is_listed(module: ModuleType) -> None:
    own = set()
    for node in ast.parse(inspect.getsource(module)).body:
        match node:
            case ast.ImportFrom(module=str(origin)) if origin.startswith("userspace_cni"):
                own |= {alias.name for alias in node.names}
            case ast.ClassDef() | ast.FunctionDef():
                own.add(node.name)
            case ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)):
                own.add(name)
    own = {name for name in own if not name.startswith("_")}
    assert own == set(module.__all__)


def _without_a_comment(kind: type) -> Iterator[str]:
    """Yield the public attributes of a class that have no comment."""
    source = dedent(inspect.getsource(kind))
    lines = source.splitlines()
    (tree,) = ast.parse(source).body
    assert isinstance(tree, ast.ClassDef)
    for node in tree.body:
        match node:
            case ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)):
                is_public = not name.startswith("_")
                if is_public and not lines[node.lineno - 2].strip().startswith("#: "):
                    yield f"{kind.__name__}.{name}"


def test_each_attribute_of_a_public_class_is_documented() -> None:
    kinds = [
        getattr(module, name)
        for module in (api, sections)
        for name in module.__all__
        if inspect.isclass(getattr(module, name))
    ]
    ours = [kind for kind in kinds if kind.__module__.startswith("userspace_cni")]
    assert len(ours) > 20
    assert [name for kind in ours for name in _without_a_comment(kind)] == []
