"""Finds installed engines by entry point, and loads the one that is named, no other."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

from attrs import frozen

from userspace_cni.cni.errors import CniError, Code
from userspace_cni.engine import CONTAINER_ENGINES, HOST_ENGINES, ContainerEngine, HostEngine
from userspace_cni.log import logger

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

_T = TypeVar("_T")

#: Our own engines, by the extra of ``userspace-cni`` that installs them.
_EXTRAS = {"dpdk": "ovs", "linux": "linux", "ovs": "ovs", "ovs-dpdk": "ovs", "vpp": "vpp"}


@frozen(kw_only=True)
class Installed:
    """One engine that is installed, for ``userspace-cni engines``."""

    name: str
    end: str
    distribution: str
    version: str
    #: Its summary; where it cannot be loaded, why.
    summary: str
    usable: bool


def host_engine(name: str) -> type[HostEngine]:
    """Return the class of host engine *name*.

    Raises:
        CniError: 100 when it is not installed, 101 when its package cannot be loaded.

    """
    return _load(HOST_ENGINES, "host", name, HostEngine)


def container_engine(name: str) -> type[ContainerEngine]:
    """Return the class of container engine *name*; raises as :func:`host_engine` does."""
    return _load(CONTAINER_ENGINES, "container", name, ContainerEngine)


def installed() -> Iterable[Installed]:
    """Load and describe every installed engine."""
    for end, group, kind in (
        ("host", HOST_ENGINES, HostEngine),
        ("container", CONTAINER_ENGINES, ContainerEngine),
    ):
        for entry_point in sorted(_entry_points(group), key=lambda entry: str(entry.name)):
            try:
                summary, usable = _load(group, end, entry_point.name, kind).info.summary, True
            except CniError as error:
                summary, usable = str(error), False
            yield Installed(
                name=entry_point.name,
                end=end,
                distribution=entry_point.dist.name if entry_point.dist else "",
                version=entry_point.dist.version if entry_point.dist else "",
                summary=summary,
                usable=usable,
            )


def _entry_points(group: str) -> Iterable[EntryPoint]:
    # stevedore's own list comes from a cache that does not say whose they are.
    from importlib.metadata import entry_points

    return entry_points(group=group)


@cache
def _load(group: str, end: str, name: str, kind: type[_T]) -> type[_T]:
    from stevedore.driver import DriverManager
    from stevedore.exception import NoMatches

    failures: list[Exception] = []
    try:
        manager: Any = DriverManager(
            group,
            name,
            on_load_failure_callback=lambda *failure: failures.append(failure[2]),
        )
    except NoMatches:
        if failures:
            raise _broken(end, name, failures[0]) from failures[0]
        raise _missing(group, end, name) from None
    engine = manager.driver
    if not (isinstance(engine, type) and issubclass(engine, kind)):
        raise _broken(end, name, TypeError(f"{engine!r} is not a subclass of {kind.__name__}"))
    return engine


def _missing(group: str, end: str, name: str) -> CniError:
    others = ", ".join(sorted({entry.name for entry in _entry_points(group)})) or "none"
    remedy = (
        f"install it with: pip install 'userspace-cni[{_EXTRAS[name]}]'"
        if name in _EXTRAS
        else "install the package that provides it, or correct the name"
    )
    return CniError(
        Code.ENGINE_NOT_INSTALLED,
        f"{end} engine {name!r} is not installed",
        f"{remedy} (installed {end} engines: {others})",
    )


def _broken(end: str, name: str, cause: Exception) -> CniError:
    logger.debug("%s engine %r failed to load", end, name, exc_info=cause)
    return CniError(
        Code.ENGINE_BROKEN,
        f"{end} engine {name!r} is installed but cannot be loaded",
        f"{type(cause).__name__}: {cause}; reinstall the package that provides it",
    )
