"""What contributors rely on: the checks before a commit, and the changelog."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
TARGET = re.compile(r"^([a-z-]+):", re.MULTILINE)


def _makefile() -> str:
    return (ROOT / "Makefile").read_text()


def test_a_commit_is_checked_as_make_lint_does() -> None:
    (recipe,) = re.findall(r"^lint:.*\n((?:\t.*\n)+)", _makefile(), re.MULTILINE)
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    assert [hook["entry"] for hook in hooks] == [
        line.strip().replace("$(BIN)", ".venv/bin") for line in recipe.splitlines()
    ]


def test_make_help_names_every_target() -> None:
    told = subprocess.run(
        ["make", "--no-print-directory", "help"],
        cwd=ROOT, capture_output=True, check=True, text=True,
    ).stdout  # fmt: skip
    words = set(re.findall(r"[a-z-]+", told))
    assert [name for name in TARGET.findall(_makefile()) if name not in words] == ["help"]


def test_every_fragment_is_in_the_changelog() -> None:
    types = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["towncrier"]["type"]
    named = re.compile(rf"\d+\.({'|'.join(each['directory'] for each in types)})(\.\d+)?\.md")
    fragments = sorted((ROOT / "changelog.d").glob("[!.]*"))
    assert [path.name for path in fragments if not named.fullmatch(path.name)] == []
    draft = subprocess.run(
        [sys.executable, "-m", "towncrier", "build", "--draft", "--version", "1.2.3"],
        cwd=ROOT, capture_output=True, check=True, text=True,
    ).stdout  # fmt: skip
    assert "userspace-cni 1.2.3 (" in draft
    said = " ".join(draft.split())
    assert [path.name for path in fragments if " ".join(path.read_text().split()) not in said] == []
