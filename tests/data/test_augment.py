import pytest
import torch
from em_data import Key, augment


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
