"""Sets of augmentations for kinds of electron microscopy."""

from __future__ import annotations

from em_data.augment.augment import AugmentConfig
from em_data.augment.defects import DefectConfig
from em_data.augment.warp import WarpConfig

PRESETS = {
    # The ion beam mills isotropic voxels off a block: no direction is special, slices lie where they
    # belong, and what is wrong with one is its brightness or focus.
    "fib-sem": AugmentConfig(
        warp=WarpConfig(
            symmetries="box",
            rotation_deg=15,
            scale=0.1,
            elastic_vx=4,
            elastic_spacing_vx=32,
            out_of_plane=True,
        ),
        defects=DefectConfig(blurred=0.005, blurred_vx=2, faded=0.005),
        photometry=0.3,
        photometry_per_slice=0.1,
    ),
    # Thin sections are cut, picked up, stained and imaged one by one: they vary, slip, fold and get
    # lost, and they are much thicker than a pixel is wide.
    "ss-tem": AugmentConfig(
        warp=WarpConfig(
            symmetries="box",
            rotation_deg=45,
            scale=0.1,
            elastic_vx=10,
            elastic_spacing_vx=80,
            shifted=0.05,
            shift_vx=10,
        ),
        defects=DefectConfig(missing=0.01, blurred=0.02, faded=0.03, folded=0.02, stitched=0.03),
        photometry=0.4,
        photometry_per_slice=0.6,
    ),
}


def preset(name: str) -> AugmentConfig:
    """The augmentation of a modality; change single fields with `dataclasses.replace`.

    >>> preset("fib-sem").warp.out_of_plane, preset("ss-tem").warp.out_of_plane
    (True, False)
    """
    if name not in PRESETS:
        raise ValueError(f"no augmentation preset {name!r}; there are {', '.join(PRESETS)}")
    return PRESETS[name]
