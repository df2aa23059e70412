"""Write what is synthetic with its truth: tissue as one OME-Zarr store, materials as folders of pictures.

OUT/images/NAME.png       without noise
OUT/instances/NAME.png    numbers of the particles, or of the columns of a lattice
OUT/positions.csv         of a lattice: where its columns are
OUT/damaged/NAME.png      the same images as a worse scan would show them, if asked for
OUT/synth.json            what it was made of
"""

from __future__ import annotations

import csv
import dataclasses
import json
import shlex
import shutil
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from em_data import Key, new_store, tiles
from em_data.augment import DegradeConfig, degradation, degrade
from em_data.geometry import float3, int3
from em_data.synthetic import (
    CLASSES,
    LatticeConfig,
    ParticlesConfig,
    SyntheticConfig,
    render,
    render_lattice,
    render_particles,
)
from em_data.writer.place import check_apart
from PIL import Image

from em_train.engine.folders import check_replaceable, put_in_place
from em_train.engine.progress import meter, say

__all__ = ["CONFIGS", "SyntheticConfig", "write_images", "write_synthetic"]

NOTE = "synth.json"
COLUMNS = ("image", "id", "y_px", "x_px", "sublattice")
CONFIGS: dict[str, type] = {
    "tissue": SyntheticConfig,
    "particles": ParticlesConfig,
    "lattice": LatticeConfig,
}


def write_synthetic(config: SyntheticConfig, out: Path, *, overwrite: bool = False) -> None:
    """Render `config` into an OME-Zarr store at `out`, raw and labels."""
    shape, size_nm = int3(config.shape_vx), float3(config.voxel_size_nm)
    with new_store(out, overwrite=overwrite) as store:
        raw = store.add_image(shape, np.uint8, size_nm)
        classes = store.add_image(
            shape, np.uint8, size_nm, label="classes", classes=CLASSES, pool="mode"
        )
        instances = store.add_image(shape, np.uint32, size_nm, label="instances")
        boxes = list(tiles(shape, int3([min(n, 256) for n in shape])))
        with meter("synth", len(boxes)) as bar:
            for done, box in enumerate(boxes, 1):
                block = render(config, box.origin_vx, box.size_vx)
                raw.write(box, block.raw)
                classes.write(box, block.classes)
                instances.write(box, block.instances)
                bar.update(done, f"{' × '.join(map(str, shape))} voxels")
    say(f"wrote {out}; look at it with: emtrain info {out}")


class Sample(NamedTuple):
    """One synthetic image of materials and its truth."""

    image: np.ndarray  # (Y, X) float32 in [0, 1]
    instances: np.ndarray  # (Y, X) uint16
    positions: Sequence[tuple[Any, ...]] = ()  # rows of the table, without the image's name


def write_images(
    kind: str,
    config: ParticlesConfig | LatticeConfig,
    out: Path,
    *,
    count: int,
    damage: str | None = None,
    overwrite: bool = False,
) -> None:
    """Write images of materials and their truth into a folder.

    Args:
        kind: particles or lattice, as `config` is.
        config: of the collection.
        out: folder to write.
        count: number of images; those that a smaller number gives are the same.
        damage: name of a preset of `em_data.augment.degrade`: damaged images are written beside.
        overwrite: replace what this function has written at `out`.
    """
    weak = degradation(damage) if damage else None
    check_apart(out)
    begun = out.with_name(f".{out.name}.unfinished")
    check_replaceable(out, NOTE, "folder of synthetic images", overwrite=overwrite)
    # What was left by a process that was killed is of no use.
    check_replaceable(begun, NOTE, "folder of synthetic images", overwrite=True)
    shutil.rmtree(begun, ignore_errors=True)
    draw = {"particles": _particles, "lattice": _lattice}[kind]
    folders = ["images", "instances", *["damaged"] * bool(weak)]
    tables = ["positions.csv"] * (kind == "lattice")
    note = {"kind": kind, "count": count, "damage": damage, "config": dataclasses.asdict(config)}
    begun.mkdir(parents=True)
    try:
        text = json.dumps(note | {"files": [*folders, *tables]}, indent=2)
        (begun / NOTE).write_text(text + "\n")
        _write_all(
            begun, folders, kind, lambda index: draw(config, index), count, weak, config.seed
        )
        put_in_place(begun, out)
    finally:
        shutil.rmtree(begun, ignore_errors=True)
    for name in (*folders, *tables):
        say(f"wrote   {out / name}")
    size = ",".join([f"{config.pixel_nm:g}"] * 3)
    say(f"address with the pixel size: {shlex.quote(f'images:{out}/images?voxel_nm={size}')}")


def _write_all(
    folder: Path,
    folders: list[str],
    kind: str,
    draw: Callable[[int], Sample],
    count: int,
    weak: DegradeConfig | None,
    seed: int,
) -> None:
    """Write all images, and the rows of each."""
    for name in folders:
        (folder / name).mkdir()
    digits = max(4, len(str(count - 1)))
    with ExitStack() as stack:
        bar = stack.enter_context(meter("synth", count))
        table = None
        if kind == "lattice":
            file = stack.enter_context((folder / "positions.csv").open("w", newline=""))
            table = csv.writer(file)
            table.writerow(COLUMNS)
        for index in range(count):
            name, sample = f"{kind}-{index:0{digits}d}", draw(index)
            pictures = {"images": _bytes(sample.image), "instances": sample.instances}
            if weak:
                image = torch.from_numpy(sample.image)[None, None]  # (1, 1, Y, X)
                worse = degrade(image, [Key(0, index)], weak, seed=seed)[0, 0]
                pictures["damaged"] = _bytes(worse.numpy())
            for part, pixels in pictures.items():
                Image.fromarray(pixels).save(folder / part / f"{name}.png")
            if table:
                table.writerows((name, *row) for row in sample.positions)
            bar.update(index + 1, name)


def _particles(config: Any, index: int) -> Sample:
    found = render_particles(config, index)
    return Sample(found.image, found.instances)


def _lattice(config: Any, index: int) -> Sample:
    found = render_lattice(config, index)
    places = zip(found.positions_px.tolist(), found.sublattices.tolist(), strict=True)
    rows = [
        (number, f"{y:.3f}", f"{x:.3f}", sublattice)
        for number, ((y, x), sublattice) in enumerate(places, 1)
    ]
    return Sample(found.image, found.columns, rows)


def _bytes(image: np.ndarray) -> np.ndarray:
    return np.rint(image * 255).astype(np.uint8)
