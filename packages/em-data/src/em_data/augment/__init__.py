"""Changes of a batch on the device: warps, grey values, defects. Needs torch."""

from em_data.augment.augment import (
    AugmentConfig,
    apply,
    change_grey,
    draw,
    draw_warps,
    photometry,
    source_vx,
)
from em_data.augment.symmetry import symmetries, transform, transform_back

__all__ = [
    "AugmentConfig",
    "apply",
    "change_grey",
    "draw",
    "draw_warps",
    "photometry",
    "source_vx",
    "symmetries",
    "transform",
    "transform_back",
]
