"""The pages for authors of applications match the code."""

from __future__ import annotations

import contextlib
import io
import json
import re
from pathlib import Path

import pytest
import yaml
from jsonschema import Draft202012Validator

from agent.conftest import Container, document
from userspace_cni.agent import command, environment
from userspace_cni.handover import load

ROOT = Path(__file__).parents[2]


def _page(name: str) -> str:
    return (ROOT / f"docs/{name}.md").read_text()


def _blocks(name: str, language: str) -> list[str]:
    found = re.findall(rf"^```{language}\n(.*?)^```$", _page(name), re.DOTALL | re.MULTILINE)
    assert found
    return [str(block) for block in found]


def test_the_document_is_one_and_its_keys_are_described() -> None:
    schema = json.loads((ROOT / "docs/handoff.schema.json").read_text())
    (example,) = _blocks("handoff", " json")
    Draft202012Validator(schema).validate(json.loads(example))
    assert load(json.loads(example), "/d").handoff.socket == "/d/net1.sock"
    for key in schema["properties"]:
        assert f"`{key}`" in _page("handoff"), key


def test_the_python_example_works(container: Container, monkeypatch: pytest.MonkeyPatch) -> None:
    container.hand_over(document())
    monkeypatch.setenv("USERSPACE_CNI_DIRECTORY", str(container.directory))
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        for example in _blocks("agent", "python"):
            exec(example, {})
    assert out.getvalue() == f"fast net1 {container.directory}/net1.sock\n"


def test_every_option_and_variable_is_described(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command.main(["--help"])
    page = _page("agent")
    for option in re.findall(r"--[a-z-]+", capsys.readouterr().out):
        assert option in page or option == "--help", option
    variables = environment.variables([load(document(), "/d")])
    assert "USERSPACE_CNI_NET1_SOCKET" in variables
    assert "USERSPACE_CNI_NET1_SOCKET" in page


def test_the_pod_calls_the_agent_as_it_can_be_called() -> None:
    (text,) = _blocks("agent", "yaml")
    pod = yaml.safe_load(text)
    (wait,) = pod["spec"]["initContainers"]
    program, *arguments = wait["command"]
    assert program == "userspace-cni-agent"
    options = command._parser().parse_args(arguments)
    assert (options.wait, options.interface, options.timeout) == (True, ["net1"], 120)
    (router,) = pod["spec"]["containers"]
    entry_point = (ROOT / "deploy/vpp-app/entrypoint.sh").read_text()
    assert router["readinessProbe"]["exec"]["command"][-1] in entry_point
    command._parser().parse_args(["--watch", *router["args"]])


def test_what_the_images_copy_exists() -> None:
    for file in (ROOT / "deploy").glob("*/Containerfile"):
        for source in re.findall(r"^COPY (\S+)", file.read_text(), re.MULTILINE):
            assert (ROOT / source).exists(), (file, source)
