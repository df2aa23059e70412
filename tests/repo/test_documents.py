"""What the documents name exists: links, files, commands, options, presets, keys, names in Python, pictures."""

import importlib
import re
import shlex
from dataclasses import fields, is_dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest
from em_train.cli import app
from typer.main import get_command
from typer.testing import CliRunner

ROOT = Path(__file__).parents[2]
COMMANDS = get_command(app).commands
# Those that are configured by keys, and what else they need.
RECIPES = {n: [] for n, c in COMMANDS.items() if any("--show-config" in p.opts for p in c.params)}
RECIPES["synth"] = ["x.zarr"]
# What a document may name beside what it is itself about: other programs have options too.
FOREIGN = {
    *("--no-build-isolation", "--no-deps"),  # pip
    *("--local-addr", "--rdzv-conf", "--max-restarts"),  # torchrun
}
# Text that looks like a key and is none: groups of keys, files.
GROUPS = ("data", "model", "loss", "optim", "run")
GUIDES = sorted((ROOT / "docs").glob("**/*.md"))
READMES = [ROOT / "README.md", *sorted((ROOT / "packages").glob("*/README.md"))]
DOCUMENTS = [*READMES, ROOT / "CONTRIBUTING.md", *GUIDES]  # the changelog also names what is gone
IN_WORDS = {"ids": lambda path: str(path.relative_to(ROOT))}


def joined(text):
    """The text with the lines of a long command put together."""
    return re.sub(r"\\\n\s*", "", text)


def code(text):
    """Pieces of code of a document: lines of blocks, and what stands between backticks."""
    text = joined(text)
    blocks = re.findall(r"^```\w*\n(.*?)^```", text, re.S | re.M)
    prose = re.sub(r"^```.*?^```", "", text, flags=re.S | re.M)
    lines = [line for block in blocks for line in block.splitlines()]
    lines += re.findall(r"^ {4,}(\S.*)$", prose, re.M)
    prose = re.sub(r"^ {4,}\S.*$", "", prose, flags=re.M)
    spans = [re.sub(r"\s+", " ", span) for span in re.findall(r"`([^`]+)`", prose)]
    return [line.split("  #")[0].rstrip() for line in lines] + spans


EMTRAIN = r"(?:emtrain|-m em_train\.cli) ([a-z][a-z-]*)"


def calls(text, program=EMTRAIN):
    """The uses of a program: its name or that of its command, and the words after it."""
    for piece in code(text):
        if found := re.search(rf"(?:^|[\s/]){program}(.*)", piece):
            try:
                yield found[1], shlex.split(found[2])
            except ValueError:  # a quotation mark of prose
                yield found[1], found[2].split()


def given(words, option):
    """The values of an option among the words of a command."""
    for word, after in pairwise([*words, ""]):
        if word == option:
            yield after
        elif word.startswith(f"{option}="):
            yield word.partition("=")[2]


def options_of(words):
    return [word.partition("=")[0] for word in words if re.match(r"--[a-z]", word)]


@cache
def known_options(name):
    return {option for p in COMMANDS[name].params for option in p.opts + p.secondary_opts}


@cache
def show_config(command, *settings):
    """What `--show-config` says, or why it does not."""
    words = [command, *RECIPES[command], *settings, "--show-config"]
    done = CliRunner(env={"COLUMNS": "400"}).invoke(app, words)
    return done.output if done.exit_code == 0 else f"error: {done.output}{done.exception}"


@cache
def keys_of(command):
    found = show_config(command)
    assert not found.startswith("error"), found
    return {line.split()[0] for line in found.splitlines() if line.strip()}


