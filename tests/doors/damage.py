"""What can happen to the files of a run folder: a seeded mutator.

Every file that a run owns is damaged in every way that its kind allows. The seed chooses the place
within the file, so that another seed is another damage.
"""

from __future__ import annotations

import json
import os
import random
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from doors.zarr_volumes import cut, dangling, fifo, folder_instead, holds, looping

Damage = Callable[[Path, random.Random], Any]
# What is there besides is made by commands that are tried, or looked at by nobody.
FILES = (
    *("config.json", "metrics.jsonl", "report.json", "classes.json", "proof.json", "figures.json"),
    *("checkpoints/step-*.pt", "checkpoints/last", "checkpoints/best", "images/*.png"),
    *("weights/*/config.json", "weights/*/model.safetensors", "scores.json", "log.txt"),
    "restoration.json",
)


def flipped(path: Path, rng: random.Random) -> None:
    """Some bits of it are others."""
    raw = bytearray(path.read_bytes())
    for _ in range(max(1, len(raw) // 2000)):
        raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
    path.write_bytes(raw)


def cut_at(path: Path, rng: random.Random) -> None:
    raw = path.read_bytes()
    path.write_bytes(raw[: rng.randrange(1, max(2, len(raw)))])


def linked(target: str) -> Damage:
    return lambda path, _: (path.unlink(), path.symlink_to(target))


def outside(path: Path, rng: random.Random) -> None:
    """A link to somebody else's file, which must neither be shown nor written."""
    secret = path.parents[1] / ".secret"
    secret.write_text("secret\n")
    path.unlink()
    path.symlink_to(secret)


def sound(spoil: Callable[[Path], Any]) -> Damage:
    """Damage that needs no seed."""
    return lambda path, _: spoil(path)


ANY: dict[str, Damage] = {
    "gone": sound(lambda p: p.unlink()),
    "empty": sound(holds(b"")),
    "cut in half": sound(cut),
    "cut somewhere": cut_at,
    "bits flipped": flipped,
    "other bytes": lambda p, rng: p.write_bytes(rng.randbytes(700)),
    "text": sound(holds("nothing of use\n")),
    "longer": lambda p, _: p.write_bytes(p.read_bytes() + bytes(100_000)),
    "a folder": sound(folder_instead),
    "a dangling link": sound(dangling),
    "a looping link": sound(looping),
    "a fifo": sound(fifo),
    "an endless device": linked("/dev/zero"),
    "a null device": linked("/dev/null"),
    "a file outside": outside,
}


# JSON ----------------------------------------------------------------------------------------------


def places(tree: Any, here: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where values lie in a tree."""
    inside = tree.items() if isinstance(tree, dict) else enumerate(tree)
    for key, value in inside:
        yield (*here, key)
        if isinstance(value, dict | list):
            yield from places(value, (*here, key))


def changed(change: Callable[[Any, Any, random.Random], None]) -> Damage:
    """One value of a JSON file is changed, in place of its parent."""

    def damage(path: Path, rng: random.Random) -> None:
        tree = json.loads(path.read_text())
        found = list(places(tree))
        if found:
            *way, key = rng.choice(found)
            parent = tree
            for step in way:
                parent = parent[step]
            change(parent, key, rng)
        path.write_text(json.dumps(tree))

    return damage


ODD: tuple[Any, ...] = (
    *(None, True, -1, 0, 1e308, 10**30, "", "text", "../../..", [], [None], [[[]]], {}, {"a": {}}),
    *(float("nan"), float("-inf"), "\x00", "1", [1, "a"], 2.5),
)


def put(parent: Any, key: Any, rng: random.Random) -> None:
    parent[key] = rng.choice(ODD)


def drop(parent: Any, key: Any, rng: random.Random) -> None:
    del parent[key]


def rename(parent: Any, key: Any, rng: random.Random) -> None:
    if isinstance(parent, dict):
        parent[f"{key}_"] = parent.pop(key)
    else:
        parent.append(parent[key])


JSON: dict[str, Damage] = {
    "null": sound(holds("null")),
    "a list": sound(holds("[1, 2]")),
    "an empty object": sound(holds("{}")),
    "a number": sound(holds("7")),
    "a nested list": sound(holds("[" * 100_000)),
    "digits": sound(holds('{"format": ' + "9" * 5000 + "}")),
    **{f"another value {n}": changed(put) for n in range(6)},
    **{f"a missing key {n}": changed(drop) for n in range(3)},
    **{f"an unknown key {n}": changed(rename) for n in range(2)},
}


# Lines ---------------------------------------------------------------------------------------------


def in_the_middle(*lines: str) -> Damage:
    def damage(path: Path, rng: random.Random) -> None:
        there = path.read_text().splitlines()
        middle = len(there) // 2
        path.write_text("\n".join([*there[:middle], *lines, *there[middle:]]) + "\n")

    return damage


LINES: dict[str, Damage] = {
    "a broken line": in_the_middle('{"step": 1, "lo'),
    "a line of null": in_the_middle("null"),
    "a line of a list": in_the_middle("[1, 2]"),
    "a line without a step": in_the_middle('{"loss": 1}'),
    "a step of text": in_the_middle('{"step": "one", "loss": 1}'),
    "a step of null": in_the_middle('{"step": null}'),
    "a loss of text": in_the_middle('{"step": 1, "loss": "low"}'),
    "a loss of nan": in_the_middle('{"step": 1, "loss": NaN}'),
    "a loss of 1e999": in_the_middle('{"step": 1, "loss": 1e999}'),
    "empty lines": in_the_middle("", "", ""),
    "a million steps": in_the_middle('{"step": 1000000000000, "loss": 1}'),
}


# Weights and checkpoints ---------------------------------------------------------------------------


def header(change: Callable[[dict[str, Any]], Any]) -> Damage:
    """Another description of the tensors in a safetensors file."""

    def damage(path: Path, rng: random.Random) -> None:
        raw = path.read_bytes()
        (length,) = struct.unpack("<Q", raw[:8])
        described = json.loads(raw[8 : 8 + length])
        change(described)
        text = json.dumps(described).encode()
        path.write_bytes(struct.pack("<Q", len(text)) + text + raw[8 + length :])

    return damage


def first(described: dict[str, Any]) -> Any:
    return next(value for key, value in described.items() if key != "__metadata__")


def of_tensors(change: Callable[[dict[str, Any]], Any]) -> Damage:
    """A whole file with other tensors."""

    def damage(path: Path, rng: random.Random) -> None:
        from safetensors.torch import load_file, save_file

        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path)

    return damage


def length(size: int) -> Damage:
    return lambda path, _: path.write_bytes(struct.pack("<Q", size) + path.read_bytes()[8:])


def drop_first(tensors: dict[str, Any]) -> None:
    del tensors[min(tensors)]


def reshape_first(tensors: dict[str, Any]) -> None:
    tensors[min(tensors)] = torch.zeros(3, 5)


def spoil_first(tensors: dict[str, Any]) -> None:
    key = next(k for k in sorted(tensors) if tensors[k].is_floating_point())
    tensors[key] = torch.full_like(tensors[key], float("nan"))


TENSORS: dict[str, Damage] = {
    "a header of 2^62": length(2**62),
    "a header of 0": length(0),
    "a shape of 10^12": header(lambda d: first(d).update(shape=[10**12])),
    "a negative offset": header(lambda d: first(d).update(data_offsets=[-4, 0])),
    "an unknown type": header(lambda d: first(d).update(dtype="F9")),
    "a tensor less": of_tensors(drop_first),
    "a tensor more": of_tensors(lambda t: t.update(more=torch.zeros(2))),
    "another shape": of_tensors(reshape_first),
    "nan": of_tensors(spoil_first),
    "no tensors": of_tensors(lambda t: t.clear()),
}


class Code:
    """What a pickle runs when it is loaded without care."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, ("touch owned",)


def state(change: Callable[[dict[str, Any]], Any]) -> Damage:
    """A whole checkpoint that holds something else."""

    def damage(path: Path, rng: random.Random) -> None:
        stored = torch.load(path, weights_only=True)
        other = change(stored)
        torch.save(stored if other is None else other, path)

    return damage


def without(key: str) -> Damage:
    return state(lambda s: {k: v for k, v in s.items() if k != key})


def in_networks(change: Callable[[dict[str, Any]], Any]) -> Damage:
    def both(stored: dict[str, Any]) -> None:
        for group in ("networks", "average"):
            if group in stored:
                change(stored[group])

    return state(both)


def empty_archive(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"")


CHECKPOINTS: dict[str, Damage] = {
    "a list": state(lambda s: [1, 2]),
    "a tensor": state(lambda s: torch.zeros(3)),
    "an empty object": state(lambda s: {"format": s["format"]}),
    "code": state(lambda s: s | {"networks": Code()}),
    "only code": sound(lambda p: torch.save(Code(), p)),
    "a format to come": state(lambda s: s | {"format": 99}),
    "a format of text": state(lambda s: s | {"format": "two"}),
    "no step": without("step"),
    "a step of text": state(lambda s: s | {"step": "three"}),
    "a step of -1": state(lambda s: s | {"step": -1}),
    "a step of 10^15": state(lambda s: s | {"step": 10**15}),
    "no networks": without("networks"),
    "networks null": state(lambda s: s | {"networks": None}),
    "networks a list": state(lambda s: s | {"networks": [1]}),
    "no average": without("average"),
    "average of text": state(lambda s: s | {"average": "none"}),
    "no world": without("world"),
    "no optimiser": state(lambda s: {k: v for k, v in s.items() if not k.startswith("optim")}),
    "a tensor less": in_networks(drop_first),
    "a tensor more": in_networks(lambda t: t.update(more=torch.zeros(2))),
    "another shape": in_networks(reshape_first),
    "nan": in_networks(spoil_first),
    "an archive of nothing": sound(empty_archive),
}


def damages(name: str) -> dict[str, Damage]:
    """Every damage of a file with this name."""
    kinds = {".json": JSON, ".jsonl": LINES, ".safetensors": TENSORS, ".pt": CHECKPOINTS}
    return ANY | kinds.get(Path(name).suffix, {})


def spoil(run: Path, file: str, damage: Damage, seed: int) -> Path | None:
    """Damage the first file of a run that a pattern names; what it was, None where there is none."""
    found = sorted(run.glob(file))
    if not found:
        return None
    path = found[seed % len(found)]
    if path.is_symlink():  # the link itself, not what it points to
        target = path.read_bytes()
        path.unlink()
        path.write_bytes(target)
    damage(path, random.Random(seed))
    return path
