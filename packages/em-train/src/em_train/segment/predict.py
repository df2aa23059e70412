"""`emtrain predict` for runs of segment: classes, probabilities or instances, of volumes or images.

Tiles carry all that the network looks at around them, so they meet without a seam, and no byte
depends on blocks or processes. The thresholds are those that the run chose on its held-out slices.
Instances are those of slices: each is looked at as a whole, and its numbers begin at 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from em_data import Box, Images, Volume
from em_data.formats.pictures import decoded
from em_data.geometry import shifted
from em_data.writer.tiling import as_uint8, predict_block

from em_train.engine.grey import choose
from em_train.engine.reading import open_raw
from em_train.look.histogram import save_histogram
from em_train.look.pictures import palette
from em_train.predict.images import Pictures, picture_of
from em_train.predict.plan import Prediction, check_outputs, class_images, frame, turned
from em_train.predict.tiles import grid_of, tile_model, tile_side
from em_train.segment.loss import probabilities
from em_train.segment.metrics import threshold_level
from em_train.segment.parting import Parting, parting_of
from em_train.segment.run import StoredRun, open_run
from em_train.segment.table import Instance, measure, write_table

OPTIONS = ("instances", "neck", "least_px")  # of `emtrain predict` that only these runs know


def plan(
    run: str,
    address: str,
    outputs: Sequence[str],
    tta: bool,
    grey: str,
    instances: str | None = None,
    neck: float | None = None,
    least_px: int | None = None,
) -> Prediction:
    """What a run says about a volume, at the level that the run was trained on.

    Outputs are `classes` (0 for none; where several are found, the last), `probabilities`, and
    `instances` of a class or between one, see `parting_of`.
    """
    stored = open_for(run, outputs)
    parting = None
    if "instances" in outputs:
        parting = parting_of(instances, neck, stored.names, stored.borders, least_px or 1)
    else:
        check_unused(instances=instances, neck=neck, least_px=least_px)
    volume = open_raw(address, stored.data, stored.data.at_nm)
    return plan_of(stored, Path(run), volume, outputs, tta=tta, grey=grey, parting=parting)


def check_unused(**options: Any) -> None:
    """Refuse options of instances where none are written."""
    given = [f"--{name.replace('_', '-')}" for name, value in options.items() if value is not None]
    if given:
        raise ValueError(
            f"{' and '.join(given)} would change nothing without --output instances; add it, or leave "
            "them out"
        )


def pictures(
    run: str,
    outputs: Sequence[str],
    tta: bool,
    grey: str,
    instances: str | None = None,
    neck: float | None = None,
    least_px: int | None = None,
) -> Pictures:
    """What a run says about images of a collection, one at a time; with a table of instances."""
    stored = open_for(run, outputs)
    parting = None
    if "instances" in outputs:
        parting = parting_of(instances, neck, stored.names, stored.borders, least_px or 1)
    else:
        check_unused(instances=instances, neck=neck, least_px=least_px)
    colours = np.concatenate([np.zeros((1, 3), np.uint8), palette(len(stored.names))])

    def make(volume: Volume) -> Mapping[str, np.ndarray]:
        volume = replace(volume, nan=stored.data.nan)
        own = plan_of(stored, Path(run), volume, outputs, tta=tta, grey=grey, parting=parting)
        written = own.compute(Box((0, 0, 0), volume.shape))
        found = {}
        for image in own.images:
            values = written[image.path]
            if image.channels:
                for name, one in zip(stored.names, values, strict=True):
                    found[f"probabilities/{name}"] = one[0]
            elif image.classes:
                found["classes"] = values[0]
            else:
                ids = values[0]
                found["instances"] = ids if ids.max() > 0xFFFF else ids.astype(np.uint16)
        return found

    folders = [one for one in ("classes", "instances") if one in outputs]
    if "probabilities" in outputs:
        folders += [f"probabilities/{name}" for name in stored.names]
    return Pictures(
        make=make,
        folders=tuple(folders),
        palettes={"classes": colours},
        finish=tabulate if parting else None,
        files=("instances.csv", "instances.png") if parting else (),
    )


def tabulate(folder: Path, images: Images) -> None:
    """Write the table of the instances in a folder of their pictures, and a histogram of their sizes."""
    rows: list[Instance] = []
    for name in (images.name(number) for number in range(len(images))):
        path = picture_of(folder / "instances", name)
        if path is not None:  # an image that cannot be read has none
            rows += measure(name, decoded(path, is_label=True), images.voxel_size_nm)
    write_table(rows, folder / "instances.csv")
    unit = "nm" if images.voxel_size_nm else "px"
    sizes = [one.diameter_nm or one.diameter_px for one in rows if not one.touches_border]
    label = f"diameter of the disc of the same area ({unit}); those at the border are left out"
    save_histogram(sizes, label, folder / "instances.png")


def open_for(run: str, outputs: Sequence[str]) -> StoredRun:
    """A run that can say what is asked of it, whatever the tiles."""
    check_outputs(outputs, "segment")
    stored = open_run(Path(run))
    if not stored.network.config.local:
        raise ValueError(
            f"{run} was trained with group norm or squeeze-and-excitation: what it says depends on the "
            "tile, so there is no one prediction of a volume; train with model.unet.norm=batch"
        )
    return stored


def plan_of(
    stored: StoredRun,
    run: Path,
    volume: Volume,
    outputs: Sequence[str],
    *,
    tta: bool,
    grey: str,
    parting: Parting | None,
) -> Prediction:
    """What an open run says about an open volume."""
    images = class_images(volume, outputs, stored.names, rest=True)
    if parting:
        beside = "instances" if images else None
        numbers = replace(frame(volume), dtype="uint32", label=beside, pool="pick")
        images = (*images, numbers)
    grid = grid_of(stored.network, tile_side(stored.network, volume.shape))
    chosen = choose(run, volume, grey)
    logits = tile_model(stored.network, chosen.range, stored.device, stored.precision)

    def tile(raw: np.ndarray) -> np.ndarray:
        return probabilities(torch.from_numpy(logits(raw)), stored.loss, dim=1).numpy()

    model = turned(tile) if tta else tile

    levels = np.array([threshold_level(one) for one in stored.thresholds])[:, None, None]

    def compute(box: Box) -> Mapping[str, np.ndarray]:
        # Instances are known of whole slices only.
        seen = slices_at(box, volume) if parting else box
        found = as_uint8(predict_block(volume, model, grid, seen))  # (C, z, y, x)
        part: Any = (..., *shifted(box, seen.origin_vx, -1).slices)
        written = {}
        for image in images:
            if image.channels:
                written[image.path] = found[part]
            elif image.classes:
                written[image.path] = class_map(found[part], stored.thresholds)
            else:
                assert parting is not None
                slices = [parting(found[:, z] >= levels) for z in range(found.shape[1])]
                written[image.path] = np.stack(slices)[part]
        return written

    return Prediction(
        images=images,
        grid=grid,
        channels=len(stored.names),
        raw_itemsize=volume.dtype.itemsize,
        compute=compute,
        grey=chosen,
        whole_slices=parting is not None,
    )


def slices_at(box: Box, volume: Volume) -> Box:
    """The whole slices of a box."""
    return Box((box.origin_vx[0], 0, 0), (box.size_vx[0], *volume.shape[1:]))


def class_map(probability: np.ndarray, thresholds: tuple[float, ...]) -> np.ndarray:
    """The last class at or above its threshold, counted from 1: (C, z, y, x) uint8 -> (z, y, x).

    >>> class_map(np.array([[[[9, 200]]], [[[0, 130]]]], np.uint8), (0.5, 0.5)).tolist()
    [[[0, 2]]]
    """
    classes = np.zeros(probability.shape[1:], np.uint8)
    for number, (values, threshold) in enumerate(zip(probability, thresholds, strict=True), 1):
        classes[values >= threshold_level(threshold)] = number
    return classes
