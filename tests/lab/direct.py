"""Requests served in the test process, without starting an interpreter."""

from __future__ import annotations

import importlib
import sys
import sysconfig
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING

from attrs import define, field

from userspace_cni import registry
from userspace_cni.plugin import respond

if TYPE_CHECKING:
    from collections.abc import Mapping

    from userspace_cni.cni.answer import Answer


@define
class Direct:
    """Serves requests in this process, optionally with the engines of another interpreter."""

    _site: str = field(default="", init=False)

    def serve(self, environ: Mapping[str, str], stdin: bytes) -> tuple[Answer, str]:
        """Return the answer and the log."""
        stderr = StringIO()
        return respond(environ, stdin, stderr), stderr.getvalue()

    def use(self, interpreter: Path) -> None:
        """Also use the packages of *interpreter*, instead of those of an earlier one."""
        self.close()
        if interpreter != Path(sys.executable):
            self._site = str(site_packages(interpreter))
            sys.path.append(self._site)
        _look_again()

    def close(self) -> None:
        """Stop using the packages of the other interpreter."""
        if not self._site:
            return
        sys.path.remove(self._site)
        for name, module in list(sys.modules.items()):
            if (getattr(module, "__file__", None) or "").startswith(f"{self._site}/"):
                del sys.modules[name]
        self._site = ""
        _look_again()


def site_packages(interpreter: Path) -> Path:
    """Return the site-packages directory of a virtualenv's *interpreter*."""
    base = str(interpreter.parent.parent)
    return Path(sysconfig.get_path("purelib", vars={"base": base, "platbase": base}))


def _look_again() -> None:
    registry._load.cache_clear()
    importlib.invalidate_caches()
