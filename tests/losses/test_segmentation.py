import math

import numpy as np
import pytest
import torch
from em_losses import (
    SegmentationSums,
    bce_dice,
    binary_sums,
    boundary_weight,
    dice_loss,
    exclusive_sums,
    mean_cross_entropy,
    softmax_dice,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import binary_dilation
from scipy.special import expit, log_expit, log_softmax


def binary_reference(logits, target, valid, weight, focal, class_weights):
    """BCE + Dice in float64 numpy, pixel by pixel as the formulas say."""
    x, y = logits.double().numpy(), target.double().numpy()
    v = np.broadcast_to(valid.numpy(), x.shape)
    w = np.broadcast_to(weight.double().numpy(), x.shape)
    p = expit(x)
    entropy = -(y * log_expit(x) + (1 - y) * log_expit(-x))
    entropy = entropy * (1 - np.where(y > 0.5, p, 1 - p)) ** focal
    losses, dices, weights = [], [], []
    for c, own in enumerate(class_weights):
        keep = v[:, c]
        if not keep.any():
            continue
        losses.append((entropy[:, c] * w[:, c])[keep].sum() / w[:, c][keep].sum())
        overlap = (p[:, c] * y[:, c])[keep].sum()
        dices.append(1 - (2 * overlap + 1) / (p[:, c][keep].sum() + y[:, c][keep].sum() + 1))
        weights.append(own)
    return np.average(losses, weights=weights) + np.average(dices, weights=weights)


def exclusive_reference(logits, target, valid, weight, focal, class_weights):
    x, y, v = logits.double().numpy(), target.numpy(), valid.numpy()
    log_p, classes = log_softmax(x, axis=1), x.shape[1]
    own = np.array(class_weights)[y] * weight.double().numpy()
    log_own = np.take_along_axis(log_p, y[:, None], 1)[:, 0]
    entropy = -log_own * (1 - np.exp(log_own)) ** focal
    loss = (entropy * own)[v].sum() / own[v].sum()
    dices = []
    for c in range(classes):
        p, true = np.exp(log_p[:, c])[v], (y == c)[v]
        dices.append(1 - (2 * (p * true).sum() + 1) / (p.sum() + true.sum() + 1))
    return loss + np.average(dices, weights=class_weights)


@pytest.mark.parametrize("shape", [(3, 2, 7, 9), (2, 3, 3, 4, 5), (4, 1, 33), (60, 3)])
@pytest.mark.parametrize("focal", [0.0, 2.0])
def test_bce_dice_equals_the_reference(shape, focal):
    torch.manual_seed(0)
    for sigma in (1.0, 30.0):
        logits = sigma * torch.randn(shape)
        target, valid = torch.rand(shape) > 0.7, torch.rand(shape) > 0.3
        weight = 5 * torch.rand(shape[0], 1, *shape[2:])
        class_weights = [1.0, 3.0, 0.5][: shape[1]]
        got = bce_dice(
            logits, target, valid=valid, weight=weight, focal=focal, class_weights=class_weights
        )
        want = binary_reference(logits, target, valid, weight, focal, class_weights)
        assert float(got) == pytest.approx(want, rel=1e-5)


@pytest.mark.parametrize("focal", [0.0, 2.0])
def test_softmax_dice_equals_the_reference(focal):
    torch.manual_seed(0)
    for sigma in (1.0, 30.0):
        logits, target = sigma * torch.randn(3, 4, 7, 9), torch.randint(4, (3, 7, 9))
        valid, weight = torch.rand(3, 7, 9) > 0.3, torch.rand(3, 7, 9)
        class_weights = [1.0, 2.0, 0.5, 1.0]
        options = {"valid": valid, "weight": weight, "focal": focal, "class_weights": class_weights}
        want = exclusive_reference(logits, target, valid, weight, focal, class_weights)
        assert float(softmax_dice(logits, target, **options)) == pytest.approx(want, rel=1e-5)


@pytest.mark.parametrize("focal", [0.0, 1.0, 2.0])
def test_gradients_equal_numerical_ones(focal):
    torch.manual_seed(0)
    logits = torch.randn(2, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    target, valid = torch.rand(2, 3, 4, 4) > 0.5, torch.rand(2, 3, 4, 4) > 0.3
    classes, seen = torch.randint(3, (2, 4, 4)), torch.rand(2, 4, 4) > 0.3

    assert torch.autograd.gradcheck(lambda x: bce_dice(x, target, valid=valid, focal=focal), logits)
    assert torch.autograd.gradcheck(
        lambda x: softmax_dice(x, classes, valid=seen, focal=focal), logits
    )


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.booleans())
def test_pixels_that_nobody_labelled_do_not_matter(seed, exclusive):
    generator = torch.Generator().manual_seed(seed)
    shape = (2, 3, 6, 6)
    logits = torch.randn(shape, generator=generator, requires_grad=True)
    if exclusive:
        target = torch.randint(3, (2, 6, 6), generator=generator)
        other = torch.randint(3, (2, 6, 6), generator=generator)
        valid = torch.rand(2, 6, 6, generator=generator) > 0.5
        loss, hidden = softmax_dice, ~valid[:, None].expand(shape)
    else:
        target = (torch.rand(shape, generator=generator) > 0.5).float()
        other = (torch.rand(shape, generator=generator) > 0.5).float()
        valid = torch.rand(shape, generator=generator) > 0.5
        loss, hidden = bce_dice, ~valid
    first = loss(logits, target, valid=valid)
    second = loss(logits, torch.where(valid, target, other), valid=valid)
    assert torch.equal(first, second)
    first.backward()
    assert not logits.grad[hidden].any()
    assert logits.grad[~hidden].all()


@pytest.mark.parametrize("exclusive", [True, False])
def test_all_ignored_gives_zero_and_no_gradient(exclusive):
    logits = torch.randn(2, 3, 4, 4, requires_grad=True)
    if exclusive:
        target, valid = torch.zeros(2, 4, 4, dtype=torch.int64), torch.zeros(2, 4, 4).bool()
        loss = softmax_dice(logits, target, valid=valid)
    else:
        target, valid = torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 4, 4).bool()
        loss = bce_dice(logits, target, valid=valid)
    loss.backward()
    assert loss.item() == 0
    assert not logits.grad.any()


