"""Engines found by entry point: missing, broken and working ones."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from core import example_lab
from lab.plugin import clean_environ
from userspace_cni.api import API_VERSION, CONTAINER_ENGINES, HOST_ENGINES

if TYPE_CHECKING:
    from typing import Any

    from core.example_lab import ExampleLab

_MODULES = {
    "lab_good": (
        "from attrs import evolve\n"
        "from example_engine import ExampleHostEngine\n"
        "class Host(ExampleHostEngine):\n"
        "    info = evolve(ExampleHostEngine.info, name='good', aliases=('fine', 'headless'))\n"
    ),
    "lab_syntax": "def broken(:\n",
    "lab_import": "import a_library_that_nobody_has\n",
    "lab_raises": "raise RuntimeError('the library is too old')\n",
    "lab_kind": "Class = dict\ninstance = 7\n",
    "lab_exits": "raise SystemExit('this machine does not please me')\n",
    "lab_asserts": "assert False, 'a library of another version'\n",
    "lab_unfinished": (
        "from attrs import evolve\n"
        "from example_engine import ExampleContainerEngine, ExampleHostEngine\n"
        "from userspace_cni.api import HostEngine\n"
        "INFO = ExampleHostEngine.info\n"
        "class Abstract(HostEngine):\n"
        "    info = INFO\n"
        "    def add(self, attachment, conf, undo): ...\n"
        "class Infoless(HostEngine):\n"
        "    pass\n"
        "class Nameless(ExampleHostEngine):\n"
        "    info = {'name': 'nameless'}\n"
        "class Future(ExampleHostEngine):\n"
        "    info = evolve(INFO, name='future', api_version=(2, 0))\n"
        "class Newer(ExampleHostEngine):\n"
        "    info = evolve(INFO, name='newer', api_version=(1, 99))\n"
        "class Older(ExampleHostEngine):\n"
        "    info = evolve(INFO, name='older', api_version=(0, 9))\n"
        "class Starter(ExampleHostEngine):\n"
        "    info = evolve(INFO, name='starter')\n"
        "    def __init__(self, context):\n"
        "        raise OSError('no such device')\n"
        "class Nowhere(ExampleContainerEngine):\n"
        "    info = evolve(INFO, name='nowhere')\n"
        "    where = 'elsewhere'\n"
        "class Unable(ExampleContainerEngine):\n"
        "    info = evolve(INFO, name='unable')\n"
        "    def __init__(self):\n"
        "        raise OSError('no such library')\n"
    ),
    "lab_typed": (
        "from attrs import evolve\n"
        "from example_engine import ExampleHostEngine\n"
        "class Host(ExampleHostEngine):\n"
        "    info = evolve(ExampleHostEngine.info, interface_types='note')\n"
    ),
    "lab_tomorrow": (
        "from attrs import evolve\n"
        "from example_engine import ExampleHostEngine\n"
        "class Host(ExampleHostEngine):\n"
        "    info = evolve(ExampleHostEngine.info, colour='red')\n"
    ),
}
_LATE = """
from attrs import evolve
from example_engine import ExampleContainerEngine, ExampleHostEngine
class Host(ExampleHostEngine):
    info = evolve(ExampleHostEngine.info, name="late")
class Container(ExampleContainerEngine):
    info = Host.info
"""
_ENGINES = """
good = lab_good:Host
syntax = lab_syntax:Host
import = lab_import:Host
raises = lab_raises:Host
attribute = lab_good:Missing
module = lab_nowhere:Host
kind = lab_kind:Class
instance = lab_kind:instance
exits = lab_exits:Host
asserts = lab_asserts:Host
abstract = lab_unfinished:Abstract
infoless = lab_unfinished:Infoless
nameless = lab_unfinished:Nameless
future = lab_unfinished:Future
newer = lab_unfinished:Newer
older = lab_unfinished:Older
starter = lab_unfinished:Starter
typed = lab_typed:Host
tomorrow = lab_tomorrow:Host
fine = lab_good:Host
misnamed = lab_good:Host
value = no object at all
twin = lab_good:Host
"""
_CONTAINERS = """
nowhere = lab_unfinished:Nowhere
unable = lab_unfinished:Unable
"""
_OWN = ".".join(map(str, API_VERSION))
#: Packages with broken metadata, by the name of the metadata's directory.
_PACKAGES = {
    "lab_twin-2.0.dist-info": {
        "METADATA": "Metadata-Version: 2.1\nName: lab-twin\nVersion: 2.0\n",
        "entry_points.txt": f"[{HOST_ENGINES}]\ntwin = example_engine:ExampleHostEngine\n",
    },
    "lab_headless-3.0.dist-info": {
        "entry_points.txt": f"[{HOST_ENGINES}]\nheadless = lab_good:Host\n",
    },
}


@pytest.fixture(scope="session")
def crowded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An interpreter with many engines, most of them broken."""
    return example_lab.make_venv(
        tmp_path_factory.mktemp("crowded") / "venv",
        _MODULES,
        {HOST_ENGINES: _ENGINES, CONTAINER_ENGINES: _CONTAINERS},
        _PACKAGES,
    )


