"""What a learned restoration must beat: classical filters, each at the settings that are best for it.

Settings are chosen on other slices than are scored: with the truth by PSNR, without it by how well a
filter foretells pixels that it did not see (J-invariance, Batson & Royer 2019). The latter is right
for noise that is independent from pixel to pixel; where noise runs along rows, it chooses filters
that keep it.

The filters are those of scikit-image (extra `restore`) and Pillow. BM3D is made where the package
`bm3d` is installed; its licence is not a free one.
"""

from __future__ import annotations

import importlib
import itertools
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from PIL import Image

from em_train.restore.scores import check_pair, psnr

Settings = Mapping[str, Any]
CROP_VX = 256  # side of the middle square that settings are chosen on
BALL_VX = 12  # radius of a rolling ball after shrinking: the cost grows with radius²


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """A filter and the settings it may have."""

    name: str
    function: Callable[..., np.ndarray]
    """(Y, X) float in [0, 1] and settings -> same."""
    grid: Mapping[str, Sequence[Any]]
    """Values of every setting; all combinations are tried."""

    def choices(self) -> Iterator[Settings]:
        """All combinations of settings."""
        for values in itertools.product(*self.grid.values()):
            yield dict(zip(self.grid, values, strict=True))


@dataclass(frozen=True, kw_only=True)
class Tuned:
    """A filter at chosen settings; calling it restores an image."""

    name: str
    settings: Settings
    function: Callable[..., np.ndarray] = field(repr=False)

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """(Y, X), or the middle slice of (Z, Y, X) -> (Y, X)."""
        plane = image if image.ndim == 2 else image[len(image) // 2]
        return self.function(plane, **self.settings)

    def __str__(self) -> str:
        """Name and settings, for tables."""
        said = ", ".join(f"{key} {value}" for key, value in self.settings.items())
        return f"{self.name}: {said}" if said else self.name


def tune(
    baselines: Sequence[Baseline],
    noisy: Sequence[np.ndarray],
    truth: Sequence[np.ndarray] | None = None,
    *,
    crop_vx: int = CROP_VX,
) -> list[Tuned]:
    """Every filter at the settings that are best on average over slices for choosing.

    Args:
        baselines: from `denoising`, `sampling` or `background`.
        noisy: slices (Y, X) float in [0, 1].
        truth: of the same slices; without it, settings are chosen by J-invariance.
        crop_vx: side of the square in the middle of every slice that is looked at; slices that are
            sampled more coarsely than their truth are taken whole.
    """
    if not noisy or (truth is not None and len(truth) != len(noisy)):
        there = "none" if truth is None else str(len(truth))
        raise ValueError(
            f"{len(noisy)} slices to choose settings on and {there} of truth; wanted at least one, "
            "and as many of both"
        )
    pairs = list(zip(noisy, noisy if truth is None else truth, strict=True))
    if all(one.shape == true.shape for one, true in pairs):
        pairs = [(_middle(one, crop_vx), _middle(true, crop_vx)) for one, true in pairs]
    tuned = []
    for baseline in baselines:
        choices = list(baseline.choices())
        if len(choices) == 1:
            best = choices[0]
        elif truth is None:
            best = _foretelling(baseline, [one for one, _ in pairs])
        else:
            reached = [_mean_psnr(partial(baseline.function, **one), pairs) for one in choices]
            best = choices[int(np.argmax(reached))]
        tuned.append(Tuned(name=baseline.name, settings=best, function=baseline.function))
    return tuned


def _middle(image: np.ndarray, side: int) -> np.ndarray:
    starts = [max(0, (n - side) // 2) for n in image.shape]
    return image[starts[0] : starts[0] + side, starts[1] : starts[1] + side]


def _mean_psnr(
    restore: Callable[[np.ndarray], np.ndarray], pairs: Sequence[tuple[np.ndarray, np.ndarray]]
) -> float:
    values = []
    for noisy, truth in pairs:
        restored = restore(noisy)
        check_pair(restored, truth)
        values.append(psnr(restored, truth, data_range=1.0))
    return float(np.mean(values))


def _foretelling(baseline: Baseline, noisy: Sequence[np.ndarray]) -> Settings:
    """The settings of the smallest error at pixels that were hidden from the filter."""
    calibrate = scikit_image("restoration").calibrate_denoiser
    total = np.zeros(len(list(baseline.choices())))
    for image in noisy:
        _, (tried, losses) = calibrate(
            np.asarray(image, np.float64),
            baseline.function,
            {key: list(values) for key, values in baseline.grid.items()},
            extra_output=True,
        )
        total += losses
    return dict(tried[int(np.argmin(total))])


# Denoising ----------------------------------------------------------------------------------------


def denoising() -> list[Baseline]:
    """Filters of noise, from the simplest; with BM3D where it is installed."""
    scikit_image("restoration")
    sigmas = (0.5, 0.7, 1.0, 1.4, 2.0, 2.8, 4.0)
    alike = {"h": (0.04, 0.06, 0.09, 0.13, 0.2, 0.3), "patch_size": (3, 5)}
    weights = {"weight": (0.03, 0.06, 0.1, 0.15, 0.2, 0.3, 0.45, 0.7)}
    found = [
        Baseline(name="median", function=median, grid={"radius": (1, 2, 3, 4)}),
        Baseline(name="gaussian", function=gaussian, grid={"sigma": sigmas}),
        Baseline(
            name="destriped gaussian",
            function=destriped_gaussian,
            grid={"sigma_y": (0.0, *sigmas), "sigma_x": (0.0, *sigmas), "keep": (2.0, 8.0, 32.0)},
        ),
        Baseline(name="non-local means", function=non_local_means, grid=alike),
        Baseline(name="total variation", function=total_variation, grid=weights),
        Baseline(
            name="destriped non-local means",
            function=partial(of_destriped, non_local_means),
            grid=alike | {"keep": (8.0,)},
        ),
        Baseline(
            name="destriped total variation",
            function=partial(of_destriped, total_variation),
            grid=weights | {"keep": (8.0,)},
        ),
        Baseline(
            name="wavelets",
            function=wavelets,
            grid={
                "method": ("BayesShrink", "VisuShrink"),
                "sigma": (0.01, 0.02, 0.03, 0.06, 0.1, 0.15, 0.25, 0.4),
            },
        ),
    ]
    if bm3d_is_here():
        found.append(
            Baseline(name="BM3D", function=bm3d, grid={"sigma": (0.05, 0.1, 0.15, 0.2, 0.3)})
        )
    return found


def median(image: np.ndarray, *, radius: int) -> np.ndarray:
    """The median of a disk."""
    disk = scikit_image("morphology").disk(radius)
    return scikit_image("filters").median(image, disk, mode="reflect")


def gaussian(image: np.ndarray, *, sigma: float | tuple[float, float]) -> np.ndarray:
    """A Gaussian blur, borders reflected."""
    return scikit_image("filters").gaussian(image, sigma, mode="reflect", preserve_range=True)


def destriped_gaussian(
    image: np.ndarray, *, sigma_y: float, sigma_x: float, keep: float
) -> np.ndarray:
    """Without offsets of rows, see `destriped`, and blurred by a σ of its own in each direction."""
    return gaussian(destriped(image, keep=keep), sigma=(sigma_y, sigma_x))


def destriped(image: np.ndarray, *, keep: float) -> np.ndarray:
    """Rows moved to a smooth course of their medians.

    `keep` is the σ of that course in rows: what changes more slowly is kept as part of the image.
    """
    offsets = np.median(image, 1, keepdims=True)
    return image - (offsets - gaussian(offsets, sigma=(keep, 0)))


def of_destriped(
    function: Callable[..., np.ndarray], image: np.ndarray, *, keep: float, **settings: Any
) -> np.ndarray:
    """Another filter after `destriped`."""
    return function(destriped(image, keep=keep), **settings)


def non_local_means(image: np.ndarray, *, h: float, patch_size: int) -> np.ndarray:
    """Means of pixels whose surroundings look alike (Buades et al. 2005)."""
    return scikit_image("restoration").denoise_nl_means(
        image, h=h, patch_size=patch_size, patch_distance=7, fast_mode=True
    )


def total_variation(image: np.ndarray, *, weight: float) -> np.ndarray:
    """The nearest image of little total variation (Chambolle 2004)."""
    return scikit_image("restoration").denoise_tv_chambolle(image, weight=weight)


def wavelets(image: np.ndarray, *, method: str, sigma: float) -> np.ndarray:
    """Wavelet coefficients shrunk for noise of this σ (Chang et al. 2000; Donoho & Johnstone 1994)."""
    _import("pywt", "the wavelets of scikit-image need")
    return scikit_image("restoration").denoise_wavelet(
        image, sigma=sigma, method=method, wavelet="sym4", mode="soft"
    )


def bm3d(image: np.ndarray, *, sigma: float) -> np.ndarray:
    """Blocks that look alike, filtered together (Dabov et al. 2007)."""
    return importlib.import_module("bm3d").bm3d(image, sigma_psd=sigma)


def bm3d_is_here() -> bool:
    """Whether BM3D can be imported and works with the NumPy that is here."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            bm3d(np.zeros((16, 16)), sigma=0.1)
    except (ImportError, AttributeError):  # release 4.0.3 calls what NumPy 2.4 no longer has
        return False
    return True


# Super-resolution ---------------------------------------------------------------------------------


def sampling(factor: int) -> list[Baseline]:
    """Interpolations of a coarse image to a grid that is `factor` times finer."""
    grid = {"factor": (factor,)}
    return [
        Baseline(name=name, function=partial(enlarged, kind=name), grid=grid)
        for name in ("bilinear", "bicubic", "lanczos")
    ]


def enlarged(image: np.ndarray, *, factor: int, kind: str) -> np.ndarray:
    """(y, x) -> (factor · y, factor · x); a coarse pixel covers factor × factor fine ones."""
    height, width = image.shape
    how = Image.Resampling[kind.upper()]
    fine = Image.fromarray(image.astype(np.float32)).resize((width * factor, height * factor), how)
    return np.asarray(fine)


# Background ---------------------------------------------------------------------------------------


def background() -> list[Baseline]:
    """Removals of an uneven background; the mean of the image stays."""
    scikit_image("restoration")
    sigmas = (8.0, 16.0, 32.0, 64.0, 128.0)
    return [
        Baseline(name="rolling ball", function=rolling_ball, grid={"radius": (12, 25, 50, 100)}),
        Baseline(name="gaussian subtracted", function=without_gaussian, grid={"sigma": sigmas}),
        Baseline(name="gaussian divided", function=over_gaussian, grid={"sigma": sigmas}),
    ]


def rolling_ball(image: np.ndarray, *, radius: int) -> np.ndarray:
    """Minus what a ball rolling below the image reaches (Sternberg 1983).

    For balls that are large, the image is shrunk first, as ImageJ does.
    """
    shrink = max(1, radius // BALL_VX)
    coarse = _shrunk(image, shrink)
    # The ball is as high as wide, in units of the grey values of 8 bits, as in ImageJ.
    kernel = scikit_image("restoration").ball_kernel(radius / shrink, 2) * (shrink / 255)
    ball = scikit_image("restoration").rolling_ball(coarse, kernel=kernel)
    return _without(image, _enlarged_to(ball, image.shape))


def without_gaussian(image: np.ndarray, *, sigma: float) -> np.ndarray:
    """Minus its blur."""
    return _without(image, gaussian(image, sigma=sigma))


def over_gaussian(image: np.ndarray, *, sigma: float) -> np.ndarray:
    """Divided by its blur."""
    return image / np.maximum(gaussian(image, sigma=sigma), 1e-3) * image.mean()


def _without(image: np.ndarray, uneven: np.ndarray) -> np.ndarray:
    return image - uneven + uneven.mean()


def _shrunk(image: np.ndarray, factor: int) -> np.ndarray:
    """Means of blocks, those at the far edges cut."""
    height, width = (max(1, -(-n // factor)) for n in image.shape)
    small = Image.fromarray(image.astype(np.float32)).resize(
        (width, height), Image.Resampling.BOX, box=(0, 0, image.shape[1], image.shape[0])
    )
    return np.asarray(small).astype(np.float64)


def _enlarged_to(image: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    fine = Image.fromarray(image.astype(np.float32)).resize(
        (shape[1], shape[0]), Image.Resampling.BILINEAR
    )
    return np.asarray(fine)


# Libraries ----------------------------------------------------------------------------------------


def scikit_image(part: str) -> Any:
    """A module of scikit-image."""
    return _import(f"skimage.{part}", "classical baselines need")


def _import(module: str, need: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"{need} {module.partition('.')[0]}, which cannot be imported ({error}); "
            "install it: pip install 'em-train[restore]'"
        ) from error
