"""What the synthetic tissue consists of: ideal grey values and classes, voxel by voxel.

Everything inside a cell follows from the voxel's place in the cell's own frame (along the
process and across it), its depth below the membrane, and hashes of the cell's number. So there
is no list of objects to draw, nothing depends on the box, and organelles run on through slices.
Lengths are in nanometres; grey values go from 0 (black) to 1 (white).
"""

from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from em_data.synthetic.cells import CellMap, Cells, Triple, between, map_cells, segment_distance
from em_data.synthetic.hashing import Float, hash_uniform, smooth_noise

if TYPE_CHECKING:
    from em_data.synthetic.config import SyntheticConfig

CLASSES = ("cytoplasm", "membrane", "mitochondrion", "vesicles", "nucleus", "microtubule")
CYTOPLASM, MEMBRANE, MITOCHONDRION, VESICLES, NUCLEUS, MICROTUBULE = range(len(CLASSES))

Index = NDArray[np.intp]

NUCLEUS_SHARE = 0.74  # radius of the nucleus over that of its cell body
BODY_MITO_PITCH_NM = 480.0
SLOT_NM = 1100.0  # stretch of a process that holds one mitochondrion or one cloud of vesicles
ROOMY_NM = 95.0  # processes with a smaller radius hold neither
CLEARANCE_NM = 28.0  # from the border between cells to the nearest organelle
ROUNDING_NM = 60.0  # of mitochondria that fill their process
CRISTA_PITCH_NM = 62.0
VESICLE_PITCH_NM = 50.0
VESICLE_RADIUS_NM = (16.0, 23.0)
MICROTUBULE_PITCH_NM = 80.0
MICROTUBULE_RADIUS_NM = 15.0  # a tubule of 25 nm with what clings to it


@dataclass(frozen=True, kw_only=True)
class Tissue:
    """Ideal grey values and truth of a box, all (Z, Y, X)."""

    grey: Float
    classes: NDArray[np.uint8]
    instances: NDArray[np.uint32]


@dataclass(frozen=True, kw_only=True)
class Slots:
    """What each stretch of each process holds; all flat, in order of (cell, stretch)."""

    mito: NDArray[np.bool_]
    cloud: NDArray[np.bool_]
    middle: list[Float]  # along, across and over, in the frame of the cell
    mito_half_length: Float
    mito_radius: Float
    cloud_radius: Float


def build_tissue(config: "SyntheticConfig", origin_vx: Triple, size_vx: Triple) -> Tissue:
    """The tissue of a box, which may reach beyond the volume."""
    found = map_cells(config, origin_vx, size_vx)
    painter = _Painter(config, origin_vx, size_vx, found)
    painter.paint_cytoplasm()
    painter.paint_bodies()
    painter.paint_processes()
    painter.paint_membranes()
    return Tissue(
        grey=painter.grey.reshape(size_vx),
        classes=painter.classes.reshape(size_vx),
        instances=found.cells.number.astype(np.uint32)[found.row].reshape(size_vx),
    )


