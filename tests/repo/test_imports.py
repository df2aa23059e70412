"""Who may import whom."""

import ast

import pytest

SIBLINGS = {"em_data", "em_models", "em_losses", "em_kernels", "em_train"}
# Third-party modules that each package may import.
ALLOWED = {
    "em-data": {"numcodecs", "google_crc32c", "numpy", "zarr", "torch"},
    "em-models": {"torch", "safetensors", "timm"},
    "em-losses": {"torch"},
    "em-kernels": {"torch", "numpy", "rich", "PIL"},
    "em-train": {
        *("torch", "numpy", "typer", "rich", "pydantic", "PIL"),
        *("dask", "distributed", "neuroglancer"),  # extras
    },
}
TORCH_IN_DATA = {"augment", "loader"}  # folders
# The one place of each package that may know the compiled operators.
KERNELS = {
    "em-data": {"gather.py"},
    "em-losses": {"kernels.py"},
    "em-models": {"kernels.py"},
    "em-train": {"info.py"},
}


def imports(path):
    """Top-level names of the modules that a file imports."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module.partition(".")[0]


@pytest.mark.parametrize("package", sorted(ALLOWED))
def test_packages_keep_to_themselves(repository, package):
    import sys

    own = package.replace("-", "_")
    files = sorted((repository / "packages" / package / "src").rglob("*.py"))
    assert files
    for path in files:
        for name in set(imports(path)) - {own}:
            if name in SIBLINGS:
                allowed = package == "em-train" or name == "em_kernels"
                if name == "em_kernels":
                    allowed = path.name in KERNELS.get(package, set())
                assert allowed, f"{path} imports {name}"
            elif name == "torch" and package == "em-data":
                assert path.parent.name in TORCH_IN_DATA, f"{path} imports torch"
            else:
                known = name in sys.stdlib_module_names or name in ALLOWED[package]
                assert known, f"{path} imports {name}"


def test_recipes_do_not_know_each_other_and_parts_do_not_know_recipes(repository):
    source = repository / "packages" / "em-train" / "src" / "em_train"
    for path in source.rglob("*.py"):
        if path.parent.name == "commands":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            names = [node.module] if isinstance(node, ast.ImportFrom) else []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            if isinstance(node, ast.ImportFrom) and node.module == "em_train":
                names += [f"em_train.{alias.name}" for alias in node.names]
            for name in names:
                assert not name.startswith("em_train.recipes"), f"{path} imports a recipe"


def test_every_recipe_reads_in_the_same_order(repository):
    recipes = repository / "packages" / "em-train" / "src" / "em_train" / "recipes"
    for path in recipes.glob("[a-z]*.py"):
        text = path.read_text()
        body = text[text.index("\ndef run(") :]
        paragraphs = ["# Data", "# Model", "# Optimiser", "# Resume", "# Loop"]
        places = [body.find(paragraph) for paragraph in paragraphs]
        assert -1 not in places and places == sorted(places), f"{path}: {paragraphs} not in order"
