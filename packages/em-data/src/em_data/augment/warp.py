"""Where the voxels of an augmented crop come from: symmetry, rotation, scaling, deformation, shifts.

All of them together are one map from the crop into a larger source crop, which is sampled once, so
that nothing is blurred twice and images, labels and points can only move together. The map is a
cubic B-spline with few control points: it reproduces rotation and scaling exactly, and moving its
control points deforms the tissue without tearing or folding it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from em_data.errors import BoxError
from em_data.geometry import Float3, Int3, int3

CHOICES = 5  # uniform numbers that a warp needs beside those of its control points and slices


@dataclass(frozen=True, kw_only=True)
class WarpConfig:
    """What moves voxels: labels, instances, masks and points move with them."""

    symmetries: Literal["none", "plane", "box"] = "box"
    """Flips and quarter turns: none, the 8 of a square slice, or all that the crop's shape and the
    shape of its voxels allow."""
    share: float = 0.5
    """Share of the samples that are rotated, scaled and deformed; the others keep their voxels as
    they are."""
    rotation_deg: float = 45.0
    """Largest rotation either way. With the symmetries, 45 reaches every direction in a slice."""
    scale: float = 0.1
    """Largest change of size: .1 draws from 1/1.1 to 1.1."""
    elastic_vx: float = 8.0
    """Largest displacement by elastic deformation, in voxels along x; a fifth of it is typical."""
    elastic_spacing_vx: float = 64.0
    """Distance between the control points of the deformation, in voxels along x; in z as many nm."""
    out_of_plane: bool = False
    """Whether rotation, scaling and deformation work in space (in nm, about any axis) or keep every
    voxel in its slice."""
    shifted: float = 0.0
    """Probability that a slice is shifted against the one before, half the time with all that
    follow."""
    shift_vx: float = 8.0
    """Largest such shift from a slice's place, in voxels along x."""

    def __post_init__(self) -> None:
        for name, low, high in (
            ("share", 0, 1),
            ("shifted", 0, 1),
            ("rotation_deg", 0, 180),
            ("scale", 0, 1),
            ("shift_vx", 0, math.inf),
            ("elastic_vx", 0, self.elastic_spacing_vx / 6),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                because = ", a sixth of elastic_spacing_vx, beyond which tissue would fold"
                raise ValueError(
                    f"{name} must lie in {low:g} to {high:g}"
                    f"{because if name == 'elastic_vx' else ''}, got {value}; change it"
                )


class Symmetry(NamedTuple):
    """Axis a of the crop runs along axis `axes[a]` of the source, backwards where `flips[a]`."""

    axes: Int3
    flips: tuple[bool, bool, bool]


@cache
def symmetries_of(
    kind: Literal["none", "plane", "box"], size_vx: Int3, voxel_size_nm: Float3 | None
) -> tuple[Symmetry, ...]:
    """All symmetries of a crop; axes are exchanged only where they are equally long, in nm too.

    >>> [len(symmetries_of("box", (n, 64, 64), (8, 4, 4))) for n in (5, 64)]
    [16, 16]
    >>> len(symmetries_of("box", (64, 64, 64), (8, 8, 8)))
    48
    """
    if kind == "none":
        return (Symmetry((0, 1, 2), (False, False, False)),)
    unit = _unit(voxel_size_nm)
    found = []
    for axes in itertools.permutations(range(3)):
        alike = all(
            size_vx[a] == size_vx[b] and math.isclose(unit[a], unit[b], rel_tol=0.01)
            for a, b in enumerate(axes)
        )
        if alike and (voxel_size_nm is not None or axes[0] == 0):
            for z, y, x in itertools.product((False, True), repeat=3):
                if kind == "box" or (axes[0] == 0 and not z):
                    found.append(Symmetry(int3(axes), (z, y, x)))
    return tuple(found)


def margin_vx(config: WarpConfig, size_vx: Int3, voxel_size_nm: Float3 | None = None) -> Int3:
    """How many voxels beyond each side of a crop the warp may reach: cut crops larger by twice that.

    >>> margin_vx(WarpConfig(), (5, 256, 256), (40, 4, 4))
    (0, 84, 84)
    """
    _check_units(config, voxel_size_nm)
    unit = _unit(voxel_size_nm)
    half = [(n - 1) / 2 * u for n, u in zip(size_vx, unit, strict=True)]
    moving = (0, 1, 2) if config.out_of_plane and config.share else (1, 2)
    shift = config.shift_vx if config.shifted else 0.0
    reach = [half[i] + shift * (i > 0) for i in range(3)]
    turn, grow = 0.0, 1.0
    if config.share:
        reach = [r + config.elastic_vx * (i in moving) for i, r in enumerate(reach)]
        turn, grow = math.radians(config.rotation_deg), 1 + config.scale
    margin = [0, 0, 0]
    for i in moving:
        # A row of a rotation by at most `turn` is (cos φ, sin φ · a unit vector) with φ ≤ turn.
        across = math.hypot(*(reach[j] for j in moving if j != i))
        angle = min(turn, math.atan2(across, reach[i]))
        most = grow * (reach[i] * math.cos(angle) + across * math.sin(angle))
        margin[i] = math.ceil((most - half[i]) / unit[i] - 1e-6)
    # What becomes an axis of the crop by a symmetry needs the margin of that axis.
    alike = symmetries_of(config.symmetries, size_vx, voxel_size_nm)
    return int3([max(margin[s.axes.index(i)] for s in alike) for i in range(3)])


def control_shape(
    config: WarpConfig, size_vx: Int3, voxel_size_nm: Float3 | None
) -> tuple[int, int, int, int]:
    """Shape of the numbers that the deformation of one sample needs: (3, control z, y, x)."""
    cells = [
        max(1, math.ceil((n - 1) * u / config.elastic_spacing_vx))
        for n, u in zip(size_vx, _unit(voxel_size_nm), strict=True)
    ]
    return 3, cells[0] + 3, cells[1] + 3, cells[2] + 3


@dataclass(frozen=True)
class Warp:
    """The map of one sample, from positions in its crop to positions in its source crop.

    Position p of the crop shows the source where the symmetry takes centre + matrix · (p − centre +
    u(p)), with the displacement u(p) of deformation and shift. Positions are voxel centres, (z, y, x).
    """

    size_vx: Int3
    source_vx: Int3
    symmetry: Symmetry
    matrix: Tensor  # (3, 3) float64
    control: Tensor | None  # (3, cz, cy, cx) float64, displacement in voxels; None: only a symmetry
    spacing_vx: Float3
    shifts: Tensor  # (Z, 3) float64, in voxels
    out_of_plane: bool

    @property
    def _centre(self) -> Tensor:  # (3,)
        return (torch.tensor(self.size_vx, dtype=torch.float64) - 1) / 2

    @property
    def _start(self) -> Int3:
        """Where in the source the crop begins that no warp moves."""
        return int3([(s - n) // 2 for s, n in zip(self.source_vx, self.size_vx, strict=True)])

    def to_source(self, points_vx: Tensor) -> Tensor:
        """Where positions of the crop come from in the source crop: (N, 3) -> (N, 3) float64."""
        points = points_vx.to(torch.float64)
        moved = (points - self._centre + self._displacement(points)) @ self.matrix.T
        return self._turn(moved.T).T

    def to_crop(self, points_vx: Tensor) -> Tensor:
        """Where positions of the source crop are shown in the crop: (N, 3) -> (N, 3) float64.

        Points beyond the crop's faces are placed as if the deformation went on as on its border.
        """
        source = points_vx.to(torch.float64) - torch.tensor(self._start)
        moved = torch.empty_like(source)
        for axis, (along, flip) in enumerate(zip(*self.symmetry, strict=True)):
            one = source[:, along] - self._centre[along]
            moved[:, axis] = -one if flip else one
        straight = moved @ self.matrix.inverse().T + self._centre
        points = straight
        # The gradient of the displacement is below 1 (elastic_vx ≤ spacing / 6): this converges.
        for _ in range(200):
            before, points = points, straight - self._displacement(points)
            if len(points) == 0 or (points - before).abs().max() < 1e-9:
                break
        return points

    def _turn(self, moved: Tensor) -> Tensor:
        """Positions about the centre after the symmetry, in the source: (3, …) -> (3, …)."""
        source = torch.empty_like(moved)
        for axis, (along, flip) in enumerate(zip(*self.symmetry, strict=True)):
            one = -moved[axis] if flip else moved[axis]
            source[along] = one + self._centre[along] + self._start[along]
        return source

    def _displacement(self, points: Tensor) -> Tensor:  # (N, 3) -> (N, 3)
        if self.control is None:
            return torch.zeros_like(points)
        last = torch.tensor(self.size_vx, dtype=torch.float64) - 1
        inside = torch.minimum(points.clamp(min=0), last)
        weights = (
            _weights(*one)
            for one in zip(inside.T, self.spacing_vx, self.control.shape[1:], strict=True)
        )
        smooth = torch.einsum("nz,ny,nx,czyx->nc", *weights, self.control)
        return smooth + self.shifts[(inside[:, 0] + 0.5).long()]

    def _rows(self) -> tuple[Tensor, Tensor]:
        """`to_source` of rows of voxels, as control points along x, and the weights of those.

        (3, Z, Y, cx) and (cx, X), float32.
        """
        assert self.control is not None
        counts = self.control.shape[1:]
        knots = [
            (torch.arange(n, dtype=torch.float64) - 1) * h
            for n, h in zip(counts, self.spacing_vx, strict=True)
        ]
        wz, wy, wx = (
            _weights(torch.arange(n, dtype=torch.float64), h, count)
            for n, h, count in zip(self.size_vx, self.spacing_vx, counts, strict=True)
        )  # (Z, cz), (Y, cy), (X, cx)
        # B-splines reproduce linear maps, so that the whole map is moved control points.
        moved = torch.stack(torch.meshgrid(*knots, indexing="ij")) + self.control
        moved = torch.einsum("zk,ckyx->czyx", wz, moved - self._centre[:, None, None, None])
        moved = torch.einsum("yk,czkx->czyx", wy, moved + self.shifts.T[:, :, None, None])
        moved = self._turn(torch.einsum("ij,jzyx->izyx", self.matrix, moved))
        return moved.float(), wx.T.float()

    def sample(self, image: Tensor, others: Sequence[Tensor] = ()) -> tuple[Tensor, list[Tensor]]:
        """An image by linear interpolation, labels and masks by their nearest voxel.

        Args:
            image: (Z, Y, X) float, the source crop.
            others: (C, Z, Y, X) of any type, of the same voxels; values are picked, never mixed.
        """
        if self.control is None:
            return self._cut(image), [self._cut(other) for other in others]
        # Torch's grid_sample takes twice as long on a CPU, and would not share places with labels.
        rows, weights = (part.to(image.device) for part in self._rows())
        steps = (image.shape[1] * image.shape[2], image.shape[2], 1)
        low = nearest = torch.zeros(1, 1, 1, dtype=torch.int32, device=image.device)
        between: list[tuple[int, Tensor]] = []
        for axis, step in enumerate(steps):
            last = image.shape[axis] - 1
            exact = not self.out_of_plane and axis == self.symmetry.axes[0]  # slices stay slices
            place = (
                rows[axis, :, :1, :1] if exact else _along(rows[axis], weights)
            )  # (Z, Y, X) or (Z, 1, 1)
            at = (place + 0.5).int().clamp_(0, last)
            nearest = nearest + at * step
            if not exact and last > 0:
                at = place.int().clamp_(0, last - 1)
                between.append((step, place.sub_(at).clamp_(0, 1).flatten().to(image.dtype)))
            low = low + at * step
        first, voxels = low.flatten(), image.flatten()

        def linear(start: int, between: Sequence[tuple[int, Tensor]]) -> Tensor:
            if not between:
                return voxels[start:].index_select(0, first)
            (step, part), *rest = between
            return linear(start, rest).lerp_(linear(start + step, rest), part)

        return linear(0, between).view(self.size_vx), [
            other.flatten(1).index_select(1, nearest.flatten()).view(len(other), *self.size_vx)
            for other in others
        ]

    def _cut(self, source: Tensor) -> Tensor:  # (…, Z, Y, X)
        z, y, x = (slice(o, o + n) for o, n in zip(self._start, self.size_vx, strict=True))
        lead = source.dim() - 3
        axes, flips = self.symmetry
        turned = source[..., z, y, x].permute(*range(lead), *(lead + a for a in axes))
        return turned.flip([lead + a for a, flip in enumerate(flips) if flip])


def make_warp(
    config: WarpConfig,
    size_vx: Int3,
    source_vx: Int3,
    voxel_size_nm: Float3 | None,
    *,
    choices: Tensor,
    elastic: Tensor,
    slips: Tensor,
) -> Warp:
    """The warp of one sample out of uniform numbers in [0, 1).

    Args:
        config: how far it may go.
        size_vx: of the crop.
        source_vx: of what it is taken from, at least the crop and its margin.
        voxel_size_nm: of both; needed out of the plane.
        choices: (`CHOICES`,)
        elastic: `control_shape`.
        slips: (Z, 4): whether, how, and how far a slice is shifted.
    """
    _check_units(config, voxel_size_nm)
    unit = torch.tensor(_unit(voxel_size_nm), dtype=torch.float64)
    symmetries = symmetries_of(config.symmetries, size_vx, voxel_size_nm)
    which, free, grow, turn, tip = choices.double().tolist()
    symmetry = symmetries[int(which * len(symmetries))]
    matrix = torch.eye(3, dtype=torch.float64)
    warped = free < config.share
    shifts = _shifts(config, slips.double()) / unit
    control = None
    if warped or shifts.any():
        control = torch.zeros(elastic.shape, dtype=torch.float64)
    if warped and control is not None:
        factor = math.exp((2 * grow - 1) * math.log1p(config.scale))
        angle = (2 * turn - 1) * math.radians(config.rotation_deg)
        rotation = _rotation(angle, tip if config.out_of_plane else None) * factor
        if not config.out_of_plane:
            rotation[0, 0] = 1
        matrix = rotation * unit / unit[:, None]
        control += (elastic.double() * 2 - 1) * config.elastic_vx / unit.view(3, 1, 1, 1)
        if not config.out_of_plane:
            control[0] = 0
    z, y, x = (config.elastic_spacing_vx / unit).tolist()
    return Warp(
        size_vx=size_vx,
        source_vx=source_vx,
        symmetry=symmetry,
        matrix=matrix,
        control=control,
        spacing_vx=(z, y, x),
        shifts=shifts,
        out_of_plane=warped and config.out_of_plane,
    )


def _shifts(config: WarpConfig, slips: Tensor) -> Tensor:
    """How far each slice is from its place, in voxels along x: (Z, 4) -> (Z, 3)."""
    shifts = torch.zeros(len(slips), 3, dtype=torch.float64)
    if config.shifted == 0:
        return shifts
    slipped = slips[:, 0] < config.shifted
    far = torch.where(slipped[:, None], (slips[:, 2:] * 2 - 1) * config.shift_vx, 0.0)
    stays = (slips[:, 1] < 0.5)[:, None]
    shifts[:, 1:] = torch.where(stays, far, 0.0).cumsum(0) + torch.where(stays, 0.0, far)
    return shifts.clamp(-config.shift_vx, config.shift_vx)


def _rotation(angle: float, tip: float | None) -> Tensor:
    """By `angle` about z, or about the axis that `tip` in [0, 1) points out: (3, 3).

    A Fibonacci spiral of 4096 axes covers the sphere evenly, with one number.
    """
    axis = (1.0, 0.0, 0.0)
    if tip is not None:
        turn, height = tip * 4096 * math.pi * (3 - math.sqrt(5)), 1 - 2 * tip
        around = math.sqrt(1 - height * height)
        axis = (height, around * math.sin(turn), around * math.cos(turn))
    z, y, x = axis
    cross = torch.tensor([[0, x, -y], [-x, 0, z], [y, -z, 0]], dtype=torch.float64)
    return (
        torch.eye(3, dtype=torch.float64)
        + math.sin(angle) * cross
        + (1 - math.cos(angle)) * cross @ cross
    )


def _weights(positions: Tensor, spacing: float, count: int) -> Tensor:
    """Weights of the control points of a cubic B-spline at some positions: (N,) -> (N, count)."""
    u = positions / spacing
    knots = torch.arange(count, dtype=torch.float64, device=positions.device) - 1
    far = (u[:, None] - knots).abs()
    near = 2 / 3 - far**2 + far**3 / 2
    return torch.where(far < 1, near, (2 - far).clamp(min=0) ** 3 / 6)


def _along(rows: Tensor, weights: Tensor) -> Tensor:
    """Control points along x, summed with their weights: (Z, Y, cx), (cx, X) -> (Z, Y, X).

    Not a matrix product: autocast and TF32 round those, and so would move voxels.
    """
    place = rows[..., :1] * weights[0]
    for k in range(1, len(weights)):
        place.addcmul_(rows[..., k : k + 1], weights[k])
    return place


def _unit(voxel_size_nm: Float3 | None) -> Float3:
    """Size of a voxel in voxels along x."""
    if voxel_size_nm is None:
        return (1.0, 1.0, 1.0)
    z, y, x = voxel_size_nm
    return (z / x, y / x, 1.0)


def _check_units(config: WarpConfig, voxel_size_nm: Float3 | None) -> None:
    if config.out_of_plane and config.share and voxel_size_nm is None:
        raise ValueError(
            "out_of_plane rotates in nm, but the voxel size is unknown; give voxel_size_nm, or set "
            "out_of_plane to false"
        )


def check_source(
    config: WarpConfig, size_vx: Int3, source_vx: Int3, voxel_size_nm: Float3 | None
) -> None:
    """Refuse a source crop without the margin, naming the axis."""
    margin = margin_vx(config, size_vx, voxel_size_nm)
    wanted = int3([n + 2 * m for n, m in zip(size_vx, margin, strict=True)])
    for axis, n, w in zip("zyx", source_vx, wanted, strict=True):
        if n < w:
            raise BoxError(
                f"crop {source_vx} is too small on {axis} for {size_vx} voxels and their margin of "
                f"{margin}; cut {wanted} (augment.source_vx says so), or ask for less rotation, "
                "scale, elastic_vx or shift_vx"
            )
