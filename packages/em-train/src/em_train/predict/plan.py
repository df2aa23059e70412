"""The plan of a prediction: images, tiles, and the function from a box to its voxels."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from em_data import ImageConfig, Volume
from em_data.writer.store import CHUNK_VX
from em_data.writer.tiling import Model, TileGrid

from em_train.catalogue import RECIPES
from em_train.engine.grey import Grey
from em_train.look.pictures import palette
from em_train.predict.block_job import BlockFunction


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What a run says about a volume, and what it takes to ask."""

    images: tuple[ImageConfig, ...]
    """What is written."""
    grid: TileGrid
    """How the volume is cut for the network, in voxels of the images."""
    channels: int
    """Values that a block holds for each of its voxels before they are stored."""
    raw_itemsize: int
    """Bytes of the volume behind one voxel of the images."""
    compute: BlockFunction
    """From a box to the voxels of every image there."""
    grey: Grey | None = None
    """The values that are 0 and 1 for the network, where it is given them so."""
    whole_slices: bool = False
    """Whether `compute` looks at whole slices, so that blocks of them cost least."""


def check_outputs(outputs: Sequence[str], command: str) -> None:
    """Refuse outputs that runs of a recipe do not have."""
    known = RECIPES[command].outputs
    if not outputs or not set(outputs) <= set(known):
        raise ValueError(
            f"--output is {','.join(outputs)!r}; of a {command} run wanted {' or '.join(known)}"
            + (", or several as classes,probabilities" if "classes" in known else "")
        )


def class_images(
    volume: Volume, outputs: Sequence[str], names: Sequence[str], *, rest: bool
) -> tuple[ImageConfig, ...]:
    """A channel of bytes per class, or a map of classes, or the map as a label image beside them.

    With `rest` value 0 of the map is none of the classes, and they are counted from 1.
    """
    shades = tuple((int(r), int(g), int(b)) for r, g, b in palette(len(names)))
    image = frame(volume)
    images = []
    if "probabilities" in outputs:
        images.append(replace(image, channels=tuple(names), colours=shades))
    if "classes" in outputs:
        classes = (("rest",) if rest else ()) + tuple(names)
        if len(classes) > 256:
            raise ValueError(f"{len(classes)} classes do not fit into bytes; ask for probabilities")
        black = ((0, 0, 0),) * rest
        label = "classes" if images else None
        images.append(
            replace(image, label=label, classes=classes, colours=black + shades, pool="mode")
        )
    return tuple(images)


def frame(volume: Volume) -> ImageConfig:
    """An image of bytes with the voxels of a volume."""
    return ImageConfig(
        shape_vx=volume.shape,
        dtype="uint8",
        voxel_size_nm=volume.voxel_size_nm,
        origin_nm=volume.origin_nm,
        chunk_vx=CHUNK_VX,
    )


def turned(model: Model) -> Model:
    """The mean of what a model says about tiles turned and mirrored in all eight ways."""

    def tile(raw: np.ndarray) -> np.ndarray:
        total: np.ndarray | None = None
        for found in turns(model, raw):
            total = found.astype(np.float32) if total is None else np.add(total, found, out=total)
        assert total is not None
        total /= 8
        return total

    return tile


def turns(model: Model, raw: np.ndarray) -> Iterator[np.ndarray]:
    """What a model says about tiles turned and mirrored in all eight ways, turned back.

    One after the other, so that it takes no more memory than two of them.
    """
    for quarters, mirrored in itertools.product(range(4), (False, True)):
        seen = np.rot90(raw, quarters, (-2, -1))
        found = model(np.ascontiguousarray(seen[..., ::-1] if mirrored else seen))
        yield np.rot90(found[..., ::-1] if mirrored else found, -quarters, (-2, -1))
