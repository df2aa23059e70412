"""Sets of augmentations and of degradations for kinds of electron microscopy."""

from __future__ import annotations

from em_data.augment.augment import AugmentConfig
from em_data.augment.defects import DefectConfig
from em_data.augment.degrade import DegradeConfig
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


DEGRADATIONS = {
    # An ion beam mills, an electron beam scans along x: curtains along y, and noise along rows. Few
    # electrons, lest the surface be damaged.
    "fib-sem": DegradeConfig(
        defocus=0.4,
        defocus_vx=(0.3, 1.2),
        sampling=0.1,
        sampling_factors=(2,),
        charging=0.15,
        charging_strength=(0.02, 0.08),
        background=0.3,
        curtains=0.5,
        dose=0.9,
        dose_electrons=(30, 300),
        detector=0.3,
        detector_strength=(0.01, 0.04),
        scan=0.4,
        scan_strength=(0.01, 0.04),
    ),
    # A camera below a section: uneven illumination, hot pixels; some sections are scanned instead.
    "ss-tem": DegradeConfig(
        defocus=0.5,
        defocus_vx=(0.3, 1.5),
        sampling=0.1,
        sampling_factors=(2,),
        background=0.4,
        dose=0.9,
        dose_electrons=(20, 200),
        detector=0.4,
        detector_strength=(0.01, 0.04),
        scan=0.2,
        hot=0.3,
    ),
    # Particles on a support, scanned: they charge, the support is uneven, scans are quick.
    "sem-particles": DegradeConfig(
        defocus=0.5,
        defocus_vx=(0.4, 2.0),
        sampling=0.2,
        sampling_factors=(2,),
        charging=0.5,
        charging_strength=(0.05, 0.15),
        background=0.5,
        background_strength=(0.02, 0.06),
        dose=0.9,
        dose_electrons=(10, 150),
        detector=0.4,
        scan=0.6,
        scan_strength=(0.01, 0.06),
        lost=0.1,
    ),
    # A fine probe that a lattice hardly survives: few electrons, and the probe shakes from row to row.
    "stem-lattice": DegradeConfig(
        defocus=0.5,
        defocus_vx=(0.5, 2.5),
        sampling=0.1,
        sampling_factors=(2,),
        background=0.4,
        background_strength=(0.02, 0.06),
        dose=1.0,
        dose_electrons=(8, 100),
        detector=0.3,
        scan=0.7,
        scan_offset=(0.0, 0.02),
        scan_strength=(0.01, 0.08),
        scan_vx=(1.0, 12.0),
        lost=0.1,
    ),
    # Kazimi, Ruzaeva and Sandfeld, arXiv 2402.18286: Gaussian noise and blur, both random. They do not
    # say how strong; so these are ours.
    "published": DegradeConfig(
        defocus=1.0, defocus_vx=(0.0, 2.0), detector=1.0, detector_strength=(0.0, 0.15)
    ),
}


def degradation(name: str) -> DegradeConfig:
    """The degradations of a modality; change single fields with `dataclasses.replace`.

    >>> degradation("fib-sem").curtains > degradation("ss-tem").curtains
    True
    """
    if name not in DEGRADATIONS:
        raise ValueError(f"no degradation preset {name!r}; there are {', '.join(DEGRADATIONS)}")
    return DEGRADATIONS[name]
