import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from em_data import CubeConfig, GreyRange, Volume, open_volume
from em_models import DenseEncoder, DenseEncoderConfig, Vit3d, Vit3dConfig
from em_train.dense.codes import grid_maps
from em_train.dense.run import DenseRun
from em_train.features.patches import bank_maps, places, raw_patches
from em_train.features.slab import Slab, patch_grid
from em_train.mae.data import DataConfig
from em_train.mae.run import MaeRun

PATCH = (2, 8, 8)


@pytest.fixture(scope="module")
def volume():
    voxels = np.random.default_rng(0).integers(0, 256, (8, 48, 64), np.uint8)
    return Volume(voxels, "noise", "numpy", (16.0, 8.0, 8.0))


def slab(volume, origin=(1, 2, 1), size=(2, 3, 4)):
    return Slab(volume, GreyRange(10, 240), PATCH, origin, size)


def mae_run():
    torch.manual_seed(0)
    config = Vit3dConfig(patch_vx=PATCH, width=24, depth=2, heads=2, positions="sincos")
    return MaeRun(Vit3d(config).eval(), DataConfig(cube=CubeConfig(size_vx=(4, 32, 32))))


def test_maps_of_a_vit_belong_to_their_patches(volume):
    run, part = mae_run(), slab(volume)
    first, last = run.maps(part, (0, 2))
    assert first.shape == last.shape == (24, 2, 3, 4)
    # Before the first block a token is a function of its patch, but for where it lies in the window.
    origin = part.box.origin_vx
    patch = volume.array[
        origin[0] : origin[0] + 2, origin[1] : origin[1] + 8, origin[2] : origin[2] + 8
    ]
    other = volume.array.copy()
    z, y, x = (slice(o, o + p) for o, p in zip(origin, PATCH, strict=True))
    other[z, y, x] = 255 - patch
    changed = Volume(other, "other", "numpy", volume.voxel_size_nm)
    moved = (run.maps(slab(changed), (0,))[0] - first).abs().amax(0) > 1e-6
    assert moved[0, 0, 0] and moved.sum() == 1
    # Voxels in [0, 1] go the same way as bytes.
    grey = Volume(GreyRange(10, 240).unit(volume.array), "float", "numpy", volume.voxel_size_nm)
    same = run.maps(part._replace(volume=grey, grey=GreyRange(0, 1)), (2,))[0]
    clipped = (volume.array < 10) | (volume.array > 240)
    assert clipped.mean() < 0.12  # in [0, 1] they are clipped, bytes are not
    assert float((same - last).abs().mean()) < 0.3 * float(last.std())
    assert not torch.equal(run.untrained(1).maps(part, (2,))[0], last)


def test_a_patch_of_a_dense_encoder_has_the_mean_of_its_codes(volume):
    torch.manual_seed(0)
    encoder = DenseEncoder(DenseEncoderConfig(classes=4, embedding=8)).eval()
    run = DenseRun(encoder, SimpleNamespace(stack=SimpleNamespace(size_vx=45)))
    part = slab(volume, origin=(1, 0, 0), size=(1, 6, 8))
    (found,) = run.maps(part)
    assert found.shape == (8, 1, 6, 8)
    planes = [
        grid_maps(encoder, torch.from_numpy(part.grey.unit(volume.array[z])), 4).embedding
        for z in (2, 3)
    ]
    mean = torch.stack(planes).mean(0)[:, 8:10, 4:6].mean((1, 2))  # of patch (4, 2)
    torch.testing.assert_close(found[:, 0, 4, 2], mean, rtol=1e-4, atol=1e-5)
    assert run.knows_where(volume, -1, 0) < 0.2  # it cannot know


def test_a_vit_with_positions_knows_where_it_is_unless_noise_drowns_it(volume):
    flat = Volume(np.full((8, 48, 64), 100, np.uint8), "flat", "numpy", volume.voxel_size_nm)
    found = [mae_run().knows_where(one, 0, 0) for one in (flat, volume)]
    assert found[0] > 0.95 and 0.05 < found[1] < 0.5


def test_components_keep_what_varies(volume):
    fit, score = raw_patches(slab(volume), slab(volume, origin=(0, 0, 0), size=(1, 6, 8)))
    assert fit.shape[1:] == (2, 3, 4) and score.shape[1:] == (1, 6, 8)
    points = fit.flatten(1).T
    covariance = points.T @ points
    off = covariance - covariance.diag().diag()
    assert off.abs().max() < 1e-3 * covariance.diag().max()  # components are uncorrelated
    image = torch.from_numpy(slab(volume).grey.unit(volume.array))
    box = slab(volume).box
    whole = image[box.slices].unfold(0, 2, 2).unfold(1, 8, 8).unfold(2, 8, 8).flatten(3)
    centred = whole.flatten(0, 2) - whole.flatten(0, 2).mean(0)
    # 24 patches span at most 23 directions: nothing of them is lost.
    assert float(points.square().sum()) == pytest.approx(float(centred.square().sum()), rel=1e-3)


def test_the_bank_and_the_place(volume):
    part = slab(volume)
    bank = bank_maps(part)
    assert bank.shape == (80, 2, 3, 4) and bool(bank.isfinite().all())
    at = places(part)
    assert at.shape == (51, 2, 3, 4)
    assert at[:3, 1, 2, 3].tolist() == [2.5, 4.5, 4.5]
    assert float(at[3, 0, 0, 0]) == pytest.approx(math.sin(1.5), abs=1e-5)


def test_a_volume_smaller_than_a_patch_is_named():
    thin = open_volume(np.zeros((1, 96, 96), np.uint8))
    with pytest.raises(ValueError, match=r"array in memory: volume of .* give a larger volume"):
        patch_grid(thin, (2, 8, 8))
