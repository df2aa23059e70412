"""What all packages have in common."""

import importlib
import tomllib

import em_train
import pytest
from em_train.catalogue import RECIPES
from em_train.engine import config as configuration

PACKAGES = ("em-data", "em-models", "em-losses", "em-kernels", "em-train")


def project(repository, package):
    return tomllib.loads((repository / "packages" / package / "pyproject.toml").read_text())[
        "project"
    ]


def test_versions_move_in_lockstep(repository):
    projects = {package: project(repository, package) for package in PACKAGES}
    (version,) = {p["version"] for p in projects.values()}
    assert em_train.__version__ == version
    pinned = (
        projects["em-train"]["dependencies"]
        + projects["em-train"]["optional-dependencies"]["kernels"]
    )
    siblings = [d for d in pinned if d.startswith("em-")]
    assert len(siblings) == 4 and all(d.endswith(f"=={version}") for d in siblings)
    assert f"## {version}" in (repository / "CHANGELOG.md").read_text()


@pytest.mark.parametrize("package", PACKAGES)
def test_every_package_is_complete(repository, package):
    folder = repository / "packages" / package
    name = package.replace("-", "_")
    assert (folder / "src" / name / "py.typed").exists()
    assert "```python" in (folder / "README.md").read_text()
    described = project(repository, package)
    assert described["license"] == "MIT" and described["requires-python"] == ">=3.11"
    if package != "em-kernels":
        module = importlib.import_module(name)
        assert module.__doc__
        for public in getattr(module, "__all__", ()):
            assert hasattr(module, public)


def test_constraints_name_the_versions_installed(repository):
    from importlib.metadata import version

    for line in (repository / "constraints.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            name, _, wanted = line.partition("==")
            assert version(name).partition("+")[0] == wanted, name


@pytest.mark.parametrize("command", sorted(RECIPES))
def test_every_preset_loads(command):
    files = configuration.preset_files(command)
    assert {"default.toml", "demo.toml"} <= {path.name for path in files}
    for path in files:
        layer = configuration.preset_layer(path.name.removesuffix(".toml"), command)
        configuration.resolve(RECIPES[command].load().Config, [layer])


def test_source_names_no_machine_and_no_registry(repository):
    import subprocess

    patterns = [r"/(work|farm)/", "pypi" + r"\.org", "files.python" + "hosted", "index" + "-url"]
    command = ["git", "grep", "-nIE", "|".join(patterns)]
    found = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=False)
    assert found.returncode in (0, 1), found.stderr
    lines = [
        line for line in found.stdout.splitlines() if "tests/repo/test_packages.py" not in line
    ]
    assert not lines, lines
