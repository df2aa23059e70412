"""Samplers: pure functions `(seed, epoch, number) -> where`.

Randomness is counter-based (Philox), so a sample depends on nothing that was drawn before it: any
number of threads or ranks draws the same samples, and resuming needs no state beyond the step.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from em_data.errors import BoxError
from em_data.geometry import Box, Int3
from em_data.sampler.balance import Aim, find_aims
from em_data.sampler.crop import CropConfig, Sample
from em_data.sampler.places import (
    Anywhere,
    EachAnywhere,
    Everywhere,
    Mixture,
    Places,
    Region,
    origins,
)
from em_data.sampler.randomness import Key, Stream, random_at


def mix_places(
    boxes: Sequence[Sequence[Box]],
    config: CropConfig,
    *,
    weights: Sequence[float] | None = None,
    aims: Sequence[Aim] = (),
    threads: int = 2,
) -> Mixture[Places]:
    """What samples are drawn from: the aims with their shares, for the rest any origin in `boxes`.

    Weights say how often each volume is drawn, relative to the others; without them every place of
    every volume is as likely as every other.
    """
    if weights is not None and (
        len(weights) != len(boxes) or min(weights) < 0 or not 0 < sum(weights) < np.inf
    ):
        raise ValueError(
            f"weights are {tuple(weights)} for {len(boxes)} volumes; wanted one for each, 0 or more, "
            "not all 0"
        )
    kinds: list[Sequence[Places]] = []
    if aims:
        kinds += find_aims(aims, boxes, config.centre_vx, threads=threads)
    for aim, places in zip(aims, kinds, strict=True):
        if weights is not None and not any(
            weight and one.count for weight, one in zip(weights, places, strict=True)
        ):
            raise BoxError(
                f"{aim.name!r} is found in no volume that is drawn, the weights being "
                f"{tuple(weights)}; give one that has it a weight, or leave this class out"
            )
    shares = [aim.share for aim in aims]
    rest = 1 - sum(shares)
    if rest > 1e-9:
        if isinstance(boxes, Everywhere):
            kinds.append(EachAnywhere(boxes))
        else:
            kinds.append(tuple(Anywhere(tuple(own)) for own in boxes))
        shares.append(rest)
    return Mixture(tuple(kinds), tuple(shares), tuple(weights) if weights is not None else None)


class PlaceSampler:
    """Every allowed place is as likely as every other, independently of all samples before.

    Args:
        shapes: voxels of each volume; an array (V, 3) for collections (`Images.shapes`).
        config: what is cut out.
        seed: of the places.
        regions: where in each volume crops may lie; without them anywhere.
        weights: how often each volume is drawn; without them by the number of its places.
        aims: which share of the crops has what at its centre.
        sources: what messages call the volumes.

    >>> from em_data import CubeConfig
    >>> sampler = PlaceSampler([(40, 512, 512)], CubeConfig(size_vx=(5, 128, 128)), seed=0)
    >>> sampler(Key(epoch=0, number=0)).box.origin_vx
    (1, 96, 201)
    """

    def __init__(
        self,
        shapes: Sequence[Int3] | np.ndarray,
        config: CropConfig,
        seed: int,
        *,
        regions: Sequence[Region] | None = None,
        weights: Sequence[float] | None = None,
        aims: Sequence[Aim] = (),
        sources: Sequence[str] = (),
        threads: int = 2,
    ) -> None:
        self.config = config
        self.seed = seed
        self.boxes = origins(shapes, config.crop_vx, config.centre_vx, regions, sources)
        self.mixture = mix_places(self.boxes, config, weights=weights, aims=aims, threads=threads)

    def __call__(self, key: Key, attempt: int = 0) -> Sample:
        """The sample of `key`, or another for it where the ones before were refused."""
        volume, origin = self.mixture.draw(random_at(self.seed, Stream.PLACE, key, attempt))
        return Sample(volume, Box(origin, self.config.crop_vx), key)
