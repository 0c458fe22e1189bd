"""The modules that a request imports; imports are most of the cost of a call."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from core.example_lab import ExampleLab

pytestmark = [
    pytest.mark.one_process("it is about the one-process program itself"),
    pytest.mark.own_process("it is about what a new interpreter imports"),
]

_PROGRAM = """
import sys
from userspace_cni.plugin import main
status = main()
sys.stderr.write("\\n" + " ".join(sys.modules))
sys.exit(status)
"""


def _imported(lab: ExampleLab, command: str, config: object) -> set[str]:
    """Serve a request as the executable does; return the top-level modules that it imported."""
    done = subprocess.run(
        [sys.executable, "-I", "-c", _PROGRAM],
        input=json.dumps(config).encode(),
        env={
            **lab.plugin.env,
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": "c1",
            "CNI_NETNS": lab.netns,
            "CNI_IFNAME": "eth0",
            "CNI_PATH": str(lab.plugin.bin_dir),
        },
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done
    modules = set(done.stderr.decode().rpartition("\n")[2].split())
    assert "userspace_cni.plugin" in modules
    return modules | {name.partition(".")[0] for name in modules}


def test_version_imports_nothing_that_it_can_do_without(lab: ExampleLab) -> None:
    modules = _imported(lab, "VERSION", {"cniVersion": "1.1.0"})
    unwanted = {
        *("attr", "attrs", "cattr", "cattrs", "stevedore", "pyroute2", "logging", "sqlite3"),
        *("subprocess", "asyncio", "importlib.metadata", "pathlib", "tomllib", "ipaddress"),
        *("userspace_cni.runtime", "userspace_cni.cni.request", "example_engine"),
    }
    assert modules & unwanted == set()


@pytest.mark.parametrize("command", ["ADD", "STATUS", "GC"])
def test_a_request_imports_no_engine_but_the_named_one(lab: ExampleLab, command: str) -> None:
    modules = _imported(lab, command, lab.conf() | {"cni.dev/valid-attachments": []})
    assert "example_engine" in modules
    unwanted = {"pyroute2", "userspace_cni_linux", "asyncio", "multiprocessing", "unittest"}
    assert modules & unwanted == set()
    assert modules & {"userspace_cni.kubernetes", "yaml", "ssl", "http"} == set()
    assert modules & {"pytest", "hypothesis", "pip", "setuptools"} == set()
