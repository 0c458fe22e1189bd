"""``userspace-cni``: the command for people."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from userspace_cni.cni.errors import CniError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
    except (CniError, OSError) as error:
        sys.stderr.write(f"userspace-cni: {error}\n")
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="userspace-cni", description="Install and inspect the userspace CNI plugin."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    install = commands.add_parser("install", help="place the CNI executable into a directory")
    install.add_argument(
        "--cni-bin-dir", type=Path, default=Path("/opt/cni/bin"), metavar="DIR", help="%(default)s"
    )
    install.set_defaults(run=_install)

    engines = commands.add_parser("engines", help="list the engines that are installed")
    engines.set_defaults(run=_engines)

    show = commands.add_parser("show", help="show what is attached to what")
    show.add_argument("--json", action="store_true", help="print a JSON list")
    show.set_defaults(run=_show)

    node = commands.add_parser("node", help="serve the node's requests until SIGTERM: the daemon")
    node.set_defaults(run=_node)
    return parser


def _install(options: argparse.Namespace) -> None:
    from userspace_cni.install import install

    print(install(options.cni_bin_dir))


def _engines(_: argparse.Namespace) -> None:
    from userspace_cni import registry

    engines = list(registry.installed())
    if not engines:
        print("no engine is installed; pip install 'userspace-cni[linux]' has one")
    for engine in engines:
        state = "" if engine.usable else "BROKEN: "
        print(
            f"{engine.end:9}  {engine.name:12}  {engine.distribution} {engine.version}  "
            f"{state}{engine.summary}"
        )


def _show(options: argparse.Namespace) -> None:
    from userspace_cni import settings
    from userspace_cni.cli import show
    from userspace_cni.store import Store

    node = settings.load()
    store = Store(node.state_dir, node.timeout)
    try:
        records = store.all()
    finally:
        store.close()
    if options.json:
        print(json.dumps([show.summary(record) for record in records], indent=2))
    else:
        print(show.picture(records))


def _node(_: argparse.Namespace) -> None:
    from userspace_cni import settings
    from userspace_cni.node import daemon

    daemon.run(settings.load())
