"""Each package alone, as somebody else's project would install it.

Every package is built as a wheel and installed into an environment of its own. What it needs from
others is lent to that environment by links to the copies that are installed here, distribution by
distribution, so that nothing is downloaded and nothing that it does not declare is there.
"""

import importlib.metadata
import os
import re
import subprocess
import sys
import tomllib
import venv
from pathlib import Path

import pytest
from packaging.requirements import Requirement


def needed(requirements):
    """Names of the installed distributions that requirements ask for, with all that those need."""
    found, waiting = set(), [Requirement(text) for text in requirements]
    while waiting:
        requirement = waiting.pop()
        name = re.sub(r"[-_.]+", "-", requirement.name).lower()
        key = (name, frozenset(requirement.extras))
        if key in found:
            continue
        found.add(key)
        for text in importlib.metadata.requires(requirement.name) or ():
            inner = Requirement(text)
            if inner.marker is None or any(
                inner.marker.evaluate({"extra": extra}) for extra in requirement.extras or {""}
            ):
                inner.marker = None
                waiting.append(inner)
    return {name for name, _ in found}


def lend(names, folder):
    """Link the files of installed distributions into `folder`."""
    folder.mkdir(parents=True)
    for name in names:
        distribution = importlib.metadata.distribution(name)
        top = {Path(file).parts[0] for file in distribution.files or () if ".." not in file.parts}
        for entry in top - {"__pycache__"}:
            place, original = folder / entry, Path(distribution.locate_file(entry))
            if not place.exists() and original.exists():  # some share a folder, as nvidia
                place.symlink_to(original)


class Environment:
    """A clean virtual environment with some distributions lent to it."""

    def __init__(self, folder, names):
        venv.create(folder, with_pip=False, symlinks=True)
        self.python = folder / "bin" / "python"
        (site,) = folder.glob("lib/python*/site-packages")
        lend(names | {"pip"}, folder / "lent")
        (site / "lent.pth").write_text(str(folder / "lent") + "\n")

    def run(self, *arguments, cwd):
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "EM_"))}
        return subprocess.run(
            [self.python, *map(str, arguments)],
            capture_output=True,
            text=True,
            check=False,
            cwd=cwd,
            env=environment | {"PIP_DISABLE_PIP_VERSION_CHECK": "1"},
        )


def build_wheel(source, folder):
    """The wheel of a package, built from a copy so that nothing is left behind in the source."""
    import shutil

    copy = folder / "source"
    ignore = shutil.ignore_patterns("build", "*.so", "*.egg-info", "__pycache__")
    shutil.copytree(source, copy, ignore=ignore)
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-q"]
    # The CUDA half, which takes longest to compile, is not used here: tools/wheels builds all of it.
    without_cuda = os.environ | {"CUDA_HOME": str(folder / "no-cuda")}
    built = subprocess.run(
        [*command, "-w", folder, copy], capture_output=True, text=True, env=without_cuda
    )
    assert built.returncode == 0, built.stderr
    (wheel,) = folder.glob("*.whl")
    return wheel


def example(readme):
    """The first Python block of a README."""
    return re.search(r"```python\n(.*?)```", readme.read_text(), re.S).group(1)


PARTS = ("em-data", "em-models", "em-losses", "em-kernels")


@pytest.mark.parametrize("package", PARTS)
def test_part_installs_and_works_alone(repository, tmp_path, package):
    source = repository / "packages" / package
    described = tomllib.loads((source / "pyproject.toml").read_text())["project"]
    if package == "em-kernels":
        pytest.importorskip("em_kernels", reason="em-kernels could not be built here")
    environment = Environment(tmp_path / "venv", needed(described["dependencies"]))
    wheel = build_wheel(source, tmp_path / "wheel")
    # --no-index: everything that it declares must have been lent.
    installed = environment.run("-m", "pip", "install", "-q", "--no-index", wheel, cwd=tmp_path)
    assert installed.returncode == 0, installed.stderr
    result = environment.run("-c", example(source / "README.md"), cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip()

    name = package.replace("-", "_")
    others = [p.replace("-", "_") for p in (*PARTS, "em-train") if p != package]
    if package == "em-data":
        others.append("torch")
    absent = f"import importlib.util as u, {name}; print([n for n in {others} if u.find_spec(n)])"
    assert environment.run("-c", absent, cwd=tmp_path).stdout.strip() == "[]"


def test_em_train_installs_with_its_siblings(repository, tmp_path):
    readme = (repository / "packages" / "em-train" / "README.md").read_text()
    names = re.search(r"pip install (\./packages/em-data .*)", readme).group(1).split()
    sources = [repository / name.removeprefix("./") for name in names]
    requirements = []
    for source in sources:
        described = tomllib.loads((source / "pyproject.toml").read_text())["project"]
        requirements += [d for d in described["dependencies"] if not d.startswith("em-")]
    environment = Environment(tmp_path / "venv", needed(requirements))
    wheels = [build_wheel(source, tmp_path / source.name) for source in sources]
    installed = environment.run("-m", "pip", "install", "-q", "--no-index", *wheels, cwd=tmp_path)
    assert installed.returncode == 0, installed.stderr
    code = example(repository / "packages" / "em-train" / "README.md")
    result = environment.run("-c", code, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "report.html" in result.stdout
    shown = environment.run("-m", "em_train.cli", "info", cwd=tmp_path)
    assert "not installed" in shown.stdout and shown.returncode == 0  # em-kernels


def test_importing_the_reader_needs_no_torch(tmp_path):
    code = (
        "import sys; sys.modules['torch'] = None; import em_data; "
        "v = em_data.open_volume('synthetic:shape=2x32x32'); print(v[0:2, 0:32, 0:32].shape)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert result.stdout.strip() == "(2, 32, 32)"
