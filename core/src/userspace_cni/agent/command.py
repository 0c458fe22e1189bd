"""``userspace-cni-agent``: the command for use in the container.

Exit status: 0 success, 1 a hand-over cannot be used or configured, 2 the command line is wrong, 3 a
requested interface does not exist or did not appear in time.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Self

from userspace_cni import application, log
from userspace_cni.agent import configure, sources
from userspace_cni.agent.sources import Found
from userspace_cni.cni.errors import CniError
from userspace_cni.config.settings import LOG_LEVELS
from userspace_cni.handover import Document
from userspace_cni.log import logger

DONE, FAILED, MISSING = 0, 1, 3
_PAUSE = 0.1  # seconds between two attempts while waiting


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    options = _parser().parse_args(arguments)
    with log.process(options.log_level, None):
        try:
            return int(options.run(options))
        except (CniError, OSError) as error:
            logger.error("%s", error)
            return FAILED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="userspace-cni-agent",
        description="Configure what this container was handed over, or tell programs of it.",
        epilog="Exit status: 0 done, 1 something cannot be used or configured, 2 wrong usage, "
        "3 an interface is not there.",
    )
    parser.add_argument(
        "--directory",
        default="",
        metavar="DIR",
        help=f"shared with the node; several with ':' between them "
        f"(${sources.DIRECTORY_VARIABLE}, {sources.DIRECTORY})",
    )
    parser.add_argument(
        "--annotations",
        default="",
        metavar="FILE",
        help=f"the pod's annotations (${sources.ANNOTATIONS_VARIABLE}, {sources.ANNOTATIONS})",
    )
    parser.add_argument(
        "--interface",
        action="append",
        default=[],
        metavar="IFNAME",
        help="this one alone; may be repeated (default: all)",
    )
    parser.add_argument(
        "--wait",
        action="store_true",
        help="first wait until every --interface, or at least one, is there and configured",
    )
    parser.add_argument(
        "--timeout", type=_seconds, default=60.0, metavar="SECONDS", help="of --wait (%(default)g)"
    )
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--once", action="store_true", help="configure, then end (the default)")
    mode.add_argument(
        "--watch", action="store_true", help="configure, then follow every change until SIGTERM"
    )
    parser.add_argument(
        "--interval", type=_seconds, default=1.0, metavar="SECONDS", help="of --watch (%(default)g)"
    )
    parser.add_argument(
        "--ready-file",
        default="",
        metavar="FILE",
        help="exists while everything is there and configured, for a probe",
    )
    parser.add_argument(
        "--engine",
        default=application.NAME,
        metavar="NAME",
        help="for hand-overs that name none (%(default)s: the application configures itself)",
    )
    parser.add_argument("--log-level", choices=LOG_LEVELS, default="info", help="%(default)s")
    parser.set_defaults(run=_configure, names=[], json=False)

    commands = parser.add_subparsers(metavar="COMMAND")
    for name, run, text in (
        ("eal-args", _eal_arguments, "print the arguments of a DPDK application, one a line"),
        ("env", _environment, "print variables for a shell to evaluate"),
        ("show", _show, "print what was handed over"),
    ):
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("names", nargs="*", metavar="IFNAME", help="default: all")
        if run is _show:
            command.add_argument("--json", action="store_true", help="print a JSON list")
        command.set_defaults(run=run)
    return parser


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 < value < threading.TIMEOUT_MAX:
        raise argparse.ArgumentTypeError(f"expected a number of seconds above 0, got {text}")
    return value


# -- for programs


def _eal_arguments(options: argparse.Namespace) -> int:
    from userspace_cni.agent import eal, stale

    status, documents = _select(options)
    if status == DONE:
        stale.discard(documents)
        for argument in eal.arguments(documents):
            sys.stdout.write(f"{argument}\n")
    return status


def _environment(options: argparse.Namespace) -> int:
    from userspace_cni.agent import environment, stale

    status, documents = _select(options)
    if status == DONE:
        stale.discard(documents)
        sys.stdout.write(environment.shell(environment.variables(documents)))
    return status


def _show(options: argparse.Namespace) -> int:
    from userspace_cni.handover.document import describe

    status, documents = _select(options)
    if status != DONE:
        return status
    if options.json:
        listed = [describe(document, lambda socket: socket) for document in documents]
        sys.stdout.write(json.dumps(listed, indent=1) + "\n")
    else:
        for document in documents:
            words = (document.handoff.interface, document.network, configure.summary(document))
            sys.stdout.write("  ".join(filter(None, words)) + "\n")
    return status


def _select(options: argparse.Namespace) -> tuple[int, list[Document]]:
    """Return the requested interfaces; wait for them if the options say so."""
    names = [*options.interface, *options.names]
    deadline = time.monotonic() + options.timeout
    while True:
        found = _look(options)
        missing = _missing(found, names)
        if not missing or not options.wait or time.monotonic() > deadline:
            break
        time.sleep(_PAUSE)
    if missing:
        _tell_missing(found, missing)
        return MISSING, []
    if not names and found.problems:
        _tell(found.problems)
        return FAILED, []
    chosen = [document for name in dict.fromkeys(names) if (document := found.named(name))]
    return DONE, chosen or list(found.documents)


# -- configuring


def _configure(options: argparse.Namespace) -> int:
    with _Stop() as stop:
        agent = _Agent(options)
        status = agent.until_ready(stop) if options.wait else agent.step(quiet=options.watch)
        if not options.watch or (options.wait and status != DONE):
            return status
        while not stop.wait(options.interval):
            agent.step(quiet=True)
    return DONE


class _Stop:
    """The signal to end. It is only delivered while the agent waits, so it interrupts nothing.

    A handler cannot set a threading.Event that its own thread waits for, because the thread may
    hold the event's lock.
    """

    _SIGNALS = (signal.SIGTERM, signal.SIGINT)

    def __init__(self) -> None:
        self._came = False

    def __enter__(self) -> Self:
        self._before = signal.pthread_sigmask(signal.SIG_BLOCK, self._SIGNALS)
        return self

    def __exit__(self, *_: object) -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, self._before)

    def wait(self, seconds: float) -> bool:
        """Wait at most *seconds*; return whether the signal has arrived."""
        self._came = self._came or signal.sigtimedwait(self._SIGNALS, seconds) is not None
        return self._came


class _Agent:
    """Configures the interfaces that the options name, and maintains the ready file."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._configurator = configure.Configurator(options.engine)
        self._problems: tuple[str, ...] = ()
        self._ready(False)

    def step(self, *, quiet: bool = False) -> int:
        """Read the sources once and configure what they contain; return the exit status so far."""
        names = self._options.interface
        found = _look(self._options)
        if found.problems != self._problems:
            _tell(found.problems)
            self._problems = found.problems
        wanted = [d for d in found.documents if not names or d.handoff.interface in names]
        # A source that cannot be read now is no reason to remove an interface that works.
        failed = self._configurator.apply(wanted, withdraw=not found.problems)
        missing = _missing(found, names)
        if missing and not quiet:
            _tell_missing(found, missing)
        unusable = failed or (found.problems and not names)
        status = MISSING if missing else FAILED if unusable else DONE
        self._ready(status == DONE)
        return status

    def until_ready(self, stop: _Stop) -> int:
        """Repeat until all expected interfaces exist and are configured, or the time is up."""
        deadline = time.monotonic() + self._options.timeout
        while (status := self.step(quiet=True)) != DONE:
            if time.monotonic() > deadline:
                logger.error("not ready after %g s", self._options.timeout)
                found = _look(self._options)
                _tell_missing(found, _missing(found, self._options.interface))
                break
            if stop.wait(_PAUSE):
                break
        return status

    def _ready(self, ready: bool) -> None:
        path = self._options.ready_file
        if not path:
            return
        if not ready:
            with suppress(FileNotFoundError):
                os.unlink(path)
        elif not os.path.lexists(path):
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            os.close(os.open(path, flags, 0o644))


def _look(options: argparse.Namespace) -> Found:
    return sources.read(sources.locate(options.directory, options.annotations))


def _missing(found: Found, names: Sequence[str]) -> list[str]:
    """Return the *names* that are missing; without names, "any" if no interface was found."""
    if names:
        return [name for name in names if found.named(name) is None]
    return [] if found.documents else ["any"]


def _tell(problems: Sequence[str]) -> None:
    for problem in problems:
        logger.error("%s", problem)


def _tell_missing(found: Found, missing: Sequence[str]) -> None:
    _tell(found.problems)
    there = ", ".join(document.handoff.interface for document in found.documents) or "none"
    for name in missing:
        what = "no interface was" if name == "any" else f"interface {name} was not"
        logger.error("%s handed over to this container (handed over: %s)", what, there)
