"""Grey values of pictures that store something else: indices of a palette of greys, or white as 0."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from em_data.errors import VolumeFormatError
from em_data.volume import Array

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as Pillow's convert("L")
NEARLY_GREY = 8 / 255  # how far the parts of a colour may lie apart: what JPEG and quantising leave
MINISWHITE, PALETTE = 0, 3  # photometric interpretation. TIFF 6.0, page 37


@dataclass(frozen=True)
class Shown:
    """An array whose values become others one by one as they are read."""

    array: Array
    change: Callable[[np.ndarray], np.ndarray]

    @property
    def shape(self) -> tuple[int, ...]:
        """As stored."""
        return self.array.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """As stored."""
        return np.dtype(self.array.dtype)

    @property
    def chunks(self) -> Any:
        """As stored."""
        return getattr(self.array, "chunks", None)

    @property
    def compression(self) -> str | None:
        """As stored."""
        return getattr(self.array, "compression", None)

    def __getitem__(self, index: Any) -> np.ndarray:
        return self.change(self.array[index]).astype(self.dtype, copy=False)


def grey_table(colours: np.ndarray) -> np.ndarray | None:
    """The grey value of each entry of a palette (N, 3); None for a palette of colours.

    Colours tell indices apart, as those of labels: then the index itself is the value.

    >>> grey_table(np.array([[255, 255, 255], [80, 81, 79], [0, 0, 0]], np.uint8)).tolist()
    [255, 80, 0]
    >>> grey_table(np.array([[255, 0, 0], [0, 255, 0]], np.uint8)) is None
    True
    """
    spread = np.ptp(colours.astype(np.float64), axis=1).max(initial=0)
    if spread > NEARLY_GREY * np.iinfo(colours.dtype).max:
        return None
    return np.rint(colours @ np.array(LUMA)).astype(colours.dtype)


def shown(path: object, array: Array, page: Any) -> Array:
    """The grey values of pages of a TIFF file that are like `page`."""
    dtype, kind = np.dtype(array.dtype), getattr(page, "photometric", None)
    if kind == MINISWHITE and dtype.kind != "b":  # masks of bits, which libraries write so, stay
        if dtype.kind == "f":
            raise VolumeFormatError(
                f"{path} says that 0 is white and holds {dtype}, of which no value is black; write it "
                "anew with 0 as black"
            )
        return Shown(array, partial(np.subtract, 2**page.bitspersample - 1))
    if kind == PALETTE and page.colormap is not None:
        colours = np.asarray(page.colormap).T  # (N, 3) uint16
        if (
            dtype.itemsize == 1 and colours.max(initial=0) > 255
        ):  # some writers leave 8 bits as they are
            colours = colours >> 8
        table = grey_table(colours.astype(dtype if dtype.kind == "u" else np.uint16))
        return array if table is None else Shown(array, partial(np.take, table))
    return array
