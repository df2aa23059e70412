"""Crops out of a collection of images: each is decoded whole, and its grey range is measured then.

Measuring half a million of them before the first batch would read them all.
"""

from __future__ import annotations

import warnings

import numpy as np

from em_data.errors import VolumeReadError
from em_data.formats.images import Images
from em_data.geometry import Box
from em_data.intensity import range_of
from em_data.sampler.crop import Sample


class ImageReader:
    """Reads crops of images, from several threads."""

    def __init__(self, images: Images) -> None:
        self.images = images
        # Scale and shift of each image, (2, V); not a number until it is read.
        self.grey = np.full((2, len(images)), np.nan, np.float32)

    def read(self, sample: Sample, *, is_last: bool) -> tuple[np.ndarray | None, int]:
        """A crop and the bytes that were decoded for it.

        No crop where the image is damaged, its address says to skip such, and others can be drawn.
        """
        image = self.images[sample.volume]
        try:
            whole = image.read(Box((0, 0, 0), image.shape))
        except VolumeReadError as error:
            if is_last or not self.images.skips_unreadable:
                raise
            warnings.warn(f"left out, as the address says: {error}", stacklevel=2)
            return None, 0
        if np.isnan(self.grey[0, sample.volume]):
            grey = range_of([whole])
            self.grey[:, sample.volume] = grey.scale, grey.shift
        return whole[sample.box.slices].copy(), whole.nbytes  # the rest of it is not kept
