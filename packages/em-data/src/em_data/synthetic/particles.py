"""Synthetic micrographs of nanoparticles on a support film, with truth: whose each pixel is.

An image is a function of (seed, index) alone: every number is a hash of both and of a particle's
number. Images differ as those of a laboratory do (microscope, shape, size, contrast, film), and
the particles of one image resemble each other. `outlines.py` says what shape they have; here stands
where they lie, which hides which, and what a TEM, an SEM or a STEM makes of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from em_data.synthetic.config import Range, check_image, check_index, check_numbers
from em_data.synthetic.hashing import Float, blur_image, hash_normal, hash_uniform, smooth_image
from em_data.synthetic.outlines import Outline, Shape, draw_outline, reach_px

Look = Literal["tem", "sem", "haadf"]
Corner = tuple[int, int]

GAP_PX = 2.5  # between particles that do not touch
HIDDEN = 0.3  # share of a particle that others may cover
TRIES = 20  # places for a particle
MISSES = 40  # particles in a row that find no place: the film is full
STEEPEST = 3.0  # secondary electrons of a steep flank, over those of a flat face


@dataclass(frozen=True, kw_only=True)
class ParticlesConfig:
    """A collection of micrographs of nanoparticles; ranges are drawn from for each image."""

    size_px: tuple[int, int] = (256, 256)
    """Size (y, x) of an image in pixels."""
    pixel_nm: float = 1.0
    """Side of a pixel in nm."""
    seed: int = 0
    """Seed of the collection: 0 to 2**32 - 1."""
    look: Literal["any"] | Look = "any"
    """Microscope: tem (dark on bright), sem (bright rims), haadf (bright on dark), or any of them."""
    shape: Literal["any"] | Shape = "any"
    """Shape of the particles: spheres, facets (rounded polygons), rods, or any of them."""
    diameter_nm: Range = (16.0, 40.0)
    """Median diameter of an image in nm, of discs of the same area; its logarithm is drawn evenly."""
    spread: float = 0.15
    """Deviation of the logarithm of the diameters within an image."""
    coverage: Range = (0.05, 0.35)
    """Share of an image that particles cover."""
    touching: float = 0.4
    """Share of the particles that are put against another one."""
    overlap: float = 0.2
    """Depth to which those reach over each other at most, as a share of half their width."""
    holes: float = 0.2
    """Probability that the film has holes."""
    texture: float = 0.02
    """Deviation of the grain of the film, as a share of the grey range."""
    uneven: float = 0.03
    """Deviation of the smooth background, as a share of the grey range."""
    blur_px: float = 0.7
    """Deviation of the Gaussian blur of the image, in pixels."""

    def __post_init__(self) -> None:
        check_image(self.size_px, self.seed)
        for name, known in (("look", get_args(Look)), ("shape", get_args(Shape))):
            if getattr(self, name) not in ("any", *known):
                raise ValueError(
                    f"{name} is {getattr(self, name)!r}; wanted any, {', '.join(known)}"
                )
        check_numbers(
            self,
            pixel_nm=(1e-3, 1e4),
            diameter_nm=(0, 1e6),
            spread=(0, 1),
            coverage=(0, 0.6),
            touching=(0, 1),
            overlap=(0, 0.5),
            holes=(0, 1),
            texture=(0, 0.2),
            uneven=(0, 0.2),
            blur_px=(0, 5),
        )
        low, high = (nm / self.pixel_nm for nm in self.diameter_nm)
        if low < 6 or high > min(self.size_px):
            raise ValueError(
                f"diameter_nm must lie between 6 pixels and the side of an image, {6 * self.pixel_nm:g} "
                f"to {min(self.size_px) * self.pixel_nm:g} nm, got {self.diameter_nm}; change it, "
                "size_px or pixel_nm"
            )
        most = math.prod(self.size_px) / low**2
        if most >= 2**15:
            raise ValueError(
                f"images of {self.size_px} pixels hold more particles of {self.diameter_nm[0]:g} nm "
                "than 16 bits can number; lower size_px"
            )


@dataclass(frozen=True, kw_only=True)
class Micrograph:
    """An image without noise, and its truth."""

    image: Float
    """(Y, X) in [0, 1]"""
    instances: NDArray[np.uint16]
    """(Y, X): numbers of the particles from 1 on, 0 is film; of two that overlap, the upper one's."""


