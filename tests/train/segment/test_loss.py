import pytest
import torch
from em_losses import SegmentationSums, bce_dice, boundary_weight, softmax_dice
from em_train.segment.loss import LossConfig, probabilities, sums_of, terms_of


def total(sums, config):
    return sum(terms_of(sums, config).values())


def test_binary_and_softmax_are_the_losses_of_em_losses():
    torch.manual_seed(0)
    truth, known = torch.rand(2, 2, 9, 9) > 0.7, torch.rand(2, 2, 9, 9) > 0.3
    truth[:, 0] &= ~truth[:, 1]
    logits = torch.randn(2, 3, 9, 9)
    config = LossConfig(class_weights=(1.0, 2.0), focal=2.0, boundary_weight=4.0)
    weight = boundary_weight(truth, valid=known, weight=4.0)
    options = {"valid": known, "weight": weight, "class_weights": (1.0, 2.0), "focal": 2.0}
    torch.testing.assert_close(
        total(sums_of(logits[:, :2], truth, known, config), config),
        bce_dice(logits[:, :2], truth, **options),
    )
    config = LossConfig(kind="softmax", boundary_weight=4.0)
    target = truth[:, 0] + 2 * truth[:, 1].long()
    torch.testing.assert_close(
        total(sums_of(logits, truth, known, config), config),
        softmax_dice(logits, target, valid=known.all(1), weight=weight.amax(1)),
    )


@pytest.mark.parametrize("kind", ["binary", "softmax"])
def test_two_halves_and_a_sum_over_processes_are_the_whole(kind):
    """What two ranks compute, each with the other's sums added by `reduce`."""
    torch.manual_seed(0)
    config = LossConfig(kind=kind)
    truth, known = torch.rand(4, 1, 9, 9) > 0.8, torch.rand(4, 1, 9, 9) > 0.3
    logits = torch.randn(4, 1 + config.rest, 9, 9)
    whole = total(sums_of(logits, truth, known, config), config)
    halves = [
        sums_of(*parts, config)
        for parts in zip(logits.split(2), truth.split(2), known.split(2), strict=True)
    ]
    added = SegmentationSums(*(a + b for a, b in zip(*halves, strict=True)))
    torch.testing.assert_close(total(added, config), whole)


def test_probabilities_leave_the_rest_out():
    logits = torch.randn(3, 4, 4)
    torch.testing.assert_close(probabilities(logits, LossConfig()), logits.sigmoid())
    found = probabilities(logits, LossConfig(kind="softmax"))
    torch.testing.assert_close(found, logits.softmax(0)[1:])
    batch = probabilities(logits[None], LossConfig(kind="softmax"), dim=1)
    torch.testing.assert_close(batch[0], found)
