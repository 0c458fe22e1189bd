"""The Makefile's set-up next to other programs, and the summary of a test run."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lab.node import poll

ROOT = Path(__file__).parents[2]
PACKAGE = "lab-nothing"


@pytest.fixture
def apt(tmp_path: Path) -> dict[str, str]:
    """A private apt whose archive has one package and which installs into a directory."""
    for name in ("lists/partial", "cache/archives/partial", "sources", "deb/DEBIAN", "repo"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("info", "updates"):
        (tmp_path / "root/var/lib/dpkg" / name).mkdir(parents=True)
    status = tmp_path / "root/var/lib/dpkg/status"
    status.touch()
    control = (
        f"Package: {PACKAGE}\nVersion: 1\nArchitecture: all\nMaintainer: lab\nDescription: lab\n"
    )
    (tmp_path / "deb/DEBIAN/control").write_text(control)
    deb = tmp_path / "repo/it.deb"
    subprocess.run(
        ["dpkg-deb", "--build", tmp_path / "deb", deb], check=True, stdout=subprocess.DEVNULL
    )
    digest = hashlib.sha256(deb.read_bytes()).hexdigest()
    (tmp_path / "repo/Packages").write_text(
        f"{control}Filename: ./it.deb\nSize: {deb.stat().st_size}\nSHA256: {digest}\n"
    )
    (tmp_path / "sources/it.list").write_text(f"deb [trusted=yes] file:{tmp_path}/repo ./\n")
    config = tmp_path / "apt.conf"
    config.write_text(
        f"""
Dir::Etc::sourcelist "/dev/null";
Dir::Etc::sourceparts "{tmp_path}/sources";
Dir::Etc::parts "/dev/null";
Dir::State "{tmp_path}";
Dir::State::lists "{tmp_path}/lists";
Dir::State::status "{status}";
Dir::Cache "{tmp_path}/cache";
APT::Sandbox::User "root";
DPkg::Options {{ "--root={tmp_path}/root"; }};
"""
    )
    return {**os.environ, "APT_CONFIG": str(config)}


@pytest.mark.parametrize("lock", ["lists/lock", "cache/archives/lock"])
def test_another_program_that_has_apts_lock_is_waited_for(
    apt: dict[str, str], tmp_path: Path, lock: str
) -> None:
    wanted = tmp_path / "packages.txt"
    wanted.write_text(f"{PACKAGE}  # nobody has it\n")
    holder = f"""
import fcntl, sys
file = open({str(tmp_path / lock)!r}, "w")
fcntl.lockf(file, fcntl.LOCK_EX)
print("locked", flush=True)
sys.stdin.read()
"""
    said = tmp_path / "said"
    with (
        subprocess.Popen(
            [sys.executable, "-c", holder], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as other,
        said.open("wb") as out,
    ):
        assert other.stdout is not None
        assert other.stdin is not None
        assert other.stdout.readline() == b"locked\n"
        command = [ROOT / "setup/debian.sh", wanted]
        with subprocess.Popen(command, env=apt, stdout=out, stderr=out) as installer:
            try:
                poll(lambda: b"Waiting 600 s at most" in said.read_bytes(), "it waits")
                other.stdin.close()
                assert installer.wait(60) == 0, said.read_text()
            finally:
                installer.kill()
    assert f"held by process {other.pid}" in said.read_text()
    status = (tmp_path / "root/var/lib/dpkg/status").read_text()
    assert f"Package: {PACKAGE}\nStatus: install ok installed" in status


def test_a_package_that_does_not_exist_is_told_at_once(apt: dict[str, str], tmp_path: Path) -> None:
    wanted = tmp_path / "packages.txt"
    wanted.write_text("lab-nowhere\n")
    done = subprocess.run(
        [ROOT / "setup/debian.sh", wanted],
        env=apt, capture_output=True, check=False, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode != 0
    assert "Unable to locate package lab-nowhere" in done.stderr


def test_a_run_without_vpp_says_what_it_leaves_out(tmp_path: Path) -> None:
    environ = {key: value for key, value in os.environ.items() if key != "VPP_PREFIX"}
    traffic = ROOT / "tests/vpp/test_traffic.py"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", traffic],
        cwd=ROOT,
        env={**environ, "PATH": str(tmp_path)},
        capture_output=True,
        check=False,
        text=True,
    )
    assert "tests are left out: they need a real VPP, and there is no program vpp" in done.stdout
    assert (
        f"{done.stdout.partition(' tests are left out')[0].split()[-1]} deselected" in done.stdout
    )