class Style(NamedTuple):
    """What the particles of one image have in common."""

    look: str
    shape: str
    radius_px: float
    coverage: float


class Placed(NamedTuple):
    """A particle, and the corner of its box on the canvas."""

    outline: Outline
    corner: Corner
    number: int  # for its random numbers

    @property
    def box(self) -> tuple[slice, slice]:
        return _box(self.corner, self.outline)

    @property
    def middle(self) -> tuple[float, float]:
        height, width = self.outline.depth.shape
        return self.corner[0] + height / 2, self.corner[1] + width / 2


def render_particles(config: ParticlesConfig, index: int) -> Micrograph:
    """Image `index` of the collection and whose its pixels are.

    >>> one = render_particles(ParticlesConfig(size_px=(64, 96)), 0)
    >>> one.image.shape, int(one.instances.max()) > 0
    ((64, 96), True)
    """
    check_index(index)
    style = _style(config, index)
    # Particles may lie beyond the borders, by all of their length.
    margin = reach_px(style.radius_px, config.spread, style.shape)
    size = (config.size_px[0] + 2 * margin, config.size_px[1] + 2 * margin)
    film = _film(config, index, size)
    inner = (slice(margin, margin + config.size_px[0]), slice(margin, margin + config.size_px[1]))
    placed, labels = _place(config, index, style, film > 0.5, inner)
    paint = {"tem": _transmitted, "sem": _secondary, "haadf": _scattered}[style.look]
    image = blur_image(paint(config, index, style, film, placed), config.blur_px)
    kept, instances = np.unique(labels[inner], return_inverse=True)
    instances = instances.reshape(config.size_px) + (kept[0] > 0)  # where no film is seen
    return Micrograph(
        image=np.ascontiguousarray(np.clip(image[inner], 0, 1)),
        instances=instances.astype(np.uint16),
    )


def _style(config: ParticlesConfig, index: int) -> Style:
    draws = hash_uniform(config.seed, "style", index, np.arange(4)).tolist()
    looks: tuple[str, ...] = get_args(Look) if config.look == "any" else (config.look,)
    shapes: tuple[str, ...] = get_args(Shape) if config.shape == "any" else (config.shape,)
    low, high = config.diameter_nm
    diameter = low * (high / low) ** draws[2]
    return Style(
        look=looks[int(draws[0] * len(looks))],
        shape=shapes[int(draws[1] * len(shapes))],
        radius_px=diameter / config.pixel_nm / 2,
        coverage=config.coverage[0] + draws[3] * (config.coverage[1] - config.coverage[0]),
    )


# Where they lie ----------------------------------------------------------------------------------


def _place(
    config: ParticlesConfig,
    index: int,
    style: Style,
    film: NDArray[np.bool_],
    inner: tuple[slice, slice],
) -> tuple[list[Placed], NDArray[np.int32]]:
    """Particles until enough of the inner part is covered, later ones on top; and whose pixels are."""
    labels = np.zeros(film.shape, np.int32)
    placed: list[Placed] = []
    number = misses = 0
    while misses < MISSES and (labels[inner] > 0).mean() < style.coverage:
        number += 1
        outline = draw_outline(
            style.shape,
            style.radius_px,
            config.spread,
            seed=config.seed,
            index=index,
            number=number,
        )
        joins = hash_uniform(config.seed, "joins", index, number).item() < config.touching
        misses += 1
        for attempt in range(TRIES):
            draws = hash_uniform(config.seed, "place", index, number, attempt, np.arange(3))
            if joins and placed:
                corner = _against(config, outline, placed, labels, draws)
            else:
                corner = _alone(outline, labels, draws)
            if corner and _put(Placed(outline, corner, number), placed, labels, film):
                misses = 0
                break
    return placed, labels


def _put(
    new: Placed, placed: list[Placed], labels: NDArray[np.int32], film: NDArray[np.bool_]
) -> bool:
    """Put a particle on top, if there is film and most of all others stays in sight, in one piece."""
    y, x = (int(at) for at in new.middle)
    if not film[y, x]:
        return False
    mask, below = new.outline.depth > 0, labels[new.box]
    before = below.copy()
    below[mask] = len(placed) + 1
    for number in np.unique(before[mask & (before > 0)]).tolist():
        other = placed[number - 1]
        seen = labels[other.box] == number
        least = (1 - HIDDEN) * (other.outline.depth > 0).sum()
        if seen.sum() < least or not _in_one_piece(seen):
            below[:] = before
            return False
    placed.append(new)
    return True


