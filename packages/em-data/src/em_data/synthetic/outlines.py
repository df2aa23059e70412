"""Shapes of synthetic nanoparticles: ellipsoids, facetted crystals and rods, seen from above."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from em_data.synthetic.hashing import Float, hash_normal, hash_uniform

Shape = Literal["spheres", "facets", "rods"]

MOST_SPREAD = 2.5  # deviations of the logarithm of diameters at most
ASPECT = (2.0, 5.0)  # length of a rod over its width
ROUND = 14.0  # sharpness of the corners of facetted particles
CORNER = 1.7  # distance of the farthest corner, over the radius of the disc of the same area
RIM_PX = 4  # around a particle in its box


class Outline(NamedTuple):
    """A particle in a box of its own, which is square."""

    depth: Float  # (S, S) px below the outline, negative outside
    height: Float  # (S, S) px from its lower to its upper face


def reach_px(radius_px: float, spread: float, shape: str) -> int:
    """Half the side of the box of the largest particle."""
    largest = radius_px * math.exp(MOST_SPREAD * spread)
    longest = ASPECT[1] * _rod_width(largest, ASPECT[1]) / 2
    return math.ceil(longest if shape == "rods" else CORNER * largest) + RIM_PX + 1


def draw_outline(
    shape: str, median_px: float, spread: float, *, seed: int, index: int, number: int
) -> Outline:
    """Particle `number` of an image: its area is that of a disc of a log-normal diameter."""
    normal = hash_normal(seed, "diameter", index, number).item()
    radius = median_px * math.exp(spread * min(max(normal, -MOST_SPREAD), MOST_SPREAD))
    draws = hash_uniform(seed, "outline", index, number, np.arange(24)).tolist()
    common = hash_uniform(seed, "alike", index, np.arange(4)).tolist()  # of one synthesis
    form = {"spheres": _ellipsoid, "facets": _crystal, "rods": _rod}[shape]
    return form(radius, draws, common)


def _places(reach: float, draws: list[float]) -> tuple[Float, Float]:
    """Distances (y, x) from the middle, turned: (S, S) each. The middle lies within half a pixel."""
    half = math.ceil(reach) + RIM_PX
    steps = np.arange(-half, half, dtype=np.float32) + 0.5
    y, x = steps[:, None] + (draws[0] - 0.5), steps + (draws[1] - 0.5)
    angle = 2 * math.pi * draws[2]
    sine, cosine = math.sin(angle), math.cos(angle)
    return cosine * y - sine * x, sine * y + cosine * x


def _ellipsoid(radius: float, draws: list[float], common: list[float]) -> Outline:
    """Nearly spheres, or clearly longish ones."""
    ratio = 1 + (0.06 + 0.25 * common[0] ** 3) * draws[3]
    y, x = _places(radius * math.sqrt(ratio), draws)
    away = np.sqrt(y * y * ratio + x * x / ratio)
    return _outline(radius - away, 2 * np.sqrt(np.maximum(radius * radius - away * away, 0)))


def _crystal(radius: float, draws: list[float], common: list[float]) -> Outline:
    """A rounded polygon of four to eight sides, with slanting faces around a flat one."""
    sides = 4 + int(5 * (0.7 * common[0] + 0.3 * draws[3]))
    loose = 0.08 + 0.1 * common[1]  # cubes are more alike than others
    turns = [2 * math.pi * (k + loose * (2 * draws[8 + k] - 1)) / sides for k in range(sides)]
    nearness = [1 + loose * (2 * draws[16 + k] - 1) for k in range(sides)]

    def gauge(y: Float, x: Float) -> Float:
        """1 on the outline, growing in proportion to the distance from the middle."""
        out = np.zeros(np.broadcast_shapes(y.shape, x.shape), np.float32)
        for turn, near in zip(turns, nearness, strict=True):
            face = np.maximum(math.sin(turn) * y + math.cos(turn) * x, 0) / near
            out += face.astype(np.float32) ** np.float32(ROUND)
        return np.asarray(out ** np.float32(1 / ROUND), np.float32)

    scale = radius / _equivalent_radius(gauge)
    y, x = _places(CORNER * radius, draws)
    below = 1 - gauge(y / scale, x / scale)
    bevel = 0.1 + 0.4 * common[2]
    tall = 1.6 * radius * (0.8 + 0.4 * draws[4])
    return _outline(below * scale, tall * np.clip(below / bevel, 0, 1) ** 0.8)


def _equivalent_radius(gauge: Callable[[Float, Float], Float]) -> float:
    """Of the disc that is as large as where the gauge is below 1."""
    angle = np.linspace(0, 2 * math.pi, 360, endpoint=False, dtype=np.float32)
    return float(np.sqrt((gauge(np.sin(angle), np.cos(angle)) ** -2.0).mean()))


def _rod(radius: float, draws: list[float], common: list[float]) -> Outline:
    """A cylinder with round ends, lying."""
    middle = ASPECT[0] + common[0] * (ASPECT[1] - ASPECT[0])
    aspect = min(max(middle * (0.85 + 0.3 * draws[3]), ASPECT[0]), ASPECT[1])
    width = _rod_width(radius, aspect)
    half = (aspect - 1) * width / 2
    y, x = _places(half + width / 2, draws)
    distance = np.hypot(y, np.maximum(np.abs(x) - half, 0))
    height = np.sqrt(np.maximum(width * width - 4 * distance * distance, 0))
    return _outline(width / 2 - distance, height)


def _outline(depth: NDArray[Any], height: NDArray[Any]) -> Outline:
    return Outline(depth.astype(np.float32), height.astype(np.float32))


def _rod_width(radius: float, aspect: float) -> float:
    """Of the rod with the area of a disc: π radius² = (aspect - 1) width² + π width² / 4."""
    return radius * math.sqrt(math.pi / (aspect - 1 + math.pi / 4))