class _Painter:
    """Grey values and classes of a box, all flat, painted one structure over the other."""

    def __init__(
        self, config: "SyntheticConfig", origin_vx: Triple, size_vx: Triple, found: CellMap
    ) -> None:
        self.config, self.seed = config, config.seed
        self.origin_vx, self.size_vx = origin_vx, size_vx
        self.found, self.cells, self.depth = found, found.cells, found.depth
        self.fine = self.noise("fine", 24.0)
        self.coarse = self.noise("coarse", 110.0)
        self.grey = np.empty(self.depth.shape, np.float32)
        self.classes = np.full(self.depth.shape, CYTOPLASM, np.uint8)

    def noise(self, stream: str, pitch_nm: float) -> Float:
        return smooth_noise(
            self.seed,
            stream,
            origin_vx=self.origin_vx,
            size_vx=self.size_vx,
            voxel_size_nm=self.config.voxel_size_nm,
            pitch_nm=pitch_nm,
        ).ravel()

    def from_middle(self, voxels: Index, row: NDArray[np.int32]) -> list[Float]:
        """Displaced places of voxels (z, y, x) from the middle of their cell."""
        return [axis[voxels] - self.cells.middle[row, k] for k, axis in enumerate(self.found.place)]

    def straight_places(self, voxels: Index) -> list[Float]:
        """Places of voxels (z, y, x), not displaced: what is drawn in them stays round."""
        index = np.unravel_index(voxels, self.size_vx)
        return [
            ((at + (start + 0.5)) * voxel).astype(np.float32)
            for at, start, voxel in zip(
                index, self.origin_vx, self.config.voxel_size_nm, strict=True
            )
        ]

    def paint_cytoplasm(self) -> None:
        # Most cells are pale, a few as dark as mitochondria; cell bodies are full of grains.
        body = np.arange(len(self.cells.number)) < self.cells.bodies
        tone = 0.71 - 0.21 * hash_uniform(self.seed, "tone", self.cells.number) ** 2
        tone[body] = 0.66
        grain = np.where(body, np.float32(0.12), np.float32(0.06))
        reticulum = np.where(body, np.float32(0.40), np.float32(0.20))

        row, grey = self.found.row, self.grey
        np.take(tone, row, out=grey)
        grey += 0.03 * self.fine
        grey += 0.035 * self.coarse
        grey -= grain[row] * np.maximum(self.fine - 0.8, 0)
        # Endoplasmic reticulum: broken dark sheets where a smooth noise crosses zero.
        sheet = self.noise("reticulum", 150.0)
        np.abs(sheet, out=sheet)
        sheet *= -8
        sheet += 1
        np.maximum(sheet, 0, out=sheet)
        sheet *= np.clip(self.coarse + 0.4, 0, 1)
        sheet *= reticulum[row]
        grey -= sheet

    def paint_bodies(self) -> None:
        voxels = np.flatnonzero(self.found.row < self.cells.bodies)
        if len(voxels) == 0:
            return
        row = self.found.row[voxels]
        away = self.from_middle(voxels, row)
        distance = np.sqrt(away[0] * away[0] + away[1] * away[1] + away[2] * away[2])
        inside = NUCLEUS_SHARE * self.cells.radius[row] - distance
        np.minimum(inside, self.depth[voxels] - 60, out=inside)

        around = inside < -25
        self.paint_body_mitochondria(
            voxels[around], [axis[around] for axis in away], -25 - inside[around]
        )
        self.paint_nucleus(voxels[inside > 0], inside[inside > 0])

    def paint_nucleus(self, voxels: Index, inside: Float) -> None:
        """Two membranes, and chromatin that is densest along them."""
        rim = np.clip(1 - inside / 260, 0, 1)
        patches = self.noise("chromatin", 130.0)[voxels] + 0.5 * self.coarse[voxels]
        dense = np.clip(2 * (patches + 1.2 * rim - 0.7), 0, 1)
        grey = 0.66 - 0.17 * dense + 0.05 * self.fine[voxels]
        grey -= 0.3 * np.maximum(_band(inside, 6, 6), _band(inside, 33, 6))
        grey += 0.08 * _band(inside, 19, 6)
        self.grey[voxels] = grey
        self.classes[voxels] = NUCLEUS

    def paint_body_mitochondria(self, voxels: Index, away: list[Float], outside: Float) -> None:
        """Mitochondria around the nucleus, one in each cube of a lattice that has room for it."""
        number = self.cells.number[self.found.row[voxels]]
        cube = [np.floor(axis / BODY_MITO_PITCH_NM) for axis in away]
        draw = [hash_uniform(self.seed, f"body mito {k}", number, *cube) for k in range(7)]
        along = [value - 0.5 for value in draw[:3]]
        length = np.sqrt(along[0] * along[0] + along[1] * along[1] + along[2] * along[2]) + 1e-3
        along = [value / length for value in along]
        off = [
            axis - (at + between((0.35, 0.65), jitter)) * BODY_MITO_PITCH_NM
            for axis, at, jitter in zip(away, cube, draw[3:6], strict=True)
        ]
        wall = between((90, 130), draw[6]) - segment_distance(off, along, 110.0)
        wall = _both(_both(wall, self.depth[voxels] - CLEARANCE_NM), outside)
        shown = wall > 0
        phase = off[0] * along[0] + off[1] * along[1] + off[2] * along[2]
        self.paint_mitochondria(voxels[shown], wall[shown], phase[shown])

    def paint_processes(self) -> None:
        voxels = np.flatnonzero((self.depth > CLEARANCE_NM) & (self.found.row >= self.cells.bodies))
        row = self.found.row[voxels]
        away = self.from_middle(voxels, row)
        frame = self.cells.frame
        along, across, over = (
            away[0] * frame[row, k, 0] + away[1] * frame[row, k, 1] + away[2] * frame[row, k, 2]
            for k in range(3)
        )

        stretch = np.floor(along / SLOT_NM + 0.5).astype(np.intp)
        reach = int(np.abs(stretch).max(initial=0))
        slots = _fill_slots(self.config, self.cells, np.arange(-reach, reach + 1))
        slot = row * (2 * reach + 1) + stretch + reach
        off = [
            axis - middle[slot]
            for axis, middle in zip((along, across, over), slots.middle, strict=True)
        ]
        free = np.ones(len(voxels), bool)
        for part in (
            self.paint_slot_mitochondria(slots, slot, voxels, off),
            self.paint_slot_clouds(slots, slot, voxels, off),
        ):
            free[part] = False

        bundle = hash_uniform(self.seed, "bundle", self.cells.number) < self.config.microtubules
        free &= bundle[row]
        self.paint_microtubules(voxels[free], row[free], across[free], over[free])

    def paint_slot_mitochondria(
        self, slots: Slots, slot: Index, voxels: Index, off: list[Float]
    ) -> Index:
        """Mitochondria along processes; returns which of the voxels they take."""
        part = np.flatnonzero(slots.mito[slot])
        slot, along, across, over = slot[part], *(axis[part] for axis in off)
        beyond = np.maximum(np.abs(along) - slots.mito_half_length[slot], 0)
        distance = np.sqrt(beyond * beyond + across * across + over * over)
        wall = _both(slots.mito_radius[slot] - distance, self.depth[voxels[part]] - CLEARANCE_NM)
        shown = wall > 0
        part = part[shown]
        self.paint_mitochondria(voxels[part], wall[shown], (along + 0.3 * across)[shown])
        return part

    def paint_slot_clouds(
        self, slots: Slots, slot: Index, voxels: Index, off: list[Float]
    ) -> Index:
        """Clouds of vesicles in processes; returns which of the voxels they take."""
        part = np.flatnonzero(slots.cloud[slot])
        along, across, over = (axis[part] for axis in off)
        distance = np.sqrt(along * along + across * across + over * over)
        part = part[distance < slots.cloud_radius[slot[part]]]
        self.paint_vesicles(voxels[part])
        return part

    def paint_mitochondria(self, voxels: Index, wall: Float, phase: Float) -> None:
        """Mitochondria from the depth below their outer membrane and the place along them."""
        coarse, fine = self.coarse[voxels], self.fine[voxels]
        matrix = between((0.45, 0.57), hash_uniform(self.seed, "matrix", self.cells.number))
        wave = (phase + 22 * coarse) / CRISTA_PITCH_NM
        wave -= np.floor(wave)
        crista = _band(CRISTA_PITCH_NM * wave, CRISTA_PITCH_NM / 2, 9)
        crista *= np.clip((wall - 20) / 10, 0, 1) * np.clip(1.1 + 0.7 * fine, 0, 1)
        grey = matrix[self.found.row[voxels]] + 0.04 * coarse + 0.04 * fine
        grey -= 0.17 * crista
        grey -= 0.27 * np.maximum(_band(wall, 4, 5), _band(wall, 22, 5))
        self.grey[voxels] = grey
        self.classes[voxels] = MITOCHONDRION

    def paint_vesicles(self, voxels: Index) -> None:
        """Vesicles, one near each place of a lattice: dark rims around pale lumens."""
        place = [axis / VESICLE_PITCH_NM for axis in self.straight_places(voxels)]
        corner = [np.floor(axis - 0.5) for axis in place]
        rim = np.full(len(voxels), np.inf, np.float32)  # from the nearest rim outwards
        for step in product((0, 1), repeat=3):
            at = [index + move for index, move in zip(corner, step, strict=True)]
            square = np.zeros(len(voxels), np.float32)
            for k in range(3):
                jitter = between((0.2, 0.8), hash_uniform(self.seed, f"vesicle {k}", *at))
                square += (place[k] - at[k] - jitter) ** 2
            radius = between(VESICLE_RADIUS_NM, hash_uniform(self.seed, "vesicle", *at))
            np.minimum(rim, np.sqrt(square) * VESICLE_PITCH_NM - radius, out=rim)
        self.grey[voxels] += (
            0.12 * np.clip(-rim / 6, 0, 1) - 0.28 * _band(rim, -2, 5) - np.float32(0.06)
        )
        self.classes[voxels] = VESICLES

    def paint_microtubules(
        self, voxels: Index, row: NDArray[np.int32], across: Float, over: Float
    ) -> None:
        """Tubules along the process, at most one in each square of a lattice across it."""
        square = [np.floor(axis / MICROTUBULE_PITCH_NM) for axis in (across, over)]
        key = (self.cells.number[row], *square)
        distance = np.zeros(len(voxels), np.float32)
        for k, axis in enumerate((across, over)):
            jitter = between((0.25, 0.75), hash_uniform(self.seed, f"microtubule {k}", *key))
            distance += (axis - MICROTUBULE_PITCH_NM * (square[k] + jitter)) ** 2
        distance = np.sqrt(distance)
        shown = hash_uniform(self.seed, "microtubule", *key) < 0.6
        shown &= distance < MICROTUBULE_RADIUS_NM
        shown &= self.depth[voxels] > CLEARANCE_NM + MICROTUBULE_RADIUS_NM
        voxels = voxels[shown]
        self.grey[voxels] += 0.04 - 0.3 * _band(distance[shown], 10, 4)
        self.classes[voxels] = MICROTUBULE

    def paint_membranes(self) -> None:
        """Two dark membranes and the paler gap between them.

        A voxel averages over its thickness: a membrane that is tilted into z looks wide and pale.
        """
        half = self.config.membrane_nm / 2
        smear = self.config.voxel_size_nm[0] / 2
        voxels = np.flatnonzero(self.depth < half + smear)
        depth = self.depth[voxels]
        width = half + smear * self.found.tilt[voxels] ** 2
        dark = np.clip((width - depth) / (0.35 * half), 0, 1)
        dark *= half / width
        dark *= 1 - 0.35 * np.clip(1.4 - 4 * depth / width, 0, 1)
        self.grey[voxels] += (0.29 - self.grey[voxels]) * dark
        self.classes[voxels[depth < half]] = MEMBRANE


