"""A griffe extension for the reference pages: it reads comments ``#:`` and Sphinx roles.

mkdocstrings renders docs/reference/ from the source of ``userspace_cni``. The source describes the
fields of classes in ``#:`` comments, and refers to other names with roles such as ``:meth:``.
Griffe reads neither.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from griffe import Attribute, Class, Docstring, Extension, Module, Object

PUBLIC = "userspace_cni.api"

_ROLE = re.compile(r":(?:py:)?(?:class|meth|attr|func|data|mod|exc):`([^`]+)`")
_LITERAL = re.compile(r"``([^`]+)``")
_HEADER = re.compile(r"<(?=\w+/)")  # <linux/if_link.h> is not HTML
_COMMENT = re.compile(r"\s*#: ?(.*)")


class Reference(Extension):
    """Completes docstrings after a package was loaded."""

    def on_package(self, *, pkg: Module, **_: Any) -> None:
        """Complete the docstrings of *pkg*."""
        self._visit(pkg, pkg[PUBLIC.partition(".")[2]])

    def _visit(self, parent: Module | Class, public: Module) -> None:
        for member in parent.members.values():
            if member.is_alias:
                continue
            if isinstance(member, Attribute):
                member.labels -= {"class-attribute", "instance-attribute", "module-attribute"}
                if text := _comment(member):
                    member.docstring = Docstring(text, parent=member)
            if isinstance(member, Object) and member.docstring:
                member.docstring.value = _markdown(member.docstring.value, parent, member, public)
            if isinstance(member, (Module, Class)):
                self._visit(member, public)


def _comment(attribute: Attribute) -> str:
    """Return the ``#:`` comment above *attribute*."""
    found: list[str] = []
    if not isinstance(attribute.filepath, Path):  # a namespace package has several
        return ""
    lines = attribute.lines_collection[attribute.filepath]
    number = (attribute.lineno or 1) - 1
    while number and (match := _COMMENT.fullmatch(lines[number - 1])):
        found.insert(0, match[1])
        number -= 1
    return "\n".join(found)


def _markdown(text: str, parent: Module | Class, member: Object, public: Module) -> str:
    def link(match: re.Match[str]) -> str:
        name = match[1].lstrip("~.")
        shown = name.removeprefix(f"{PUBLIC}.")
        for scope in (member, parent, public):
            if isinstance(scope, (Module, Class)) and shown.partition(".")[0] in scope.members:
                path = f"{PUBLIC if isinstance(scope, Module) else scope.path}.{shown}"
                return f'<autoref identifier="{path}" optional>`{shown}`</autoref>'
        return f"`{shown}`"

    return _LITERAL.sub(r"`\1`", _ROLE.sub(link, _HEADER.sub("&lt;", text)))
