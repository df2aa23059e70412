"""Whether codes depend on where a pixel lies in its crop: the same pixels seen through several crops.

crops of a volume -> codes -> position leak, shift κ
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from em_data import Box, CubeConfig, GreyRange, Key, PlaceSampler, Volume
from torch import Tensor

from em_train.dense.codes import crop_codes
from em_train.judge.codes import contingency, entropy, kappa, mutual_information

MOVED = 4  # of the width of a crop's codes, one part is how far the pictured crops lie apart
BINS = 6  # along each side of the map of a crop's codes
ROLLS = 4  # random rolls of every map that chance is measured by
PLANES = 8  # slices that a small volume's crops lie in, so that they overlap


def random_boxes(
    volume: Volume, size_vx: int, count: int, seed: int, pitch: int, *, depth: int = 1
) -> list[Box]:
    """Crops of `depth` slices at random places; none where the volume has fewer slices."""
    if volume.shape[0] < depth:
        return []
    crop = CubeConfig(size_vx=(depth, size_vx, size_vx))
    sampler = PlaceSampler([volume.shape], crop, seed, sources=[volume.source])
    return [sampler(Key(0, number)).box for number in range(count)]


def overlapping_boxes(volume: Volume, size_vx: int, count: int, seed: int, pitch: int) -> list[Box]:
    """Crops of few slices, those of a slice a multiple of the pitch apart, so that codes coincide."""
    rng = np.random.default_rng(seed)
    depth, *room = (n - s + 1 for n, s in zip(volume.shape, (1, size_vx, size_vx), strict=True))
    if min(room) < 1:
        random_boxes(volume, size_vx, 1, seed, pitch)  # refuses it, with the reason
    planes = np.unique(np.linspace(0, depth - 1, min(depth, PLANES) + 2).round()[1:-1].astype(int))
    boxes = []
    for z in planes:
        phase = (
            rng.integers(0, pitch, 2) % room
        )  # pixels between codes are not always the same ones
        places = [1 + (n - 1 - p) // pitch for n, p in zip(room, phase, strict=True)]
        for y, x in rng.integers(0, places, (-(-count // len(planes)), 2)) * pitch + phase:
            boxes.append(Box((int(z), int(y), int(x)), (1, size_vx, size_vx)))
    return boxes


def read_crops(volume: Volume, grey: GreyRange, boxes: Sequence[Box]) -> Tensor:
    """The voxels of boxes of one size, in [0, 1]: (N, Z, Y, X)."""
    return torch.from_numpy(np.stack([grey.unit(volume.read(box)) for box in boxes]))


def position_leak(codes: Tensor, *, seed: int = 0) -> float:
    """[I(code; place in the crop) − I by chance] / H(code) of maps of codes (N, g, g).

    Chance keeps what a map looks like and takes away where it lies: each map is rolled by its own
    random offset. A code that is the same function of position in every crop has nearly 1.
    """
    n, height, width = codes.shape
    rng = torch.Generator().manual_seed(seed)
    bins = _bins(height, width).expand(n, -1, -1)
    rows, columns = torch.arange(height), torch.arange(width)
    by_chance = []
    for _ in range(ROLLS):
        down = torch.randint(height, (n, 1), generator=rng)
        along = torch.randint(width, (n, 1), generator=rng)
        y, x = (rows + down) % height, (columns + along) % width
        rolled = codes[torch.arange(n)[:, None, None], y[:, :, None], x[:, None, :]]
        by_chance.append(_information(rolled, bins))
    return _share(_information(codes, bins) - sum(by_chance) / ROLLS, codes)


def position_leak_of_places(
    codes: Tensor, boxes: Sequence[Box], pitch: int, *, seed: int = 0
) -> float:
    """`position_leak` where crops are large against the volume: place in the volume is known as well.

    Chance exchanges the codes that the same pixel has in different crops. An encoder that gives it
    the same code everywhere has 0, whatever lies where in the volume. NaN where the crops have so
    little room that all of them lie at about the same place.
    """
    n, height, width = codes.shape
    origins = torch.tensor([box.origin_vx for box in boxes])  # (N, 3)
    moved = (origins.amax(0) - origins.amin(0))[1:]
    if moved.min() < pitch * min(height, width) / BINS:
        return math.nan
    y, x = (
        origins[:, axis, None] + torch.arange(size) * pitch
        for axis, size in ((1, height), (2, width))
    )
    side = int(max(y.max(), x.max())) + 1
    pixel = ((origins[:, 0, None, None] * side + y[:, :, None]) * side + x[:, None, :]).flatten()
    codes, bins = codes.flatten(), _bins(height, width).repeat(n, 1, 1).flatten()

    shuffled = torch.randperm(len(pixel), generator=torch.Generator().manual_seed(seed))
    order = shuffled[pixel[shuffled].argsort(stable=True)]  # by pixel, its crops in random order
    _, count = pixel[order].unique_consecutive(return_counts=True)
    last = count.cumsum(0) - 1
    following = torch.arange(1, len(pixel) + 1)
    following[last] = last - count + 1  # the last crop of a pixel takes the code of its first
    seen_twice = (count > 1).repeat_interleave(count)
    own, other = codes[order][seen_twice], codes[order][following][seen_twice]
    where = bins[order][seen_twice]
    return _share(_information(own, where) - _information(other, where), own)


def shift_kappa(
    encoder: Any,
    volume: Volume,
    grey: GreyRange,
    crop_vx: int,
    *,
    pairs: int,
    dense: bool,
    seed: int = 0,
) -> float:
    """Cohen's κ of the codes that the same pixels have in two crops.

    The crops lie a multiple of the pitch apart, or, with a code for every pixel, an odd number of
    pixels. NaN where the volume has no room to move a crop, or a crop has a single code.
    """
    geometry = encoder.geometry
    step = 1 if dense else geometry.pitch
    room = min(volume.shape[1:]) - crop_vx
    reach = min(room // step, crop_vx // 3 // step, geometry.codes(crop_vx, step) - 1)
    if reach < 1:
        return math.nan
    size = crop_vx + reach * step
    boxes = random_boxes(volume, size, pairs, seed + 2, step)
    windows = read_crops(volume, grey, boxes)[:, 0]  # (N, S, S)
    rng = np.random.default_rng(seed)
    moves = rng.integers(0, reach + 1, (pairs, 2, 2))  # (N, which crop, axis)
    if dense:  # an odd distance along both axes
        moves[:, 1] = np.where((moves[:, 1] - moves[:, 0]) % 2, moves[:, 1], moves[:, 1] ^ 1)
        moves[:, 1] = np.where(moves[:, 1] > reach, moves[:, 1] - 2, moves[:, 1])
    crops = [
        torch.stack(
            [
                window[y : y + crop_vx, x : x + crop_vx]
                for window, (y, x) in zip(windows, moves[:, which] * step, strict=True)
            ]
        )
        for which in range(2)
    ]
    first, second = (crop_codes(encoder, one, dense=dense) for one in crops)
    seen: list[tuple[Tensor, Tensor]] = []
    for a, b, (at_a, at_b) in zip(first, second, moves, strict=True):
        down, along = (at_b - at_a).tolist()
        seen.append((_common(a, down, along).flatten(), _common(b, -down, -along).flatten()))
    ones, others = (torch.cat(column) for column in zip(*seen, strict=True))
    return kappa(ones, others)


def _common(codes: Tensor, down: int, along: int) -> Tensor:
    """The part of a map that another one, moved by so many places, shows as well."""
    height, width = codes.shape
    rows = slice(max(0, down), height + min(0, down))
    return codes[rows, max(0, along) : width + min(0, along)]


def _bins(height: int, width: int) -> Tensor:
    """The number of the bin of every place of a map: (g, g)."""
    rows, columns = (torch.arange(n) * BINS // n for n in (height, width))
    return rows[:, None] * BINS + columns


def _information(codes: Tensor, bins: Tensor) -> float:
    return float(mutual_information(contingency(codes, bins)))


def _share(information: float, codes: Tensor) -> float:
    """Of the entropy of the codes; a single code says nothing, about position either."""
    whole = float(entropy(torch.bincount(codes.flatten()).double()))
    return information / whole if whole > 0 else 0.0


def crops_of_one_place(
    encoder: Any, volume: Volume, grey: GreyRange, *, crop_vx: int
) -> tuple[Tensor, list[Tensor]]:
    """The middle of the volume, and its codes through four crops that lie around it differently.

    Returns the raw pixels (Y, X) that all crops have codes for, and those codes, one per pixel.
    """
    lost, margin = encoder.geometry.trimmed, encoder.geometry.margin
    reach = min(min(volume.shape[1:]) - crop_vx, (crop_vx - lost) // MOVED)
    if reach < 1:
        raise ValueError(
            f"a crop of {crop_vx} px has no room to move in {volume.source} of {volume.shape} voxels; "
            "show the proof on a larger volume"
        )
    size, side = crop_vx + reach, crop_vx - lost - reach
    y0, x0 = ((n - size) // 2 for n in volume.shape[1:])
    plane = read_crops(volume, grey, [Box((volume.shape[0] // 2, y0, x0), (1, size, size))])[0, 0]
    odd = (reach - 1) // 2 | 1
    moves = [(0, 0), (reach, reach), (0, min(odd, reach)), (min(odd, reach), reach)]
    crops = torch.stack([plane[y : y + crop_vx, x : x + crop_vx] for y, x in moves])
    maps = crop_codes(encoder, crops, dense=True)
    shown = [
        codes[reach - y :, reach - x :][:side, :side]
        for codes, (y, x) in zip(maps, moves, strict=True)
    ]
    first = reach + margin
    return plane[first : first + side, first : first + side], shown
