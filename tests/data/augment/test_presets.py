import pytest
import torch
from em_data import Key, augment
from em_data.augment.presets import PRESETS, preset


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
