"""Synthetic electron microscopy of nerve tissue, with truth: grey values, classes, instances.

`render(config)` is a pure function: a box has the same bits whether it is rendered alone or cut
out of a larger render, so a volume of any size is written block by block. `tissue.py` says what
is where, in nanometres; here stands what a microscope makes of it: blur, contrast that drifts
from slice to slice, noise, and damaged slices.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from em_data.synthetic.config import SyntheticConfig, check_triple
from em_data.synthetic.hashing import (
    Float,
    blur_valid,
    gaussian_kernel,
    hash_normal,
    hash_uniform,
    smooth_noise,
)
from em_data.synthetic.tissue import CLASSES, build_tissue

__all__ = ["CLASSES", "SyntheticBlock", "SyntheticConfig", "render"]

SLAB_VOXELS = 2_000_000  # rendered at a time, with about 120 bytes each in between
SHADING_PITCH_NM = 1500.0
MISSING, SHIFTED, DARK = 1, 2, 3


@dataclass(frozen=True, kw_only=True)
class SyntheticBlock:
    """A rendered box and its truth, all (Z, Y, X)."""

    raw: NDArray[np.uint8]
    """Grey values; membranes are dark."""
    classes: NDArray[np.uint8]
    """Index into `CLASSES`."""
    instances: NDArray[np.uint32]
    """Number of the cell, unique in the volume. Every voxel belongs to a cell, there is no 0: each
    membrane belongs to the cell it encloses, and cells meet in the middle of the gap. A thin cell can
    come in several pieces, where a thicker one lies over its middle."""


def render(
    config: SyntheticConfig,
    origin_vx: Sequence[int] = (0, 0, 0),
    size_vx: Sequence[int] | None = None,
) -> SyntheticBlock:
    """Render a box of the volume; without `size_vx` up to the volume's end.

    Needs memory for the box and, for what is rendered at a time, about 250 MB (more if one slice
    has more than 2 million voxels). A shifted slice shows what lies beside it, and so does its
    truth; truth is kept where a slice is missing.

    >>> config = SyntheticConfig(shape_vx=(8, 64, 64))
    >>> whole = render(config)
    >>> part = render(config, origin_vx=(2, 10, 20), size_vx=(3, 30, 40))
    >>> bool((part.raw == whole.raw[2:5, 10:40, 20:60]).all())
    True
    """
    check_triple("origin_vx", origin_vx, whole=True, least=0)
    if size_vx is None:
        rest = zip(config.shape_vx, origin_vx, strict=True)
        size_vx = [max(1, end - start) for end, start in rest]  # 1 lets the check below refuse it
    check_triple("size_vx", size_vx, whole=True, least=1)
    for axis, start, length, end in zip("zyx", origin_vx, size_vx, config.shape_vx, strict=True):
        if start + length > end:
            raise ValueError(
                f"box from {tuple(origin_vx)} of size {tuple(size_vx)} exceeds the volume "
                f"{tuple(config.shape_vx)} on {axis}; choose a smaller box or a larger shape_vx"
            )

    size = (int(size_vx[0]), int(size_vx[1]), int(size_vx[2]))
    block = SyntheticBlock(
        raw=np.empty(size, np.uint8),
        classes=np.empty(size, np.uint8),
        instances=np.empty(size, np.uint32),
    )
    kernels = [gaussian_kernel(config.blur_nm / voxel) for voxel in config.voxel_size_nm[1:]]
    halo_y, halo_x = (len(kernel) // 2 for kernel in kernels)
    z0, y0, x0 = (int(start) for start in origin_vx)
    for start, stop, (shift_y, shift_x) in _slabs(config, z0, size):
        box = (z0 + start, y0 + shift_y - halo_y, x0 + shift_x - halo_x)
        tissue = build_tissue(
            config, box, (stop - start, size[1] + 2 * halo_y, size[2] + 2 * halo_x)
        )
        inner = (slice(None), slice(halo_y, halo_y + size[1]), slice(halo_x, halo_x + size[2]))
        block.classes[start:stop] = tissue.classes[inner]
        block.instances[start:stop] = tissue.instances[inner]
        block.raw[start:stop] = _image(config, tissue.grey, kernels, (z0 + start, y0, x0))
    return block


def _slabs(
    config: SyntheticConfig, z0: int, size: tuple[int, int, int]
) -> Iterator[tuple[int, int, tuple[int, int]]]:
    """Runs of slices with one in-plane shift: (first, end) in the box, (y, x) shift in voxels."""
    slices = np.arange(z0, z0 + size[0])
    reach_nm = 60 + 90 * hash_uniform(config.seed, "shift", slices[:, None], [0, 1])
    sign = np.where(hash_uniform(config.seed, "shift sign", slices[:, None], [0, 1]) < 0.5, -1, 1)
    shifts = np.rint(sign * reach_nm / np.array(config.voxel_size_nm[1:])).astype(int)
    shifts[_defects(config, slices) != SHIFTED] = 0
    most = max(1, SLAB_VOXELS // (size[1] * size[2]))
    for shift, group in groupby(range(size[0]), key=lambda z: tuple(shifts[z].tolist())):
        run = list(group)
        for start in range(run[0], run[-1] + 1, most):
            yield start, min(start + most, run[-1] + 1), shift


def _defects(config: SyntheticConfig, slices: NDArray[np.int64]) -> NDArray[np.int64]:
    """What is wrong with each slice: 0, MISSING, SHIFTED or DARK."""
    damaged = hash_uniform(config.seed, "damaged", slices) < config.defects
    kind = 1 + (3 * hash_uniform(config.seed, "damage", slices)).astype(np.int64)
    return np.where(damaged, kind, 0)


def _image(
    config: SyntheticConfig,
    grey: Float,  # (Z, Y + 2 halo, X + 2 halo)
    kernels: Sequence[Float],
    origin_vx: tuple[int, int, int],
) -> NDArray[np.uint8]:  # (Z, Y, X)
    """What the camera records of ideal grey values in 0 to 1."""
    seed = config.seed
    kernel_y, kernel_x = kernels
    size = (
        len(grey),
        grey.shape[1] - len(kernel_y) + 1,
        grey.shape[2] - len(kernel_x) + 1,
    )
    slices = np.arange(origin_vx[0], origin_vx[0] + size[0])
    y = np.arange(origin_vx[1], origin_vx[1] + size[1])[:, None]
    x = np.arange(origin_vx[2], origin_vx[2] + size[2])
    drift = np.float32(config.contrast_drift)
    brightness = drift * hash_normal(seed, "brightness", slices)
    contrast = 1 + 2 * drift * hash_normal(seed, "contrast", slices)
    shading = smooth_noise(
        seed,
        "shading",
        origin_vx=origin_vx,
        size_vx=size,
        voxel_size_nm=config.voxel_size_nm,
        pitch_nm=SHADING_PITCH_NM,
    )
    defects = _defects(config, slices)

    raw = np.empty(size, np.uint8)
    for z, plane in enumerate(grey):
        if defects[z] == MISSING:
            raw[z] = 0
            continue
        image = blur_valid(blur_valid(plane, kernel_y, 0), kernel_x, 1)
        image -= np.float32(0.5)
        image *= contrast[z]
        image += np.float32(0.5) + brightness[z]
        image += shading[z] * (drift / 2)
        if defects[z] == DARK:
            image *= np.float32(0.4)
        noise = hash_normal(seed, "noise", slices[z], y, x)
        noise *= np.float32(config.noise)
        image += noise
        image *= np.float32(255)
        raw[z] = np.clip(image, 0, 255, out=image)
    return raw