def _fill_slots(config: "SyntheticConfig", cells: Cells, stretch: Index) -> Slots:
    """Draw what each stretch of each process holds."""

    def draw(what: str) -> Float:  # (cells, stretches)
        return hash_uniform(config.seed, f"slot {what}", cells.number[:, None], stretch)

    radius, kind, size = cells.radius[:, None], draw("kind"), draw("size")
    roomy = radius > ROOMY_NM
    mito = roomy & (kind < config.mitochondria)
    cloud = roomy & ~mito & (kind < config.mitochondria + config.vesicles)
    along = SLOT_NM * (stretch + between((-0.1, 0.1), draw("along")))
    off = [0.3 * radius * between((-0.5, 0.5), draw(name)) for name in ("across", "over")]
    return Slots(
        mito=mito.ravel(),
        cloud=cloud.ravel(),
        middle=[axis.astype(np.float32).ravel() for axis in (along, *off)],
        mito_half_length=between((140, 400), draw("length")).ravel(),
        mito_radius=np.clip(0.45 * radius + 50 + 60 * size, 90, 220).ravel(),
        cloud_radius=np.clip(0.8 * radius + 100 + 120 * size, 160, 380).ravel(),
    )


def _band(distance: Float, middle: float, half_width: float) -> Float:
    """1 within a band and 0 outside, with slopes of 5 nm."""
    out = np.abs(distance - np.float32(middle))
    out -= half_width + 2.5
    out *= -0.2
    return np.clip(out, 0, 1, out=out)


def _both(one: Float, other: Float) -> Float:
    """The smaller of two depths, with rounded corners: positive only where both are."""
    blend = np.maximum(ROUNDING_NM - np.abs(one - other), 0)
    return np.minimum(one, other) - blend * blend / (4 * ROUNDING_NM)