def slug(heading):
    """The anchor of a heading, as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def links(text):
    return re.findall(r"\]\(([^)\s]+)\)", text)


def broken_links(document, text):
    for target in links(text):
        path, _, anchor = target.partition("#")
        if path.startswith(("http:", "https:")):
            continue
        place = document.parent / path if path else document
        if not place.exists():
            yield target
        elif anchor:
            headings = re.findall(r"^#+ (.*)$", place.read_text(), re.M)
            if anchor not in map(slug, headings):
                yield target


def missing_files(document, text):
    for piece in code(text):
        for name in re.findall(
            r"(?<![\w./-])(?:packages|tools|tests|docs|\.ci)/[\w./-]+(?![\w./$-])", piece
        ):
            place = ROOT / name.rstrip("./")
            if not place.exists():
                yield name
    for name in re.findall(r"images/(\w[\w-]*\.png)", text):  # of a run
        if name not in sources("em-train"):
            yield f"images/{name}"


@cache
def sources(package):
    folder = ROOT / "packages" / package / "src"
    return "\n".join(path.read_text() for path in sorted(folder.rglob("*.py")))


def wrong_commands(text):
    for name, words in calls(text):
        if name not in COMMANDS:
            yield f"emtrain {name}"
            continue
        for option in options_of(words):
            if option not in known_options(name):
                yield f"emtrain {name} {option}"
        if name == "bench-train" and words:  # whose settings are those of the recipe
            name = words[0]
        if name in RECIPES:
            settings = [f"--preset={one}" for one in given(words, "--preset")]
            settings += [f"--kind={one}" for one in given(words, "--kind")]
            settings += [f"--set={one}" for one in given(words, "--set") if "=" in one]
            if settings and "KEY=VALUE" not in text_of(words):
                said = show_config(name, *settings)
                if said.startswith("error"):
                    yield f"emtrain {name} {text_of(settings)}: {said}"


def text_of(words):
    return " ".join(words)


def wrong_scripts(text):
    """Options of the scripts under tools/."""
    for name, words in calls(text, r"(tools/[\w./-]+\w)"):
        if (ROOT / name).is_file():
            for option in options_of(words):
                passed_on = name == "tools/test" and option == "--pdb"  # to pytest
                if option not in (ROOT / name).read_text() and not passed_on:
                    yield f"{name} {option}"


def wrong_options(text):
    """Options that are named by themselves."""
    here = "\n".join(p.read_text() for p in (ROOT / "tools").rglob("*") if p.is_file())
    here += sources("em-kernels")
    every = {option for name in COMMANDS for option in known_options(name)} | FOREIGN
    for piece in code(text):
        if piece.startswith("--"):
            for option in options_of(piece.split()):
                if option not in every and f'"{option}"' not in here:
                    yield option


def wrong_keys(text):
    """Keys of the configuration that are named by themselves, with or without a value."""
    every = set().union(*(keys_of(name) for name in RECIPES))
    for piece in code(text):
        for key in re.findall(
            rf"^((?:{'|'.join(GROUPS)})\.(?!safetensors)[a-z][\w.]*)(?:=.*)?$", piece
        ):
            group = any(one.startswith(f"{key}.") for one in every)
            if key not in every and not group:
                yield key


def resolve(name):
    """The module or attribute of a dotted name; AttributeError or ImportError where there is none."""
    parts = name.split(".")
    found = importlib.import_module(parts[0])
    for i, part in enumerate(parts[1:], 2):
        if hasattr(found, part):
            found = getattr(found, part)
        elif is_dataclass(found) and part in {f.name for f in fields(found)}:
            return found
        else:
            found = importlib.import_module(".".join(parts[:i]))
    return found


def wrong_names(text):
    """Dotted names of our packages, and what blocks of Python import."""
    names = []
    for piece in code(text):
        names += re.findall(r"(?<![\w/.-])em_[a-z]+(?:\.[A-Za-z_]\w*)+", piece)
        if found := re.match(r"from (em_[\w.]+) import ([\w, ]+)$", piece):
            names += [f"{found[1]}.{name.strip()}" for name in found[2].split(",")]
    for name in names:
        try:
            resolve(name)
        except (ImportError, AttributeError):
            yield name


def test_there_are_documents():
    assert len(GUIDES) >= 12 and len(READMES) == 6
    assert {"dense-ssl", "segment", "mae", "synth"} <= set(RECIPES)


@pytest.mark.parametrize("document", [*DOCUMENTS, ROOT / "CHANGELOG.md"], **IN_WORDS)
def test_links_lead_somewhere(document):
    assert not list(broken_links(document, document.read_text()))


@pytest.mark.parametrize("document", DOCUMENTS, **IN_WORDS)
def test_what_is_named_exists(document):
    text = document.read_text()
    assert not list(missing_files(document, text))
    assert not list(wrong_commands(text))
    assert not list(wrong_scripts(text))
    assert not list(wrong_options(text))
    assert not list(wrong_keys(text))
    assert not list(wrong_names(text))


@pytest.mark.parametrize(
    ("check", "wrong", "right"),
    [
        (
            lambda text: broken_links(ROOT / "README.md", text),
            "[a](docs/nothing.md) [b](README.md#nowhere)",
            "[a](docs/start.md) [b](README.md#the-command) [c](https://example.org)",
        ),
        (
            lambda text: missing_files(ROOT / "README.md", text),
            "`tools/nothing` and\n\n    tests/nothing/test_it.py\n\n`images/nothing.png`",
            "`tools/demo` and\n\n    tests/repo\n\n`images/classes.png`",
        ),
        (wrong_commands, "`emtrain nothing`", "`emtrain info raw.zarr --thumbnail raw.png`"),
        (
            wrong_commands,
            "    emtrain info \\\n      --nothing",
            "    emtrain speed raw.zarr  # --no",
        ),
        (wrong_commands, "`emtrain mae --preset nothing`", "`emtrain mae --preset demo`"),
        (
            wrong_commands,
            "`emtrain mae --set run.step=5`",
            "`emtrain mae --out RUN --set run.steps=5`",
        ),
        (wrong_scripts, "`tools/demo --nothing`", "`tools/demo --fresh`"),
        (
            wrong_scripts,
            "    python tools/bench/data/reading.py --nothing",
            "    python tools/bench/data/reading.py --quick",
        ),
        (wrong_options, "`--nothing`", "`--resume` and `--thumbnail PNG`"),
        (wrong_keys, "`optim.nothing`", "`run.steps`, `run.steps=5`, `model.encoder`"),
        (wrong_names, "`em_data.nothing`", "`em_data.augment.apply(images)`"),
        (
            wrong_names,
            "```python\nfrom em_data import nothing\n```",
            "```python\nfrom em_data import Key, open_volume\n```",
        ),
    ],
)
def test_the_checks_can_fail(check, wrong, right):
    assert list(check(wrong))
    assert not list(check(right))


def test_modules_of_the_package_tables_exist():
    """First column of the tables in the packages' READMEs."""
    for readme in READMES[1:]:
        package = readme.parent.name.replace("-", "_")
        source = readme.parent / "src" / package
        rows = re.findall(r"^\| (`[^|]+`) \|", readme.read_text(), re.M)
        for name in re.findall(r"`([a-z_0-9]+)(/?)`", " ".join(rows)):
            module, folder = source / f"{name[0]}.py", source / name[0]
            there = folder.is_dir() if name[1] else module.exists() or folder.is_dir()
            assert there or hasattr(importlib.import_module(package), name[0]) or (
                package == "em_kernels"  # whose table begins with its operators
                and f"def {name[0]}(" in sources("em-kernels")
            ), f"{readme}: {''.join(name)}"  # fmt: skip


