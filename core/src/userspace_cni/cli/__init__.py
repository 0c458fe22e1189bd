"""The command ``userspace-cni``."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from userspace_cni.cni.errors import CniError
from userspace_cni.extras import pip, pip_extra


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    options = _parser().parse_args(arguments)
    try:
        return options.run(options) or 0
    except (CniError, OSError) as error:
        sys.stderr.write(f"userspace-cni: {error}\n")
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="userspace-cni", description="Install and inspect the userspace CNI plugin."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    install = commands.add_parser("install", help="place the CNI executable into a directory")
    install.add_argument(
        "--cni-bin-dir", type=Path, default=Path("/opt/cni/bin"), metavar="DIR", help="%(default)s"
    )
    install.add_argument(
        "--launcher",
        choices=("shim", "python"),
        help="shim: the static program that calls the daemon; python: the one-process plugin; "
        "default: the shim if userspace-cni-shim is installed",
    )
    install.add_argument(
        "--no-fallback",
        dest="fallback",
        action="store_false",
        help="no one-process plugin beside the shim: the host has no Python",
    )
    install.add_argument(
        "--unit-dir",
        type=Path,
        metavar="DIR",
        help="write the daemon's systemd unit, too: /etc/systemd/system is where systemd reads it",
    )
    install.add_argument(
        "--check",
        action="store_true",
        help="change nothing; exit with 1 if there is something else than would be installed",
    )
    install.set_defaults(run=_install)

    engines = commands.add_parser("engines", help="list the engines that are installed")
    engines.set_defaults(run=_engines)

    show = commands.add_parser("show", help="show what is attached to what")
    show.add_argument("--json", action="store_true", help="print a JSON list")
    show.set_defaults(run=_show)

    daemon = commands.add_parser("daemon", help="serve the node's requests until SIGTERM")
    daemon.set_defaults(run=_daemon)
    new = commands.add_parser(
        "new-engine", help="write the package of a new engine, with its tests"
    )
    new.add_argument("name", metavar="NAME", help="as networks write it in host.engine")
    new.add_argument(
        "--directory", type=Path, default=Path(), metavar="DIR", help="where (default: here)"
    )
    new.set_defaults(run=_new_engine)
    run = commands.add_parser("run", help="run a command attached to networks, then detach it")
    run.add_argument(
        "--network", action="append", required=True, metavar="NAME", help="may be repeated"
    )
    run.add_argument(
        "--cni-conf-dir",
        type=Path,
        default=Path("/etc/cni/net.d"),
        metavar="DIR",
        help="%(default)s",
    )
    run.add_argument(
        "--cni-bin-dir",
        action="append",
        metavar="DIR",
        help="may be repeated (default: $CNI_PATH, else /opt/cni/bin and /usr/lib/cni, Debian's)",
    )
    run.add_argument(
        "--name", default="", metavar="ID", help="the container id (default: a new one)"
    )
    run.add_argument("command", nargs="+", metavar="COMMAND", help="after --, with its arguments")
    run.set_defaults(run=_run)
    return parser


def _install(options: argparse.Namespace) -> int:
    from userspace_cni.cni.errors import Code
    from userspace_cni.config.settings import load as load_settings
    from userspace_cni.install import (
        UNIT,
        compare,
        executables,
        find_shim,
        install,
        make_queue,
        unit,
    )

    settings = load_settings()
    program = None if options.launcher == "python" else find_shim()
    if program is None and options.launcher == "shim":
        raise CniError(
            Code.ENGINE_NOT_INSTALLED,
            "userspace-cni-shim is not installed",
            f"install it with: {pip_extra('shim')}",
        )
    directory = options.cni_bin_dir
    files = executables(directory, program=program, settings=settings, fallback=options.fallback)
    # The program of this virtual environment, not the one in PATH.
    own = {UNIT: unit(Path(sys.executable).with_name("userspace-cni"))} if options.unit_dir else {}
    if not options.check:
        if program is not None:
            make_queue(settings)
        print(install(directory, files))
        if own:
            install(options.unit_dir, own, mode=0o644)
            print(options.unit_dir / UNIT)
        return 0
    differences = compare(directory, files)
    if own:
        differences += compare(options.unit_dir, own)
    for one in differences:
        print(f"{one.path}: expected sha256 {one.expected or '-'}, found {one.found or '-'}")
    if differences:
        print("install again with the same options, without --check")
    return 1 if differences else 0


def _engines(_: argparse.Namespace) -> None:
    from userspace_cni import registry
    from userspace_cni.config.settings import load as load_settings

    engines = list(registry.installed())
    if not any(engine.end == "host" for engine in engines):
        print(f"no host engine is installed; install your switch's: {pip_extra('ENGINE')}")
    for engine in engines:
        state = "" if engine.usable else "BROKEN: "
        print(
            f"{engine.end:9}  {engine.name:12}  {engine.distribution} {engine.version}  "
            f"{state}{engine.summary}"
        )
    for problem in registry.settings_problems(load_settings()):
        sys.stderr.write(f"userspace-cni: {problem}\n")


def _show(options: argparse.Namespace) -> None:
    from userspace_cni.cli import show
    from userspace_cni.config.settings import load as load_settings
    from userspace_cni.store import Store

    settings = load_settings()
    store = Store(settings.state_dir, settings.timeout)
    try:
        records = store.all()
    finally:
        store.close()
    if options.json:
        print(json.dumps([show.summary(record) for record in records], indent=2))
    else:
        print(show.picture(records))


def _daemon(_: argparse.Namespace) -> None:
    from userspace_cni.config.settings import load as load_settings
    from userspace_cni.daemon import process

    process.run(load_settings())


def _new_engine(options: argparse.Namespace) -> None:
    from userspace_cni.cli.new_engine import write

    package = write(options.name, options.directory)
    install = pip("--editable", "'.[test]'")
    print(f"wrote {package}; next: cd {package} && {install} && {sys.executable} -m pytest")


def _run(options: argparse.Namespace) -> int:
    from userspace_cni.cli.run import run

    path = os.environ.get("CNI_PATH") or "/opt/cni/bin:/usr/lib/cni"
    return run(
        options.command,
        options.network,
        conf_dir=options.cni_conf_dir,
        bin_dirs=options.cni_bin_dir or path.split(os.pathsep),
        container_id=options.name,
    )
