import dataclasses

import pytest
import torch
from em_data import BoxError, Key, augment
from em_data.augment import AugmentConfig
from em_data.augment.defects import DefectConfig
from em_data.augment.warp import WarpConfig

# Everything at once, and everything strong.
ALL = AugmentConfig(
    warp=WarpConfig(share=0.7, shifted=0.2, elastic_vx=4, elastic_spacing_vx=24),
    defects=DefectConfig(missing=0.1, blurred=0.2, faded=0.2, folded=0.2, stitched=0.2),
    photometry_per_slice=0.5,
    share=0.5,
    clahe_clip=3.0,
    clahe_tile_vx=16,
)
SIZE, VOXEL = (5, 32, 32), (40.0, 4.0, 4.0)
NOTHING = AugmentConfig(
    warp=WarpConfig(symmetries="none", share=0), photometry=0, share=0, blur_vx=0
)


def batch(keys, config=ALL, size=SIZE):
    """Images, labels and mask that belong to their keys."""
    source = augment.source_vx(size, config, VOXEL)
    images = torch.stack(
        [torch.rand(source, generator=torch.Generator().manual_seed(k.number)) for k in keys]
    )
    labels = (images * 1000).long()[:, None] + 2**40
    return images, labels, images[:, None] > 0.1


def apply(keys, config=ALL, size=SIZE, seed=3):
    images, labels, valid = batch(keys, config, size)
    return augment.apply(
        images, labels, valid, keys, config, seed=seed, size_vx=size, voxel_size_nm=VOXEL
    )


def test_the_eight_symmetries_are_all_different_and_undone():
    image = torch.arange(16.0).view(1, 1, 4, 4)
    seen = set()
    for k in range(8):
        turned = augment.transform(image, [k])
        seen.add(tuple(turned.flatten().tolist()))
        torch.testing.assert_close(augment.transform_back(turned, [k]), image)
    assert len(seen) == 8


def test_draws_belong_to_samples_not_to_batches():
    keys = [Key(0, n) for n in range(6)]
    whole = augment.draw(0, 1, keys, (3,), "cpu")
    parts = [augment.draw(0, 1, keys[i : i + 2], (3,), "cpu") for i in (0, 2, 4)]
    torch.testing.assert_close(torch.cat(parts), whole)
    assert augment.symmetries(torch.tensor([0.0, 0.51, 0.999])) == [0, 4, 7]


def test_photometry_changes_each_slice_by_itself_and_keeps_order():
    slices = torch.rand(2, 3, 8, 8)
    uniform = augment.draw(0, 3, [Key(0, 0), Key(0, 1)], (3, 3), "cpu")
    changed = augment.photometry(slices, uniform, 0.3)
    assert changed.min() >= 0 and changed.max() <= 1
    assert not torch.allclose(changed, slices, atol=0.01)
    alone = augment.photometry(slices[:1, 1:2], uniform[:1, 1:2], 0.3)
    torch.testing.assert_close(alone, changed[:1, 1:2])
    # Brightness and contrast are monotone: the order of grey values stays.
    order = changed[0, 0].flatten()[slices[0, 0].flatten().argsort()]
    assert (order.diff() >= 0).all()
    assert augment.photometry(slices, uniform, 0) is slices


def test_neutral_draw_changes_nothing():
    slices = torch.rand(1, 1, 4, 4) * 0.8 + 0.1
    neutral = torch.full((1, 1, 3), 0.5)
    torch.testing.assert_close(augment.photometry(slices, neutral, 0.5), slices)
    assert augment.photometry(slices, neutral, 0.5).mean() == pytest.approx(float(slices.mean()))


def test_a_sample_is_the_same_in_any_batch():
    keys = [Key(1, n) for n in range(12)]
    whole = apply(keys)
    for rows in ([5], [11, 0, 7], [3, 4, 5, 6]):
        images, labels, valid = apply([keys[row] for row in rows])
        assert torch.equal(labels, whole[1][rows]) and torch.equal(valid, whole[2][rows])
        torch.testing.assert_close(images, whole[0][rows], atol=1e-5, rtol=0)
    for other in (apply(keys, seed=4), apply([Key(2, n) for n in range(12)])):
        assert (other[0] != whole[0]).flatten(1).any(1).all()


def test_labels_and_mask_lie_under_the_image_whatever_is_drawn():
    config = dataclasses.replace(
        ALL, defects=DefectConfig(), photometry=0, share=0, warp=WarpConfig(shifted=0.3)
    )
    keys = [Key(0, n) for n in range(8)]
    images, _, valid = batch(keys, config)
    smooth = torch.nn.functional.avg_pool3d(images[:, None], (1, 9, 9), 1, (0, 4, 4))[:, 0]
    marks = (smooth > 0.5).long()[:, None]
    shown, moved, _ = augment.apply(
        smooth, marks, valid, keys, config, seed=0, size_vx=SIZE, voxel_size_nm=VOXEL
    )
    clear = (shown - 0.5).abs() > 0.02
    assert clear.float().mean() > 0.4
    assert ((shown > 0.5).long() == moved[:, 0])[clear].float().mean() > 0.999