@pytest.fixture
def crowded_lab(lab: ExampleLab, crowded: Path) -> ExampleLab:
    lab.plugin.interpreted_by(crowded)
    return lab


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("syntax", "SyntaxError"),
        ("import", "No module named 'a_library_that_nobody_has'"),
        ("raises", "RuntimeError: the library is too old"),
        ("attribute", "Missing"),
        ("module", "lab_nowhere"),
        ("kind", "is not a subclass of HostEngine"),
        ("instance", "7 is not a subclass of HostEngine"),
        ("exits", "SystemExit: this machine does not please me"),
        ("asserts", "AssertionError: a library of another version"),
        ("abstract", "Abstract has no attachments, check, delete, status"),
        ("infoless", "Infoless.info is None; set it to an EngineInfo"),
        ("nameless", "Nameless.info is {'name': 'nameless'}; set it to an EngineInfo"),
        ("typed", "EngineInfo.interface_types: expected a tuple of texts"),
        ("tomorrow", "'colour'; reinstall the package that provides it, or upgrade it"),
        ("tomorrow", f"has version {_OWN} of the contract"),
        ("future", "written for version 2.0 of the contract, and userspace-cni 0."),
        ("future", f"has version {_OWN} of the contract; upgrade userspace-cni: /"),
        ("newer", "written for version 1.99 of the contract"),
        ("newer", "-m pip install --upgrade userspace-cni"),
        ("older", "written for version 0.9 of the contract"),
        ("older", "; upgrade the package that provides it"),
        ("starter", "its constructor raises OSError: no such device"),
        ("misnamed", "its entry point is called 'misnamed', and Host.info.name is 'good'"),
        ("misnamed", "add 'misnamed' to the aliases"),
        ("value", "reinstall the package"),
        ("twin", "is in more than one package: lab-extra 1.0, lab-twin 2.0"),
    ],
)
def test_a_broken_engine_says_why(crowded_lab: ExampleLab, name: str, says: str) -> None:
    host = {"engine": name, "iftype": "note"}
    _assert_broken(crowded_lab, "host", says, host=host, container={"engine": "example"})


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("nowhere", 'Nowhere.where is \'elsewhere\'; set it to "node" or "container"'),
        ("unable", "its constructor raises OSError: no such library"),
    ],
)
def test_so_does_that_of_a_container(crowded_lab: ExampleLab, name: str, says: str) -> None:
    _assert_broken(crowded_lab, "container", says, container={"engine": name})


def _assert_broken(lab: ExampleLab, end: str, says: str, **keys: Any) -> None:
    conf = lab.conf(**keys)
    outcome = lab.call("ADD", conf)
    assert outcome.code == 101
    assert f"{end} engine {keys[end]['engine']!r}" in outcome.text
    assert says in outcome.text
    status = lab.call("STATUS", conf)
    assert status.code == 50
    assert says in status.text
    for said in (outcome.err, status.err):
        assert "Could not load" not in said
        assert "Traceback" not in said
    lab.assert_clean()


@pytest.mark.parity
def test_the_others_stay_usable(crowded_lab: ExampleLab) -> None:
    crowded_lab.plugin.settings(f'[engines.good]\ndirectory = "{crowded_lab.switch}"\n')
    crowded_lab.call("STATUS", crowded_lab.conf()).succeeded()
    assert crowded_lab.add(crowded_lab.conf())["interfaces"]
    own = {"engine": "example"}
    for name in ("good", "fine", "headless"):
        host = {"engine": name, "iftype": "note"}
        assert crowded_lab.call("STATUS", crowded_lab.conf(host=host, container=own)).status == 0


@pytest.mark.parity
def test_an_engine_that_is_not_installed_is_told_with_those_that_are(
    crowded_lab: ExampleLab,
) -> None:
    outcome = crowded_lab.call("ADD", crowded_lab.conf(host={"engine": "nope"}))
    assert outcome.code == 100
    assert "host engine 'nope' is not installed" in outcome.text
    assert "example" in outcome.text
    assert "good" in outcome.text
    assert outcome.err == ""
    misspelt = crowded_lab.call("ADD", crowded_lab.conf(host={"engine": "exmaple"}))
    assert 'did you mean "example"?' in misspelt.text


def _listed(interpreter: Path) -> dict[tuple[str, ...], str]:
    """Return the lines of ``userspace-cni engines`` by end, name and package."""
    done = subprocess.run(
        [interpreter, "-c", "from userspace_cni.cli import main; main(['engines'])"],
        env=clean_environ(),
        capture_output=True,
        check=True,
        text=True,
    )
    assert done.stderr == ""
    return {tuple(line.split()[:3]): line for line in done.stdout.splitlines()}


