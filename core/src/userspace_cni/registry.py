"""Registry of installed engines, found by entry point. Only the requested engine is loaded."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

from attrs import frozen

from userspace_cni import extras
from userspace_cni.api import (
    API_VERSION,
    CONTAINER_ENGINES,
    HOST_ENGINES,
    IPAM_ENGINES,
    ContainerEngine,
    EngineInfo,
    HostEngine,
    IpamEngine,
    IpamInfo,
)
from userspace_cni.api.version import version_text
from userspace_cni.cni.errors import CniError, Code, did_you_mean
from userspace_cni.log import logger

if TYPE_CHECKING:
    from importlib.metadata import Distribution, EntryPoint

    from userspace_cni.config.settings import Settings

_T = TypeVar("_T")

#: The kinds of engines: the word for one, its entry point group, and its class.
_KINDS: tuple[tuple[str, str, type[HostEngine | ContainerEngine | IpamEngine]], ...] = (
    ("host", HOST_ENGINES, HostEngine),
    ("container", CONTAINER_ENGINES, ContainerEngine),
    ("ipam", IPAM_ENGINES, IpamEngine),
)


@frozen(kw_only=True)
class Installed:
    """An installed engine, for ``userspace-cni engines``."""

    name: str
    #: ``host`` or ``container``.
    end: str
    distribution: str
    version: str
    #: The engine's summary; if it cannot be used, the reason and the remedy.
    summary: str
    usable: bool


def host_engine(name: str) -> type[HostEngine]:
    """Return the class of host engine *name*.

    Raises:
        CniError: 100 if it is not installed, 101 if it cannot be used.

    """
    return _load(HOST_ENGINES, "host", name, HostEngine)


def container_engine(name: str) -> type[ContainerEngine]:
    """Return the class of container engine *name*; raise the errors of :func:`host_engine`."""
    return _load(CONTAINER_ENGINES, "container", name, ContainerEngine)


def ipam_engine(name: str) -> type[IpamEngine] | None:
    """Return the class of IPAM engine *name*, or None if it is not installed.

    Raises:
        CniError: 101 if its package cannot be loaded.

    """
    try:
        return _load(IPAM_ENGINES, "ipam", name, IpamEngine)
    except CniError as error:
        if error.code != Code.ENGINE_NOT_INSTALLED:
            raise
        logger.warning("%s; it may be executed", error)
        return None


def fitting(engine: object, kind: type[_T], end: str, name: str) -> type[_T]:
    """Validate the object that an entry point refers to, and return it.

    Args:
        engine: the object.
        kind: the base class that it must have.
        end: ``host`` or ``container``, for error messages.
        name: the entry point's name.

    Raises:
        CniError: 101 if it is not an engine, incomplete, or written for another contract version.

    """

    def misfit(problem: str, remedy: str) -> CniError:
        return _broken(end, name, problem, remedy)

    if not (isinstance(engine, type) and issubclass(engine, kind)):
        raise misfit(f"{engine!r} is not a subclass of {kind.__name__}", "correct its entry point")
    own = engine.__name__
    info = getattr(engine, "info", None)
    kind_of_info = IpamInfo if issubclass(engine, IpamEngine) else EngineInfo
    if not isinstance(info, kind_of_info):
        raise misfit(f"{own}.info is {info!r}", f"set it to an {kind_of_info.__name__}")
    _require_version(info, own, misfit)
    if lacking := sorted(getattr(engine, "__abstractmethods__", ())):
        raise misfit(
            f"{own} has no {', '.join(lacking)}",
            f"implement every abstract method of {kind.__name__}",
        )
    where = getattr(engine, "where", None)
    if issubclass(engine, ContainerEngine) and where not in ("node", "container"):
        raise misfit(f"{own}.where is {where!r}", 'set it to "node" or "container"')
    if name not in (info.name, *info.aliases):
        raise misfit(
            f"its entry point is called {name!r}, and {own}.info.name is {info.name!r}",
            f"give both the same name, or add {name!r} to the aliases in its info",
        )
    return engine


def make(engine: type[_T], *arguments: object) -> _T:
    """Return an instance of the class *engine*, created with *arguments*.

    Raises:
        CniError: 101 if the constructor raises another exception.

    """
    try:
        return engine(*arguments)
    except CniError:
        raise
    except (Exception, SystemExit) as error:
        end = next(end for end, _, kind in _KINDS if issubclass(engine, kind))
        info: EngineInfo | IpamInfo = engine.info  # type: ignore[attr-defined]  # it was loaded
        raise _broken(end, info.name, f"its constructor raises {_told(error)}") from error


def installed() -> Iterator[Installed]:
    """Load and describe every installed engine, including broken ones."""
    for end, group, kind in _KINDS:
        for entry_point, distribution in sorted(_announced(group), key=lambda found: found[0].name):
            try:
                summary, usable = _load(group, end, entry_point.name, kind).info.summary, True
            except CniError as error:
                summary, usable = str(error), False
            name, version = _identity(distribution)
            yield Installed(
                name=entry_point.name,
                end=end,
                distribution=name,
                version=version,
                summary=summary,
                usable=usable,
            )
    for distribution in _unreadable():
        name, version = _identity(distribution)
        yield Installed(
            name="?",
            end="?",
            distribution=name,
            version=version,
            summary="its entry_points.txt cannot be read; reinstall the package",
            usable=False,
        )


def host_versions() -> dict[str, str]:
    """Return the version of each host engine's package, without loading the engine."""
    return {entry.name: _identity(package)[1] for entry, package in _announced(HOST_ENGINES)}


