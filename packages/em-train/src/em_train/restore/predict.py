"""`emtrain predict` for runs of restore: the repaired volume, with the type and grey values of what was given.

Tiles carry all that the network looks at around them, so they meet without a seam, and no byte
depends on blocks or processes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from em_data import Box, GreyRange, Volume, interpolated
from em_data.binning import as_stored
from em_data.geometry import int3
from em_data.writer.tiling import Model, TileGrid, predict_block

from em_train.engine.grey import choose
from em_train.engine.reading import SAME_SCALE, open_raw
from em_train.predict.images import Pictures
from em_train.predict.plan import Prediction, check_outputs, frame, turned, turns
from em_train.predict.tiles import grid_of, tile_model, tile_side
from em_train.restore.run import RestoreRun, open_run

OPTIONS = ("strength", "uncertainty")  # of `emtrain predict` that only these runs know
LOOKED_AT, LOOKED_AT_VX = 4, 512  # slices, and the side of their middle, that the mean is taken of


def plan(
    run: str,
    address: str,
    outputs: Sequence[str],
    tta: bool,
    grey: str,
    *,
    strength: float = 1.0,
    uncertainty: bool = False,
) -> Prediction:
    """The repaired volume, in grey values of the volume; the output is `restored`.

    Args:
        run: folder of the run.
        address: the volume; of super-resolution the coarse one.
        outputs: `restored`.
        tta: the mean over the eight turns of every tile.
        grey: which grey values are 0 and 1 for the network.
        strength: how far from the volume (0) to the repaired one (1).
        uncertainty: a second channel, the standard deviation over the eight turns.
    """
    stored = open_for(run, outputs)
    given = open_at_scale(stored, address)
    return plan_of(
        stored, Path(run), given, tta=tta, grey=grey, strength=strength, uncertainty=uncertainty
    )


def pictures(
    run: str,
    outputs: Sequence[str],
    tta: bool,
    grey: str,
    *,
    strength: float = 1.0,
    uncertainty: bool = False,
) -> Pictures:
    """The repaired images of a collection, one at a time."""
    stored = open_for(run, outputs)
    folders = ("restored", "uncertainty")[: 1 + uncertainty]

    def make(volume: Volume) -> Mapping[str, np.ndarray]:
        own = plan_of(
            stored,
            Path(run),
            replace(volume, nan=stored.data.nan),
            tta=tta,
            grey=grey,
            strength=strength,
            uncertainty=uncertainty,
        )
        written = own.compute(Box((0, 0, 0), own.images[0].shape_vx))[""]
        channels = written if uncertainty else written[None]
        return {name: one[0] for name, one in zip(folders, channels, strict=True)}

    return Pictures(make=make, folders=folders)


def open_for(run: str, outputs: Sequence[str]) -> RestoreRun:
    """A run whose answer does not depend on the tiles."""
    check_outputs(outputs, "restore")
    stored = open_run(Path(run))
    config: Any = stored.network.config
    if not config.local:
        raise ValueError(
            f"{run} was trained with group norm or squeeze-and-excitation: what it says depends on the "
            "tile, so there is no one restoration of a volume; train with norm=batch"
        )
    return stored


def plan_of(
    stored: RestoreRun,
    run: Path,
    given: Volume,
    *,
    tta: bool,
    grey: str,
    strength: float,
    uncertainty: bool,
) -> Prediction:
    """The restoration of an open volume by an open run."""
    network = stored.network
    chosen = choose(run, given, grey)
    volume = interpolated(given, (1, stored.factor, stored.factor))
    grid = grid_of(network, tile_side(network, volume.shape))
    once = tile_model(network, chosen.range, stored.device, stored.how.precision, clip=False)
    model = turned(once) if tta else once
    drift = drift_of(volume, once, grid, chosen.range)
    channels = ("restored", "uncertainty") if uncertainty else ()
    image = replace(frame(volume), dtype=str(volume.dtype), channels=channels)

    def compute(box: Box) -> Mapping[str, np.ndarray]:
        raw = volume.read(box)
        unit = chosen.range.unit(raw, clip=False)
        found = predict_block(volume, model, grid, box)[0] - drift  # (z, y, x)
        found = unit + strength * (found - unit)
        result = back(found, chosen.range, volume)
        if not uncertainty:
            return {"": result}
        deviation = strength * predict_block(volume, spread(once), grid, box)[0]
        width = chosen.range.high - chosen.range.low
        return {"": np.stack([result, typed(deviation * width, volume)])}

    return Prediction(
        images=(image,),
        grid=grid,
        channels=1 + uncertainty,
        raw_itemsize=volume.dtype.itemsize,
        compute=compute,
        grey=chosen,
    )


def open_at_scale(stored: RestoreRun, address: str) -> Volume:
    """A volume at the scale that the run repairs: of super-resolution, the coarser one."""
    size, factor = stored.voxel_size_nm, stored.factor
    wanted = size and (size[0], size[1] * factor, size[2] * factor)
    volume = open_raw(address, stored.data, wanted or stored.data.at_nm)
    volume.check_one_channel()
    own = volume.voxel_size_nm
    if factor > 1 and wanted and own:
        ratio = max(max(a / b, b / a) for a, b in zip(own[1:], wanted[1:], strict=True))
        if ratio > SAME_SCALE:
            levels = ", ".join(
                " × ".join(f"{s:g}" for s in level.voxel_size_nm)
                for level in volume.levels
                if level.voxel_size_nm
            )
            raise ValueError(
                f"{address} has pixels of {own[1]:g} × {own[2]:g} nm"
                + (f" (levels: {levels})" if len(volume.levels) > 1 else "")
                + f", and the run sharpens {wanted[1]:g} × {wanted[2]:g} nm by {factor}; give a volume "
                "of that scale, or train for this one"
            )
    return volume


def back(unit: np.ndarray, grey: GreyRange, volume: Volume) -> np.ndarray:
    """Grey values as the volume stores them."""
    return typed(unit * (grey.high - grey.low) + grey.low, volume)


def typed(values: np.ndarray, volume: Volume) -> np.ndarray:
    """Values in the type of a volume, rounded and cut off where it ends."""
    if volume.dtype.kind in "iu":
        limits = np.iinfo(volume.dtype)
        values = values.clip(limits.min, limits.max)
    return as_stored(values, volume.dtype)


def spread(model: Model) -> Model:
    """The standard deviation of what a model says about tiles turned and mirrored in all eight ways."""

    def tile(raw: np.ndarray) -> np.ndarray:
        total: Any = 0.0
        squares: Any = 0.0
        for found in turns(model, raw):
            wide = found.astype(np.float64)
            total, squares = total + wide, squares + wide**2
        deviation = np.sqrt(np.maximum(squares / 8 - (total / 8) ** 2, 0))
        return deviation.astype(np.float32)

    return tile


def drift_of(volume: Volume, model: Model, grid: TileGrid, grey: GreyRange) -> float:
    """How much brighter the network makes a volume, measured on the middle of a few slices.

    It is taken off, so that the mean stays; the same boxes whatever is predicted.
    """
    size = int3([1, *(min(n, LOOKED_AT_VX) for n in volume.shape[1:])])
    count = min(LOOKED_AT, volume.shape[0])
    origins = (
        int3(
            [
                int((i + 0.5) * volume.shape[0] / count),
                *((n - s) // 2 for n, s in zip(volume.shape[1:], size[1:], strict=True)),
            ]
        )
        for i in range(count)
    )
    boxes = [Box(origin, size) for origin in origins]
    differences = [
        predict_block(volume, model, grid, box)[0] - grey.unit(volume.read(box), clip=False)
        for box in boxes
    ]
    return float(np.mean([one.mean(dtype=np.float64) for one in differences]))
