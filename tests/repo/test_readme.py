"""What the README promises: the data flow first, tools that run, every command (more in test_documents.py)."""

import os
import re

import pytest
from em_train.cli import app
from typer.main import get_command

COMMANDS = {name: one for name, one in get_command(app).commands.items() if not one.hidden}


def documents(repository):
    found = [repository / name for name in ("README.md", "CONTRIBUTING.md")]
    return found + sorted((repository / "docs").glob("**/*.md"))


def test_the_readme_opens_with_the_data_flow(repository):
    first = (repository / "README.md").read_text().splitlines()[0]
    assert (
        "open_volume -> sampler -> loader -> Batch -> model -> loss -> step -> checkpoint" in first
    )


def test_tools_exist_and_run(repository):
    mentioned = set()
    for document in documents(repository):
        mentioned |= set(re.findall(r"\btools/[\w./-]+[\w]", document.read_text()))
    assert {"tools/demo", "tools/test", "tools/setup"} <= mentioned
    for name in mentioned:
        path = repository / name
        assert path.exists(), name
        assert path.is_dir() or path.suffix == ".py" or os.access(path, os.X_OK), name


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_is_in_the_readme_and_explained(repository, name):
    assert f"emtrain {name}" in (repository / "README.md").read_text()
    assert COMMANDS[name].help
    for parameter in COMMANDS[name].params:
        assert getattr(parameter, "help", None), f"emtrain {name}: {parameter.name} has no help"