def test_a_class_that_nobody_labelled_has_no_part_in_the_average():
    logits, target = torch.randn(2, 3, 8, 8), (torch.rand(2, 3, 8, 8) > 0.5).float()
    valid = torch.ones(2, 3, 8, 8, dtype=torch.bool)
    valid[:, 1] = False
    torch.testing.assert_close(
        bce_dice(logits, target, valid=valid), bce_dice(logits[:, ::2], target[:, ::2])
    )


@pytest.mark.parametrize("exclusive", [True, False])
def test_sums_of_parts_are_those_of_the_global_batch(exclusive):
    """What ranks add up, and what the mean of their losses would not be."""
    logits = torch.randn(6, 3, 8, 8)
    if exclusive:
        target, function = torch.randint(3, (6, 8, 8)), exclusive_sums
    else:
        target, function = torch.rand(6, 3, 8, 8) > 0.8, binary_sums
    whole = function(logits, target)
    parts = [function(*pair) for pair in zip(logits.split(2), target.split(2), strict=True)]
    added = SegmentationSums(*(sum(fields) for fields in zip(*parts, strict=True)))
    for one, other in zip(added, whole, strict=True):
        torch.testing.assert_close(one, other)
    torch.testing.assert_close(dice_loss(added), dice_loss(whole))
    assert not math.isclose(sum(map(dice_loss, parts)) / 3, dice_loss(whole), rel_tol=1e-3)