def settings_problems(settings: Settings) -> Iterator[str]:
    """Yield a message for each table ``[engines.NAME]`` of *settings* with a problem.

    A problem is a table that no installed host engine reads, or that its engine cannot use.
    """
    known = sorted({entry_point.name for entry_point, _ in _announced(HOST_ENGINES)})
    for name in sorted(settings.engines):
        unused = f"[engines.{name}] in the node's settings is not used"
        if name not in known:
            yield (
                f"{unused}: no host engine {name!r} is installed ({did_you_mean(name, known)}"
                f"installed: {', '.join(known) or 'none'}); correct the name, install the engine, "
                "or remove the table"
            )
            continue
        try:
            info = host_engine(name).info
        except CniError:
            continue  # a broken engine is reported when it is used
        if info.name != name:
            yield f"{unused}: the engine {name!r} reads [engines.{info.name}]; rename the table"
            continue
        try:
            settings.of_engine(name, info.settings)
        except CniError as error:
            yield str(error)


@cache
def _load(group: str, end: str, name: str, kind: type[_T]) -> type[_T]:
    import logging
    from importlib.metadata import entry_points

    from stevedore.driver import DriverManager

    class Driver(DriverManager):  # type: ignore[type-arg]  # not generic in older versions
        def list_entry_points(self) -> list[EntryPoint]:
            """Read the installed entry points; stevedore would cache them in the home directory."""
            return list(entry_points(group=group))

    logging.getLogger("stevedore").setLevel(logging.CRITICAL)  # our errors contain the details
    failures: list[BaseException] = []
    try:
        manager: Any = Driver(
            group,
            name,
            on_load_failure_callback=lambda *failure: failures.append(failure[2]),
        )
        engine = manager.driver
    except (Exception, SystemExit):  # noqa: BLE001  a package may raise anything
        engine = _load_afresh(group, end, name, failures)
    return fitting(engine, kind, end, name)