def test_the_leaves_of_the_engine_exist():
    """First column of the table of docs/engine.md: `file.name`, then names of the same file."""
    text = (ROOT / "docs" / "engine.md").read_text()
    rows = re.findall(r"^\| (`[^|]+`) \|", text[text.index("| leaf | does |") :], re.M)
    assert len(rows) > 12
    for row in rows:
        module = ""
        for name in re.findall(r"`([\w.]+)", row):
            if not name.startswith("em_"):
                module = name.partition(".")[0] if "." in name else module
                name = f"em_train.engine.{name if '.' in name else f'{module}.{name}'}"
            resolve(name)


def test_the_tree_of_contributing_is_there():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    tree = text[text.index("## Where things live") : text.index("## Habits")]
    above, seen = ROOT, 0
    for depth, line in re.findall(r"^( {4}| {8})(\S.*)$", tree, re.M):
        for name in line.split("  ")[0].split():
            place = (ROOT if len(depth) == 4 else above) / name.partition("<")[0]
            assert place.exists() or place.with_suffix(".py").exists(), f"{name} under {above}"
            seen += 1
        above = place if len(depth) == 4 else above
    assert seen > 30


def test_presets_of_tables_exist():
    """Tables whose first column is the preset."""
    source = ROOT / "packages" / "em-train" / "src" / "em_train" / "presets"
    for name in RECIPES:
        guide = ROOT / "docs" / f"{name}.md"
        if guide.exists():
            for table in re.findall(r"^\| preset \|.*\n((?:\|.*\n)+)", guide.read_text(), re.M):
                presets = re.findall(r"^\| `([\w-]+)`", table, re.M)
                assert presets
                for preset in presets:
                    assert (source / name / f"{preset}.toml").exists(), f"{guide}: {preset}"


def test_keys_of_augmentation_exist():
    from em_data.augment import AugmentConfig, BlindSpotConfig, DegradeConfig

    rows = re.findall(r"^\| (`[^|]+`) \|", (ROOT / "docs" / "augment.md").read_text(), re.M)
    groups = {"": AugmentConfig} | {f.name: f.default_factory for f in fields(AugmentConfig)}
    groups |= {"degrade": DegradeConfig, "blind_spots": BlindSpotConfig}
    names = {n: {f.name for f in fields(g)} for n, g in groups.items() if is_dataclass(g)}
    assert {"", "warp", "defects"} <= set(names)
    for name in re.findall(r"`([\w.]+)`", " ".join(rows)):
        group, _, key = name.rpartition(".")
        near = [group] if group else list(names)
        assert any(key in names[one] for one in near), f"docs/augment.md: {name}"


def test_every_picture_is_shown_and_every_guide_is_linked():
    shown = {(d.parent / t).resolve() for d in DOCUMENTS for t in links(d.read_text())}
    pictures = [p for p in (ROOT / "docs").rglob("*") if p.suffix in (".png", ".jpg", ".jpeg")]
    assert pictures
    for path in pictures:
        assert path.resolve() in shown, f"{path} is shown nowhere; remove it"
    first = set(links((ROOT / "README.md").read_text()))
    inside = set(links((ROOT / "docs" / "results" / "README.md").read_text()))
    for guide in GUIDES:
        name = str(guide.relative_to(ROOT))
        of_results = guide.parent.name == "results" and guide.name != "README.md"
        assert guide.name in inside if of_results else name.removesuffix("/README.md") in first
