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

# Which rooms a room may import; "" is the top of the package. In em-data that is the line
# open_volume -> sampler -> loader -> Batch -> … -> Volume, read from left to right.
ROOMS = {
    "em-data": {
        "": {""},
        "synthetic": {""},
        "formats": {"", "synthetic"},
        "sampler": {""},
        "loader": {"", "formats", "sampler"},
        "augment": {"", "sampler"},
        "writer": {"", "formats"},
    },
    "em-train": {
        "": {"commands", "engine"},
        "engine": set(),
        "features": {""},  # the catalogue
        "look": {"engine"},
        "judge": {"engine", "features"},
        "predict": {"", "engine", "look"},
        "measure": {"", "engine", "look"},
        "dense": {"engine", "features", "judge", "look", "predict"},
        "mae": {"engine", "features", "judge", "look", "predict"},
        "restore": {"engine", "features", "judge", "look", "predict"},
        "segment": {"engine", "features", "judge", "look", "predict"},
        "recipes": {"dense", "engine", "mae", "measure", "restore", "segment"},
        "commands": {"", "engine", "judge", "look", "measure", "predict", "segment"},
    },
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


def modules(repository, package):
    """The modules of a package, by their dotted names."""
    source = repository / "packages" / package / "src"
    paths = {path.relative_to(source).with_suffix(""): path for path in source.rglob("*.py")}
    return {".".join(name.parts).removesuffix(".__init__"): path for name, path in paths.items()}


def imported(path, known, *, inside_functions):
    """Modules among `known` that a file imports when it runs, types alone left out."""

    def walk(nodes):
        for node in nodes:
            if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
                continue
            if isinstance(node, ast.ImportFrom):
                for alias in node.names:
                    full = f"{node.module}.{alias.name}"
                    yield full if full in known else node.module
            elif isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif inside_functions or not isinstance(node, ast.FunctionDef):
                yield from walk(ast.iter_child_nodes(node))

    return {name for name in walk(ast.parse(path.read_text()).body) if name in known}


def room(name, path):
    """The folder of a package that a module lies in."""
    parts = name.split(".")[1:]
    return parts[0] if len(parts) > 1 or (parts and path.name == "__init__.py") else ""


@pytest.mark.parametrize("package", sorted(ROOMS))
def test_no_import_runs_against_the_line(repository, package):
    known = modules(repository, package)
    root = package.replace("-", "_")
    assert {room(*item) for item in known.items()} == set(ROOMS[package])
    for name, path in known.items():
        if name == root:  # the face of the package
            continue
        for other in imported(path, known, inside_functions=True) - {root}:
            here, there = room(name, path), room(other, known[other])
            allowed = here == there or there in ROOMS[package][here]
            assert allowed, f"{name} imports {other}: {here or 'the top'} may not know {there}"


@pytest.mark.parametrize("package", sorted(ALLOWED))
def test_no_import_runs_in_a_circle(repository, package):
    known = modules(repository, package)
    graph = {m: imported(path, known, inside_functions=False) for m, path in known.items()}
    done = set()

    def follow(name, way):
        assert name not in way, f"circle: {' -> '.join([*way, name])}"
        for other in graph[name] - done:
            follow(other, [*way, name])
        done.add(name)

    for name in graph:
        if name not in done:
            follow(name, [])


def test_nobody_asks_which_recipe_a_run_is_of(repository):
    """The catalogue knows; whoever uses runs reads it there."""
    source = repository / "packages" / "em-train" / "src" / "em_train"
    for path in source.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "isinstance":
                kinds = ast.unparse(node.args[1])
                assert not any(kind in kinds for kind in ("DenseRun", "MaeRun")), path
            if isinstance(node, ast.Dict) and path.name != "catalogue.py":
                keys = {key.value for key in node.keys if isinstance(key, ast.Constant)}
                assert len(keys & {"dense-ssl", "segment", "mae", "restore"}) < 2, (
                    f"{path} has its own table"
                )
            if isinstance(node, ast.Compare):
                assert "__name__" not in ast.unparse(node) or "__main__" in ast.unparse(node), path