def test_the_command_names_tables_of_settings_that_nobody_reads(
    crowded: Path, tmp_path: Path
) -> None:
    settings = tmp_path / "config.toml"
    settings.write_text("[engines.exmaple]\n[engines.fine]\n[engines.syntax]\n[engines.example]\n")
    done = subprocess.run(
        [crowded, "-c", "from userspace_cni.cli import main; main(['engines'])"],
        env={**clean_environ(), "USERSPACE_CNI_CONFIG": str(settings)},
        capture_output=True,
        check=True,
        text=True,
    )
    misspelt, renamed = done.stderr.splitlines()
    assert "[engines.exmaple]" in misspelt
    assert 'did you mean "example"?' in misspelt
    assert "the engine 'fine' reads [engines.good]" in renamed


@pytest.mark.parametrize(
    ("was", "line", "says"),
    [
        ("directory = ", "directory = 7 #", "engines.example.directory: expected an absolute path"),
        ("directory = ", "folder = ", 'engines.example.folder: unknown key with value "'),
        ("[engines.trouble]", "[engines.linux]", "engines.linux: the engine 'linux' has no set"),
    ],
)
def test_wrong_settings_of_an_engine_are_told(
    lab: ExampleLab, was: str, line: str, says: str
) -> None:
    file = Path(lab.plugin.env["USERSPACE_CNI_CONFIG"])
    file.write_text(file.read_text().replace(was, line, 1))
    name = "linux" if "linux" in line else "example"
    host = {"engine": name, "iftype": "veth" if name == "linux" else "note"}
    for command in ("ADD", "STATUS"):
        outcome = lab.call(command, lab.conf(host=host))
        assert outcome.code == 7
        assert f"node settings {file}: {says}" in outcome.text
    lab.assert_clean()
    done = subprocess.run(
        [Path(sys.executable).with_name("userspace-cni"), "engines"],
        env={**clean_environ(), "USERSPACE_CNI_CONFIG": str(file)},
        capture_output=True,
        check=True,
        text=True,
    )
    assert f"userspace-cni: node settings {file}: {says}" in done.stderr


def test_the_command_lists_all_and_marks_the_broken(crowded: Path) -> None:
    lines = _listed(crowded)
    assert "lab-extra 1.0  ports are files" in lines["host", "good", "lab-extra"]
    (example,) = (line for key, line in lines.items() if key[:2] == ("host", "example"))
    assert "BROKEN" not in example
    broken = {key[1] for key, line in lines.items() if "BROKEN: " in line}
    assert broken == {
        *("syntax", "import", "raises", "attribute", "module", "kind", "instance"),
        *("exits", "asserts", "abstract", "infoless", "nameless", "value", "twin"),
        *("future", "newer", "older", "typed", "tomorrow", "misnamed", "nowhere"),
    }
    for package in ("lab-extra", "lab-twin"):
        assert "uninstall all but one of them" in lines["host", "twin", package]
    assert any(key[:2] == ("container", "example") for key in lines)
    (headless,) = (line for key, line in lines.items() if key[:2] == ("host", "headless"))
    assert "lab_headless-3.0.dist-info" in headless


@pytest.mark.parity
def test_a_package_that_cannot_be_read_hides_no_other(
    lab: ExampleLab, tmp_path_factory: pytest.TempPathFactory
) -> None:
    interpreter = example_lab.make_venv(
        tmp_path_factory.mktemp("unreadable") / "venv",
        {},
        {HOST_ENGINES: "this is no entry point"},
    )
    lab.plugin.interpreted_by(interpreter)
    lab.add(lab.conf())
    assert lab.call("STATUS", lab.conf(host={"engine": "nope"})).code == 50
    lines = _listed(interpreter)
    assert "BROKEN: its entry_points.txt cannot be read; reinstall" in lines["?", "?", "lab-extra"]
    assert any(key[:2] == ("host", "example") for key in lines)


@pytest.mark.parity
def test_an_engine_that_is_installed_later_is_found(
    lab: ExampleLab, tmp_path_factory: pytest.TempPathFactory
) -> None:
    interpreter = example_lab.make_venv(tmp_path_factory.mktemp("later") / "venv", {}, {})
    lab.plugin.interpreted_by(interpreter)
    lab.plugin.settings(f'[engines.late]\ndirectory = "{lab.switch}"\n')
    late = {"engine": "late", "iftype": "note"}
    assert lab.call("ADD", lab.conf(host=late)).code == 100
    example_lab.add_packages(
        interpreter,
        {"lab_late": _LATE},
        {
            "lab_late-1.0.dist-info": {
                "METADATA": "Metadata-Version: 2.1\nName: lab-late\nVersion: 1.0\n",
                "entry_points.txt": f"[{HOST_ENGINES}]\nlate = lab_late:Host\n"
                f"[{CONTAINER_ENGINES}]\nlate = lab_late:Container\n",
            }
        },
    )
    lab.add(lab.conf(host=late))
    lab.call("DEL", lab.conf(host=late)).succeeded()


def test_nothing_is_written_into_the_home_directory(tmp_path: Path) -> None:
    environ = {**clean_environ(), "HOME": str(tmp_path)}
    environ.pop("XDG_CACHE_HOME", None)
    program = Path(sys.executable).with_name("userspace-cni")
    subprocess.run([program, "engines"], env=environ, check=True, stdout=subprocess.DEVNULL)
    assert list(tmp_path.iterdir()) == []