def _load_afresh(group: str, end: str, name: str, failures: Iterable[BaseException]) -> object:
    """Load engine *name* without stevedore, for the cases in which stevedore fails.

    stevedore reads the entry points only once. It finds nothing if any package has an unreadable
    entry_points.txt, and neither of two engines that share a name.
    """
    importlib.invalidate_caches()
    found = [announced for announced in _announced(group) if announced[0].name == name]
    if not found:
        raise _missing(group, end, name)
    if len(found) > 1:
        packages = sorted(" ".join(_identity(distribution)) for _, distribution in found)
        raise CniError(
            Code.ENGINE_BROKEN,
            f"{end} engine {name!r} is in more than one package: {', '.join(packages)}",
            "uninstall all but one of them",
        )
    for failure in failures:
        raise _broken(end, name, _told(failure)) from failure
    try:
        return found[0][0].load()
    except (Exception, SystemExit) as error:
        raise _broken(end, name, _told(error)) from error


def _require_version(
    info: EngineInfo | IpamInfo, engine: str, misfit: Callable[[str, str], CniError]
) -> None:
    if info.api_version[0] == API_VERSION[0] and info.api_version <= API_VERSION:
        return
    remedy = (
        f"upgrade userspace-cni: {extras.pip('--upgrade', 'userspace-cni')}"
        if info.api_version > API_VERSION
        else "upgrade the package that provides it"
    )
    written_for = version_text(info.api_version)
    problem = f"{engine} was written for version {written_for} of the contract, and {_core()}"
    raise misfit(problem, remedy)


def _announced(group: str) -> Iterator[tuple[EntryPoint, Distribution]]:
    """Yield the entry points of *group* with their packages; skip unreadable packages."""
    for distribution in _distributions():
        try:
            entry_points = distribution.entry_points.select(group=group)
        except Exception as error:  # noqa: BLE001  any package of the interpreter may be broken
            logger.debug("package %s is broken: %s", _identity(distribution), error)
            continue
        for entry_point in entry_points:
            yield entry_point, distribution


def _unreadable() -> Iterator[Distribution]:
    """Yield engine packages whose entry points cannot be read."""
    for distribution in _distributions():
        text = distribution.read_text("entry_points.txt") or ""
        if any(group in text for _, group, _ in _KINDS):
            try:
                list(distribution.entry_points)
            except Exception:  # noqa: BLE001  any exception means unreadable
                yield distribution


def _distributions() -> Iterator[Distribution]:
    """Yield the installed packages; the first of a name hides later ones, as with modules."""
    from importlib.metadata import distributions

    seen = set()
    for distribution in distributions():
        name, _ = _identity(distribution)
        if name not in seen:
            seen.add(name)
            yield distribution


def _identity(distribution: Distribution) -> tuple[str, str]:
    """Return a package's name and version; for a package without metadata, its path."""
    try:
        name, version = distribution.metadata["Name"], distribution.version
    except Exception:  # noqa: BLE001  newer Pythons raise where older ones return None
        name, version = None, None
    place = getattr(distribution, "_path", distribution.locate_file(""))
    return (name or f"without metadata: {place}", version or "")


def _missing(group: str, end: str, name: str) -> CniError:
    others = sorted({entry_point.name for entry_point, _ in _announced(group)})
    of_ours = extras.packages()
    remedy = (
        f"install it with: {extras.pip_extra(name)}"
        if name in of_ours
        else f"{did_you_mean(name, (*others, *of_ours))}install the package that provides it, or "
        "correct the name"
    )
    return CniError(
        Code.ENGINE_NOT_INSTALLED,
        f"{end} engine {name!r} is not installed",
        f"{remedy} (installed {end} engines: {', '.join(others) or 'none'})",
    )


def _told(cause: BaseException) -> str:
    return f"{type(cause).__name__}: {cause}"


def _broken(end: str, name: str, problem: str, remedy: str = "") -> CniError:
    remedy = remedy or f"reinstall the package that provides it, or upgrade it ({_core()})"
    return CniError(
        Code.ENGINE_BROKEN,
        f"{end} engine {name!r} is installed but cannot be used",
        f"{problem}; {remedy}, and restart a daemon that runs",
    )


def _core() -> str:
    from importlib.metadata import version

    own = version("userspace-cni")
    return f"userspace-cni {own} has version {version_text(API_VERSION)} of the contract"
