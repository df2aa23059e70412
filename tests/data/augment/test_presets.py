import pytest
import torch
from em_data import Key, augment
from em_data.augment.presets import DEGRADATIONS, PRESETS, degradation, preset


@pytest.mark.parametrize(
    ("name", "size", "voxel"),
    [
        ("fib-sem", (24, 24, 24), (8.0, 8.0, 8.0)),
        ("fib-sem", (1, 48, 48), (8.0, 8.0, 8.0)),
        ("ss-tem", (5, 64, 64), (40.0, 4.0, 4.0)),
        ("ss-tem", (1, 64, 64), None),
    ],
)
def test_presets_run_on_cubes_stacks_and_slices(name, size, voxel):
    config = preset(name)
    source = augment.source_vx(size, config, voxel)
    images = torch.rand(6, *source, generator=torch.Generator().manual_seed(0))
    keys = [Key(0, n) for n in range(6)]
    changed, labels, valid = augment.apply(
        images,
        (images > 0.5)[:, None],
        torch.ones(6, 1, *source, dtype=torch.bool),
        keys,
        config,
        seed=1,
        size_vx=size,
        voxel_size_nm=voxel,
    )
    assert changed.shape == (6, *size) and labels.shape == valid.shape == (6, 1, *size)
    assert changed.isfinite().all() and changed.min() >= 0 and changed.max() <= 1
    assert valid.all() and 0.3 < labels.float().mean() < 0.7


def test_fib_sem_reaches_every_direction_and_sections_stay_sections():
    assert preset("fib-sem").warp.out_of_plane and not preset("ss-tem").warp.out_of_plane
    assert preset("ss-tem").defects.folded > preset("fib-sem").defects.folded
    assert preset("ss-tem").photometry_per_slice > preset("fib-sem").photometry_per_slice
    with pytest.raises(ValueError, match=f"there are {', '.join(PRESETS)}"):
        preset("xray")


@pytest.mark.parametrize("name", DEGRADATIONS)
@pytest.mark.parametrize("shape", [(12, 1, 64, 64), (6, 3, 45, 70)])
def test_degradations_change_what_they_are_given_and_stay_in_its_range(name, shape):
    images = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    images[0], images[1] = 0, 1  # nothing to see, and nothing but light
    keys = [Key(0, n) for n in range(shape[0])]
    changed = augment.degrade(images, keys, degradation(name), seed=1)
    assert changed.shape == shape and changed.isfinite().all()
    assert changed.min() >= 0 and changed.max() <= 1
    assert (changed != images).flatten(1).any(1).float().mean() > 0.7


def test_degradations_are_those_of_their_instruments():
    assert set(DEGRADATIONS) == {
        *("fib-sem", "ss-tem", "sem-particles", "stem-lattice", "published")
    }
    assert [n for n, config in DEGRADATIONS.items() if config.curtains] == ["fib-sem"]
    published = degradation("published")
    assert {k for k in augment.KINDS if getattr(published, k)} == {"defocus", "detector"}
    with pytest.raises(ValueError, match=f"'xray'; there are {', '.join(DEGRADATIONS)}"):
        degradation("xray")


def test_strong_offsets_that_no_crop_shows_are_in_no_preset():
    """Rows and background of a small crop cannot be told from its tissue."""
    for config in DEGRADATIONS.values():
        assert not config.scan or config.scan_offset[1] <= 0.02
        assert not config.background or config.background_strength[1] <= 0.06