def _in_one_piece(mask: NDArray[np.bool_]) -> bool:
    """Whether all of a mask can be reached from its first pixel, by sides."""
    reached = np.zeros((mask.shape[0] + 2, mask.shape[1] + 2), bool)  # with a rim
    inner = reached[1:-1, 1:-1]
    inner.flat[mask.argmax()] = True
    count = 0
    while count < (count := int(inner.sum())):
        sides = reached[:-2, 1:-1] | reached[2:, 1:-1] | reached[1:-1, :-2] | reached[1:-1, 2:]
        inner |= sides & mask
    return count == mask.sum()


def _alone(outline: Outline, labels: NDArray[np.int32], draws: Float) -> Corner | None:
    """A place where nothing is near."""
    corner = [
        int(draw * (there - side + 1))
        for draw, there, side in zip(draws, labels.shape, outline.depth.shape, strict=False)
    ]
    at = (corner[0], corner[1])
    return None if labels[_box(at, outline)][outline.depth > -GAP_PX].any() else at


def _against(
    config: ParticlesConfig,
    outline: Outline,
    placed: list[Placed],
    labels: NDArray[np.int32],
    draws: Float,
) -> Corner | None:
    """A place that is reached by coming nearer to another particle until they meet, and a bit farther."""
    other = placed[int(draws[0] * len(placed))]
    angle = 2 * math.pi * float(draws[1])
    side, mask = outline.depth.shape[0], outline.depth > 0
    narrower = min(outline.depth.max(), other.outline.depth.max())
    deeper = config.overlap * float(draws[2] * narrower)
    met: int | None = None
    for distance in range((side + other.outline.depth.shape[0]) // 2 + 1, 0, -1):
        at = (
            round(other.middle[0] + distance * math.sin(angle) - side / 2),
            round(other.middle[1] + distance * math.cos(angle) - side / 2),
        )
        if min(at) < 0 or any(a + side > n for a, n in zip(at, labels.shape, strict=True)):
            return None
        if met is None and labels[_box(at, outline)][mask].any():
            met = distance
        if met is not None and distance <= met - deeper:
            return at
    return None


def _box(corner: Corner, outline: Outline) -> tuple[slice, slice]:
    y, x = corner
    height, width = outline.depth.shape
    return slice(y, y + height), slice(x, x + width)


# What a microscope makes of them -----------------------------------------------------------------


def _film(config: ParticlesConfig, index: int, size: Corner) -> Float:  # (Y, X)
    """How thick the film is: 1 with soft edges of round holes, where it has any."""
    film = np.ones(size, np.float32)
    draws = hash_uniform(config.seed, "film", index, np.arange(3)).tolist()
    if draws[0] >= config.holes:
        return film
    pitch = (0.5 + 0.5 * draws[1]) * min(config.size_px)  # between holes, in pixels
    y, x = np.ogrid[: size[0], : size[1]]
    y, x = y.astype(np.float32), x.astype(np.float32)
    wave = 0.04 * pitch * smooth_image(config.seed, "rim", index, size, 0.3 * pitch)
    for row in range(int(size[0] / pitch) + 2):
        for column in range(int(size[1] / pitch) + 2):
            off = hash_uniform(config.seed, "hole", index, row, column, np.arange(3)).tolist()
            away = np.hypot(
                y - (row + 0.6 * (off[0] - 0.5)) * pitch,
                x - (column + 0.6 * (off[1] - 0.5)) * pitch,
            )
            radius = pitch * (0.12 + 0.2 * off[2])
            film *= np.clip(0.5 + (away + wave - radius) / 2, 0, 1)
    return film


def _background(config: ParticlesConfig, index: int, film: Float) -> tuple[Float, Float]:
    """Deviations of the grey value: of the film (its grain and mottles), and of the whole image."""
    strength = config.texture * (0.5 + hash_uniform(config.seed, "grain", index).item())
    grain = 0.7 * smooth_image(config.seed, "grain", index, film.shape, 2.2)
    grain += 0.5 * smooth_image(config.seed, "mottle", index, film.shape, 14)
    smooth = smooth_image(config.seed, "uneven", index, film.shape, 0.8 * max(config.size_px))
    return strength * grain * film, config.uneven * smooth


def _thickness(
    config: ParticlesConfig, index: int, style: Style, film: Float, placed: list[Placed]
) -> Float:
    """Matter that electrons pass, in median diameters; crystals scatter unequally, and not evenly."""
    unequal = {"tem": 0.3, "haadf": 0.08, "sem": 0.0}[style.look]
    unequal *= 1.0 if style.shape == "facets" else 0.4
    bends = smooth_image(config.seed, "bends", index, film.shape, max(0.7 * style.radius_px, 3))
    out = np.zeros(film.shape, np.float32)
    for one in placed:
        height, width = one.outline.depth.shape
        # Another piece of the noise for each particle: it ends at its outline.
        y, x = (
            int(draw * (n - side + 1))
            for draw, n, side in zip(
                hash_uniform(config.seed, "bend", index, one.number, np.arange(2)),
                film.shape,
                (height, width),
                strict=True,
            )
        )
        factor = 1 + unequal * hash_normal(config.seed, "scatters", index, one.number).item()
        factor = max(factor, 0.4) * np.clip(
            1 + unequal * bends[y : y + height, x : x + width], 0.3, 2
        )
        out[one.box] += one.outline.height * factor / (2 * style.radius_px)
    return out


def _transmitted(
    config: ParticlesConfig, index: int, style: Style, film: Float, placed: list[Placed]
) -> Float:
    """TEM: what is thick is dark; a slight defocus leaves fringes along edges."""
    draws = hash_uniform(config.seed, "tem", index, np.arange(4)).tolist()
    bright, darkens, fringe = 0.6 + 0.22 * draws[0], 0.7 + 1.7 * draws[1], draws[2]
    grain, smooth = _background(config, index, film)
    image = bright * (1 + (0.08 + 0.12 * draws[3]) * (1 - film)) + grain + smooth
    image *= np.exp(-darkens * _thickness(config, index, style, film, placed))
    return image + 0.5 * fringe * (image - blur_image(image, 1.5))


def _scattered(
    config: ParticlesConfig, index: int, style: Style, film: Float, placed: list[Placed]
) -> Float:
    """HAADF-STEM: what is thick and heavy is bright."""
    draws = hash_uniform(config.seed, "haadf", index, np.arange(3)).tolist()
    dark, rise, gain = 0.08 + 0.14 * draws[0], 0.4 + 0.25 * draws[1], 1.2
    grain, smooth = _background(config, index, film)
    heavy = 1 - np.exp(-gain * _thickness(config, index, style, film, placed))
    return 0.03 + dark * film + grain + smooth + rise * heavy / (1 - math.exp(-gain))


def _secondary(
    config: ParticlesConfig, index: int, style: Style, film: Float, placed: list[Placed]
) -> Float:
    """SEM: flanks send out more electrons than flat faces, the more on the side of the detector."""
    draws = hash_uniform(config.seed, "sem", index, np.arange(5)).tolist()
    dark, flat, rim = 0.14 + 0.16 * draws[0], 0.12 + 0.15 * draws[1], 0.2 + 0.25 * draws[2]
    lean, angle = 0.04 + 0.1 * draws[3], 2 * math.pi * draws[4]
    grain, smooth = _background(config, index, film)
    image = dark * (0.35 + 0.65 * film) + grain
    skin = 1.5 * config.texture * smooth_image(config.seed, "skin", index, film.shape, 3)
    for one in placed:
        outline = one.outline
        slope = np.gradient(blur_image(outline.height / np.float32(2), 0.8))
        steep = np.sqrt(1 + slope[0] ** 2 + slope[1] ** 2)
        towards = (slope[0] * math.sin(angle) + slope[1] * math.cos(angle)) / steep
        edge = (np.minimum(steep, STEEPEST) - 1) / (STEEPEST - 1)
        grey = dark + flat + rim * edge + lean * towards + skin[one.box]
        grey *= 1 + 0.06 * hash_normal(config.seed, "bright", index, one.number).item()
        opaque = np.clip(outline.depth + 0.5, 0, 1)
        # Particles take up electrons of the film, and of those below, around them.
        near = np.clip(1 + outline.depth / (0.4 * style.radius_px), 0, 1) * (1 - opaque)
        below = image[one.box] * (1 - 0.25 * near)
        image[one.box] = below * (1 - opaque) + grey * opaque
    return image + smooth