def test_autocast_moves_no_voxel():
    keys = [Key(0, n) for n in range(4)]
    expected = apply(keys)
    with torch.autocast("cpu", torch.bfloat16):
        found = apply(keys)
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)


def test_without_anything_to_do_the_middle_comes_out():
    keys = [Key(0, n) for n in range(3)]
    images, labels, valid = batch(keys, NOTHING, (7, 20, 30))
    shown, moved, mask = augment.apply(images, labels, valid, keys, NOTHING, seed=0)
    assert torch.equal(shown, images) and torch.equal(moved, labels) and torch.equal(mask, valid)
    shown, moved, mask = augment.apply(
        images, None, None, keys, NOTHING, seed=0, size_vx=(5, 10, 30)
    )
    assert torch.equal(shown, images[:, 1:6, 5:15]) and moved is None and mask is None
    shown, moved, mask = augment.apply(images, None, valid, keys, NOTHING, seed=0)
    assert moved is None and torch.equal(mask, valid)


def test_the_input_is_left_alone():
    keys = [Key(0, n) for n in range(4)]
    for config in (ALL, dataclasses.replace(ALL, warp=NOTHING.warp)):
        images, labels, valid = batch(keys, config)
        before = images.clone()
        augment.apply(
            images, labels, valid, keys, config, seed=0, size_vx=SIZE, voxel_size_nm=VOXEL
        )
        assert torch.equal(images, before)


def test_photometry_can_be_shared_by_the_slices_of_a_sample():
    images = torch.rand(6, 1, 16, 16).expand(6, 4, 16, 16).clone()
    keys = [Key(0, n) for n in range(6)]
    shared = dataclasses.replace(NOTHING, photometry=0.5)
    changed = augment.change_grey(images.clone(), keys, shared, seed=0)
    torch.testing.assert_close(changed, changed[:, :1].expand_as(changed))
    assert (changed - images).abs().mean() > 0.02
    apart = dataclasses.replace(shared, photometry_per_slice=1.0)
    changed = augment.change_grey(images.clone(), keys, apart, seed=0)
    assert (changed[:, 1:] - changed[:, :1]).abs().mean((-2, -1)).min() > 1e-3


def test_missing_slices_stay_black_under_noise_and_contrast():
    config = dataclasses.replace(
        NOTHING, photometry=0.5, share=1, gaussian=0.2, defects=DefectConfig(missing=1.0)
    )
    keys = [Key(0, n) for n in range(8)]
    changed = augment.change_grey(torch.full((8, 4, 16, 16), 0.5), keys, config, seed=0)
    black = (changed == 0).float().mean((-2, -1))
    assert (black == 1).float().mean() > 0.2 and black.mean() > 0.6 and changed.max() > 0.5


def test_the_two_noises_are_independent():
    keys = [Key(0, n) for n in range(20)]
    both = []
    for own in ({"gaussian": 0.1, "electrons": 0.0}, {"gaussian": 0.0, "electrons": 50.0}):
        config = dataclasses.replace(NOTHING, share=1, **own)
        changed = augment.change_grey(torch.full((20, 1, 64, 64), 0.5), keys, config, seed=0)
        both.append((changed - 0.5).flatten())
    assert both[0].std() > 0.02 and both[1].std() > 0.02
    assert torch.corrcoef(torch.stack(both))[0, 1].abs() < 0.02


@pytest.mark.parametrize(
    "effect", [{"blur_vx": 2.0}, {"gaussian": 0.2}, {"electrons": 20.0}, {"clahe_clip": 3.0}]
)
def test_each_effect_befalls_its_share_of_the_samples(effect):
    keys = [Key(0, n) for n in range(300)]
    images = torch.rand(300, 1, 24, 24, generator=torch.Generator().manual_seed(0)) * 0.5 + 0.25
    none = {"blur_vx": 0.0, "gaussian": 0.0, "electrons": 0.0}
    config = dataclasses.replace(NOTHING, share=0.3, clahe_tile_vx=8, **(none | effect))
    changed = augment.change_grey(images.clone(), keys, config, seed=0)
    befallen = (changed != images).flatten(1).any(1).float().mean()
    assert 0.2 < befallen < 0.4


def test_what_does_not_fit_is_refused():
    keys = [Key(0, 0), Key(0, 1)]
    images = torch.zeros(2, 5, 32, 32)
    with pytest.raises(BoxError, match="too small on y"):
        augment.apply(images, None, None, keys, ALL, seed=0, voxel_size_nm=VOXEL)
    with pytest.raises(ValueError, match=r"labels have shape \(2, 1, 5, 32, 30\) beside images"):
        augment.apply(images, torch.zeros(2, 1, 5, 32, 30), None, keys, NOTHING, seed=0)
    with pytest.raises(ValueError, match="wanted one key for each of 2 images, got 1"):
        augment.apply(images, None, None, keys[:1], NOTHING, seed=0)
    with pytest.raises(ValueError, match=r"images are uint8 .* Batch.image"):
        augment.apply(images.byte(), None, None, keys, NOTHING, seed=0)
    with pytest.raises(ValueError, match="share must lie in 0 to 1, got 3"):
        AugmentConfig(share=3)
    with pytest.raises(ValueError, match="clahe_clip must be 0"):
        AugmentConfig(clahe_clip=0.5)