def test_reduce_is_applied_to_every_sum():
    """Two equal ranks: twice each sum gives the cross-entropy of one, and Dice with half the slack."""
    sums = binary_sums(torch.randn(2, 3, 8, 8), torch.rand(2, 3, 8, 8) > 0.5)
    for pooled in (False, True):
        torch.testing.assert_close(
            mean_cross_entropy(sums, pooled=pooled, reduce=lambda x: 2 * x),
            mean_cross_entropy(sums, pooled=pooled),
        )
    torch.testing.assert_close(
        dice_loss(sums, reduce=lambda x: 2 * x, smooth=2.0), dice_loss(sums, smooth=1.0)
    )


def test_extremes():
    target = torch.rand(2, 2, 8, 8) > 0.5
    assert float(bce_dice(200.0 * (2 * target.float() - 1), target)) == 0
    assert float(bce_dice(-200.0 * (2 * target.float() - 1), target)) == pytest.approx(
        201, rel=0.01
    )
    absent = torch.zeros(1, 1, 8, 8)
    assert float(dice_loss(binary_sums(absent - 100, absent))) == pytest.approx(0, abs=1e-6)


def test_half_precision_is_summed_in_fp32():
    torch.manual_seed(0)
    logits, target = torch.randn(1, 1, 512, 512).bfloat16(), torch.rand(1, 1, 512, 512) > 0.5
    torch.testing.assert_close(bce_dice(logits, target), bce_dice(logits.float(), target))


@pytest.mark.parametrize("shape", [(2, 2, 17, 19), (1, 2, 7, 9, 11)])
@pytest.mark.parametrize("radius", [1, 2])
def test_boundary_weight_equals_dilations(shape, radius):
    torch.manual_seed(0)
    target, valid = torch.rand(shape) > 0.9, torch.rand(shape) > 0.3
    got = boundary_weight(target, valid=valid, radius_vx=radius, weight=3.0)
    block = np.ones((2 * radius + 1,) * (len(shape) - 2))
    for b in range(shape[0]):
        for c in range(shape[1]):
            inside, seen = target[b, c].numpy(), valid[b, c].numpy()
            near = [binary_dilation(one & seen, block) for one in (inside, ~inside)]
            np.testing.assert_array_equal(got[b, c], np.where(near[0] & near[1], 3.0, 1.0))


def test_bad_input_is_named():
    logits, target = torch.randn(2, 3, 4, 4), torch.zeros(2, 3, 4, 4)
    with pytest.raises(ValueError, match="target has shape"):
        binary_sums(logits, target[:, :2])
    with pytest.raises(ValueError, match="valid has shape .* or 1 instead of 3 channels"):
        binary_sums(logits, target, valid=torch.ones(2, 4, 4, dtype=torch.bool))
    with pytest.raises(TypeError, match="wanted bool"):
        binary_sums(logits, target, valid=torch.ones(2, 1, 4, 4))
    with pytest.raises(ValueError, match="weight has shape"):
        binary_sums(logits, target, weight=torch.ones(2, 2, 4, 4))
    with pytest.raises(ValueError, match=r"focal is 0\.5"):
        binary_sums(logits, target, focal=0.5)
    with pytest.raises(ValueError, match="2 class weights for 3 classes"):
        bce_dice(logits, target, class_weights=(1.0, 2.0))
    with pytest.raises(TypeError, match="logits are torch.int64"):
        binary_sums(logits.long(), target)
    with pytest.raises(TypeError, match="target is torch.float32; wanted integers"):
        exclusive_sums(logits, target[:, 0])
    with pytest.raises(ValueError, match="target has shape"):
        exclusive_sums(logits, target.long())
    with pytest.raises(ValueError, match="at least 2"):
        exclusive_sums(logits[:, :1], target[:, 0].long())
    with pytest.raises(ValueError, match="radius_vx is 0"):
        boundary_weight(target, radius_vx=0)
    with pytest.raises(ValueError, match="wanted \\(B, C, Y, X\\)"):
        boundary_weight(target[0])
