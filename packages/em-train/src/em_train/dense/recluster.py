"""Classes read off a trained embedding: its clusters, instead of the prototypes that trained it.

Prototypes learn under losses that want every code predicted, so they leave out what is hard to predict,
and with it what makes rare structures different. The embedding knows more: its clusters say more about
the tissue than the codes it was trained with (docs/results/dense-ssl.md has the figures). What is thin and local
takes little room in the embedding, though, so first those of its directions are stretched that tell what
a place looks like to the filter bank.

    slices -> embedding, stretched -> k-means on the sphere, frequent classes preferred -> prototypes, offset
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from em_train.judge.baselines import kmeans
from em_train.judge.codes import contingency, matched_names

PLACES = 30_000  # that clusters are made of
STARTS = 10  # rounds of k-means before frequencies count
ROUNDS = 40


@torch.inference_mode()
def recluster(
    encoder: Any,
    images: Iterable[Tensor],
    *,
    frequency: float,
    seed: int,
    describe: Tensor | None = None,
    texture: float = 0.0,
) -> bool:
    """Give a cosine head the clusters of its embedding as prototypes, numbered like the old ones.

    False, and nothing is changed, where the embedding is the same almost everywhere.

    Args:
        encoder: gives `DenseCodes`; has `prototypes` (K, E) and `offset` (K,).
        images: (B, 1, Y, X) of the volumes it was trained on; as many are taken as are needed.
        frequency: how much the logarithm of the share of a class adds to its logits. 0: clusters of
            like size; higher: fewer classes that are really used, each of them larger.
        seed: of the start of k-means and of the places.
        describe: (F, E), how features of the filter bank are read from the embedding.
        texture: the share of these features in the squared distances of places, below 1.
    """
    encoder.eval()
    embedded, codes, there = [], [], 0
    for image in images:
        found = encoder(image)
        embedded.append(found.embedding.float().movedim(1, -1).flatten(0, 2).cpu())
        codes.append(found.logits.argmax(1).flatten().cpu())
        there += len(codes[-1])
        if there >= 2 * PLACES:
            break
    chosen = torch.randperm(there, generator=torch.Generator().manual_seed(seed))[:PLACES]
    points, before = torch.cat(embedded)[chosen], torch.cat(codes)[chosen]  # (N, E), (N,)

    by = torch.eye(points.shape[1])
    if describe is not None and texture:
        by = stretching(points, describe.float().cpu(), texture)
        points = F.normalize(points @ by, dim=1)

    k, sharpness = len(encoder.prototypes), encoder.config.sharpness
    try:
        centres = F.normalize(kmeans(points, k, seed=seed, rounds=STARTS), dim=1)
    except ValueError:  # fewer distinct places than classes
        return False
    offset, after = torch.zeros(k), before
    for _ in range(ROUNDS):
        after = (sharpness * points @ centres.T + offset).argmax(1)
        counts = torch.bincount(after, minlength=k)
        sums = torch.zeros_like(centres).index_add_(0, after, points)
        centres = torch.where(counts[:, None] > 0, F.normalize(sums, dim=1), centres)
        # A class that lost all of its places is as rare as one that has a single one.
        offset = frequency * (counts.clamp(min=1) / len(points)).log()
    number = matched_names(
        contingency(after, before, k=k, n=k)
    )  # of each cluster among the old codes
    encoder.stretch(by.to(encoder.prototypes))
    encoder.prototypes[number] = centres.to(encoder.prototypes)
    encoder.offset[number] = offset.to(encoder.offset)
    return True


def stretching(points: Tensor, describe: Tensor, share: float) -> Tensor:
    """The symmetric matrix (E, E) that adds distances of described features to those of points (N, E).

    Of the sum of squares between stretched points, `share` comes from the features (F, E) · points.
    """
    own, added = points.var(0).sum(), (points @ describe.T).var(0).sum()
    weight = share / (1 - share) * own / added.clamp_min(torch.finfo(added.dtype).tiny)
    values, directions = torch.linalg.eigh(weight * describe.T @ describe)
    return directions * (1 + values.clamp_min(0)).sqrt() @ directions.T
