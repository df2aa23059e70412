"""What the documents promise exists."""

import os
import re

import pytest
from em_train.cli import app
from typer.main import get_command

COMMANDS = get_command(app).commands


def documents(repository):
    found = [repository / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
    return (
        found
        + sorted((repository / "docs").glob("*.md"))
        + sorted((repository / "packages").glob("*/README.md"))
    )


def test_the_readme_opens_with_the_data_flow(repository):
    first = (repository / "README.md").read_text().splitlines()[0]
    assert (
        "open_volume -> sampler -> loader -> Batch -> model -> loss -> step -> checkpoint" in first
    )


def test_links_lead_somewhere(repository):
    for document in documents(repository):
        for target in re.findall(r"\]\(([^)#]+)\)", document.read_text()):
            if not target.startswith("http"):
                assert (document.parent / target).exists(), f"{document}: {target}"


def test_tools_exist_and_run(repository):
    mentioned = set()
    for document in documents(repository):
        mentioned |= set(re.findall(r"\btools/[\w./-]+[\w]", document.read_text()))
    assert {"tools/demo", "tools/test", "tools/setup"} <= mentioned
    for name in mentioned:
        path = repository / name
        assert path.exists(), name
        assert path.is_dir() or path.suffix == ".py" or os.access(path, os.X_OK), name


def test_emtrain_commands_and_options_exist(repository):
    used = []
    for document in documents(repository):
        used += re.findall(r"emtrain ([a-z][a-z-]*)((?: [^`\n|]*)?)", document.read_text())
    assert {"dense-ssl", "synth", "info"} <= {name for name, _ in used}
    for name, rest in used:
        assert name in COMMANDS, name
        known = {option for p in COMMANDS[name].params for option in p.opts}
        for option in re.findall(r"(?<!\S)--[a-z][\w-]*", rest):
            assert option in known, f"emtrain {name} {option}"


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_is_in_the_readme_and_explained(repository, name):
    assert f"emtrain {name}" in (repository / "README.md").read_text()
    assert COMMANDS[name].help
    for parameter in COMMANDS[name].params:
        assert getattr(parameter, "help", None), f"emtrain {name}: {parameter.name} has no help"
