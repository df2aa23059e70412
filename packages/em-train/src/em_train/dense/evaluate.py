"""`emtrain evaluate` for runs of dense-ssl: its codes, its embedding, and the baselines side by side."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from em_data import Box, Volume, open_volume
from em_models import FilterBank, FilterBankConfig
from torch import Tensor

from em_train.dense.codes import grid_maps
from em_train.dense.data import DataConfig
from em_train.dense.report import hard_codes
from em_train.dense.run import open_run
from em_train.engine.grey import choose
from em_train.engine.progress import say
from em_train.engine.reading import open_at
from em_train.features.pooling import pooled
from em_train.judge.baselines import assign, fit_mixture, kmeans, smooth
from em_train.judge.ranges import fit_and_score, overlap
from em_train.judge.scores import CodeScore, ProbeScore, Row, print_rows, score_codes, score_probe
from em_train.judge.truth import Pixels, Protocol, Truth, choose_slices, open_truth, read_pixels
from em_train.look import pictures

OPTIONS = ("border_vx", "seed", "baselines")  # of the command, beside those of every recipe
SAMPLE = 20_000  # points that clusters are made of
ROUNDS = 50  # of k-means: more changes nothing that is scored
SMOOTHED_SIGMA = 2.0


class Labelled(NamedTuple):
    """A raw volume at the scale of the run, with the truth on its voxels."""

    raw: Volume
    truth: Truth


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """All rows of the table and how they came about."""

    rows: tuple[Row, ...]
    names: tuple[str, ...]
    protocol: dict[str, Any]
    panels: Sequence[tuple[str, np.ndarray]]
    """Raw, classes, classes named by their majority, and truth, of the middle scored slice."""

    def as_json(self) -> dict[str, Any]:
        """All of it for a file."""
        rows = [row.as_json() for row in self.rows]
        return {"protocol": self.protocol, "classes": list(self.names), "rows": rows}

    def show(self) -> None:
        """Print the table."""
        print_rows(self.rows, self.names)

    def save_picture(self, path: Path) -> None:
        """Write the panels as PNG."""
        pictures.save_row(pictures.enlarged(self.panels), path)


def evaluate(
    run: Path,
    fit: tuple[str, Sequence[str]],
    score: tuple[str, Sequence[str]] | None,
    protocol: Protocol,
    *,
    at_nm: tuple[float, float, float] | None = None,
    baselines: bool = True,
    grey: str = "auto",
) -> Evaluation:
    """Compare what a run learned with the truth.

    Args:
        run: folder of the run.
        fit: address of the raw volume and of its labels, for naming codes and training probes.
        score: the same for scoring, where that is another volume.
        protocol: which slices and pixels.
        at_nm: voxel size instead of that of the run.
        baselines: whether to make the baselines as well.
        grey: which grey values become 0 and 1, as `em_train.engine.grey.choose` takes it.
    """
    encoder, data = open_run(run)
    if at_nm is not None:
        data = dataclasses.replace(data, at_nm=at_nm)
    fitted = open_labelled(data, *fit)
    scored = open_labelled(data, *score) if score else fitted
    names = fitted.truth.names
    if names != scored.truth.names:
        raise ValueError(
            f"labels to fit are {', '.join(names)}, to score {', '.join(scored.truth.names)}; "
            "wanted the same classes in the same order"
        )
    border = max(protocol.border_vx, encoder.geometry.margin)
    to_fit, to_score = slices_of(fitted, scored, protocol)
    sides, ends = [], {}
    for part, side, planes in (("fit", fitted, to_fit), ("score", scored, to_score)):
        chosen = choose(run, side.raw, grey)
        ends[f"{part}_grey"] = chosen.ends
        pixels = read_pixels(side.raw, side.truth, chosen.range, planes, protocol, border)
        sides.append(pixels)
        count = int((pixels.classes >= 0).sum())
        say(f"{part:7} {side.raw.source}: {len(planes)} slices, {count:,} pixels")
        say(f"grey    {chosen}")
    comparison = Comparison(*sides, n=len(names), protocol=protocol)
    rows = comparison.baselines(encoder) if baselines else []
    found = comparison.encoder(encoder, "run")
    described = dataclasses.asdict(protocol) | {
        "border_vx": border,
        "fit": fitted.raw.source,
        "fit_slices": [z for z, _, _ in sides[0].where],
        "score": scored.raw.source,
        "score_slices": [z for z, _, _ in sides[1].where],
        "voxel_size_nm": scored.raw.voxel_size_nm,
        **ends,
    }
    panels = panels_of(encoder, scored, sides[1], found[0].codes)
    return Evaluation(rows=(*rows, *found), names=names, protocol=described, panels=panels)


def open_labelled(data: DataConfig, address: str, labels: Sequence[str]) -> Labelled:
    """A volume at the scale of the run, with its truth."""
    raw = open_at(address, data)
    return Labelled(raw, open_truth(raw, labels, beside=open_volume(address)))


class Comparison:
    """Scores methods on the same pixels."""

    def __init__(self, fit: Pixels, score: Pixels, *, n: int, protocol: Protocol) -> None:
        self.fit, self.score, self.n, self.protocol = fit, score, n, protocol

    def encoder(self, encoder: Any, name: str) -> list[Row]:
        """What an encoder's own classes and its embedding come to."""
        fit, score = (
            [grid_maps(encoder, plane, self.protocol.grid_vx) for plane in pixels.planes]
            for pixels in (self.fit, self.score)
        )
        k = len(fit[0].probabilities)
        codes = [
            torch.stack([maps.probabilities.argmax(0) for maps in side]) for side in (fit, score)
        ]
        probabilities = [[maps.probabilities for maps in side] for side in (fit, score)]
        embedding = [[maps.embedding for maps in side] for side in (fit, score)]
        return [
            Row(
                method=f"{name}: codes, probabilities",
                codes=self._codes(codes[0], codes[1], k),
                probe=self._probe(*probabilities),
            ),
            Row(
                method=f"{name}: embedding, k-means",
                codes=self._kmeans(*embedding),
                probe=self._probe(*embedding),
                pooled=self._probe(*embedding, pool=True),
            ),
        ]

    def baselines(self, encoder: Any) -> list[Row]:
        """Clusters of grey, of the filter bank, and of an encoder like this one that saw nothing."""
        grid = self.protocol.grid_vx
        rows = []
        for name, sigma in (("grey", 0.0), ("smoothed grey", SMOOTHED_SIGMA)):
            maps = self._maps(partial(_smoothed, sigma=sigma, step=grid))
            rows.append(
                Row(method=f"{name}, k-means", codes=self._kmeans(*maps), probe=self._probe(*maps))
            )
        bank = FilterBank(FilterBankConfig())
        maps = self._maps(lambda plane: bank.compute(_mirrored(plane, bank), grid)[0])
        rows += [
            Row(
                method="filter bank, k-means",
                codes=self._kmeans(*maps),
                probe=self._probe(*maps),
                pooled=self._probe(*maps, pool=True),
            ),
            Row(method="filter bank, pooled k-means", codes=self._kmeans(*map(_pool, maps))),
            Row(method="filter bank, mixture", codes=self._kmeans(*maps, mixture=True)),
        ]
        random = untrained(encoder, self.fit.planes, self.protocol.seed)
        maps = self._maps(lambda plane: grid_maps(random, plane, grid).embedding)
        rows.append(
            Row(
                method="random encoder, k-means",
                codes=self._kmeans(*maps),
                probe=self._probe(*maps),
                pooled=self._probe(*maps, pool=True),
            )
        )
        return rows

    def _maps(self, features: Callable[[Tensor], Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Features of every slice to fit and to score, each (D, y, x)."""
        with torch.inference_mode():
            fit, score = (
                [features(plane) for plane in side.planes] for side in (self.fit, self.score)
            )
        return fit, score

    def _codes(self, fit: Tensor, score: Tensor, k: int) -> CodeScore:
        return score_codes(fit, self.fit.classes, score, self.score.classes, k=k, n=self.n)

    def _probe(self, fit: list[Tensor], score: list[Tensor], *, pool: bool = False) -> ProbeScore:
        def side(maps: list[Tensor]) -> Callable[[int], Tensor]:
            return lambda z: pooled(maps[z][None])[0] if pool else maps[z]

        return score_probe(
            side(fit),
            self.fit.classes,
            side(score),
            self.score.classes,
            n=self.n,
            seed=self.protocol.seed,
        )

    def _kmeans(
        self, fit: list[Tensor], score: list[Tensor], *, mixture: bool = False
    ) -> CodeScore:
        """Clusters of standardised features (D, y, x) of the pixels that count."""
        seed = self.protocol.seed
        points = torch.cat(
            [maps[:, there >= 0].T for maps, there in zip(fit, self.fit.classes, strict=True)]
        )
        std, mean = torch.std_mean(points, 0, correction=0)
        std = torch.where(std > 0, std, 1)
        generator = torch.Generator().manual_seed(seed)
        sample = torch.randperm(len(points), generator=generator)[:SAMPLE]
        points = (points[sample] - mean) / std
        k = min(self.protocol.clusters, len(points.unique(dim=0)))
        if mixture:
            nearest = fit_mixture(points, k, seed=seed).assign
        else:
            nearest = partial(assign, centres=kmeans(points, k, seed=seed, rounds=ROUNDS))

        def codes(side: list[Tensor]) -> Tensor:
            return torch.stack(
                [nearest((m.flatten(1).T - mean) / std).view(m.shape[1:]) for m in side]
            )

        return self._codes(codes(fit), codes(score), k)


def untrained(encoder: Any, planes: Sequence[Tensor], seed: int) -> Any:
    """An encoder of the same kind with random weights, whose norms have seen the slices."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        fresh = type(encoder)(encoder.config)
    fresh.train()
    with torch.no_grad():
        for plane in planes:  # the running statistics are means over them
            for norm in fresh.modules():
                if hasattr(norm, "momentum"):
                    norm.momentum = None
            fresh(plane[None, None])
    return fresh.eval()


def _smoothed(plane: Tensor, *, sigma: float, step: int) -> Tensor:
    return smooth(plane[None], sigma)[:, ::step, ::step]


def _mirrored(plane: Tensor, bank: FilterBank) -> Tensor:
    return F.pad(plane[None, None], [bank.config.margin] * 4, mode="reflect")


def _pool(maps: list[Tensor]) -> list[Tensor]:
    return [pooled(one[None])[0] for one in maps]


def slices_of(
    fitted: Labelled, scored: Labelled, protocol: Protocol
) -> tuple[list[int], list[int]]:
    """The slices to fit and those to score, none of them both: as wanted, else all of two volumes."""
    to_fit, to_score = (side.truth.slices() for side in (fitted, scored))
    fit_z, score_z = protocol.fit_z, protocol.score_z
    if scored is fitted:
        fit_z, score_z = fit_and_score(to_fit, fit_z, score_z, fitted.truth.told(fitted.raw))
    fit_z = fit_z or (to_fit.start, to_fit.stop)
    score_z = score_z or (to_score.start, to_score.stop)
    chosen = (
        choose_slices("--fit-z", fit_z, fitted.raw, fitted.truth, protocol),
        choose_slices("--score-z", score_z, scored.raw, scored.truth, protocol),
    )
    one, other = (Path(side.raw.source).resolve() for side in (fitted, scored))
    if one == other and overlap(fit_z, score_z):
        raise ValueError(
            f"slices {fit_z[0]}:{fit_z[1]} to fit and {score_z[0]}:{score_z[1]} to score of "
            f"{fitted.raw.source} overlap, and scores of what was fitted flatter; give --fit-z and "
            "--score-z apart from each other"
        )
    return chosen


def panels_of(
    encoder: Any, scored: Labelled, pixels: Pixels, codes: CodeScore | None
) -> list[tuple[str, np.ndarray]]:
    """Raw, classes, classes named by their majority, and truth, of the middle scored slice."""
    assert codes is not None
    z, y0, x0 = pixels.where[len(pixels.where) // 2]
    plane = pixels.planes[len(pixels.where) // 2]
    margin = encoder.geometry.margin
    found = hard_codes(encoder, plane[None].numpy())[0]
    height, width = found.shape
    shown = (slice(margin, margin + height), slice(margin, margin + width))
    truth = scored.truth.read(Box((z, y0, x0), (1, *plane.shape)))[0][shown]
    raw = np.rint(plane.numpy()[shown] * 255).astype(np.uint8)
    n = len(scored.truth.names)
    named = np.array(codes.names)[found]
    return [
        ("raw", raw),
        ("classes", pictures.class_map(found, len(codes.names))),
        ("classes, named by majority", pictures.true_map(named, n)),
        ("truth", pictures.true_map(truth, n)),
    ]
