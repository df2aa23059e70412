"""Changes of a batch on the device: warps, grey values, defects, degradations. Needs torch."""

from em_data.augment.augment import (
    AugmentConfig,
    apply,
    change_grey,
    draw,
    draw_warps,
    photometry,
    source_vx,
)
from em_data.augment.blind_spot import BlindSpotConfig, blind_spots
from em_data.augment.degrade import (
    BACKGROUND,
    KINDS,
    NOISE,
    SAMPLING,
    DegradeConfig,
    degrade,
    only,
)
from em_data.augment.presets import DEGRADATIONS, degradation
from em_data.augment.symmetry import symmetries, transform, transform_back

__all__ = [
    "BACKGROUND",
    "DEGRADATIONS",
    "KINDS",
    "NOISE",
    "SAMPLING",
    "AugmentConfig",
    "BlindSpotConfig",
    "DegradeConfig",
    "apply",
    "blind_spots",
    "change_grey",
    "degradation",
    "degrade",
    "draw",
    "draw_warps",
    "only",
    "photometry",
    "source_vx",
    "symmetries",
    "transform",
    "transform_back",
]
