import numpy as np
import pytest
import torch
from em_data import Box, GreyRange, Region, Split, open_volume, place_labels
from em_losses import bce_dice
from em_models import UNet, UNetConfig
from em_train.predict.tiles import predict_logits
from em_train.segment.labels import Classes
from em_train.segment.loss import LossConfig
from em_train.segment.metrics import best_thresholds
from em_train.segment.report import CASE_VX, Case, examine, panels
from em_train.segment.validation import (
    Window,
    check_classes,
    choose_windows,
    score_windows,
    slices_of,
)

CPU, NAMES = torch.device("cpu"), ("a", "b")


@pytest.fixture(scope="module")
def world():
    """A volume of 8 slices, two channels of labels on slices 2 to 7, windows of 3 of them, a network."""
    rng = np.random.default_rng(0)
    size = (40.0, 4.0, 4.0)
    raw = open_volume(rng.integers(0, 255, (8, 64, 80)).astype(np.uint8), voxel_size_nm=size)
    masks = (rng.random((2, 6, 64, 80)) > 0.7).astype(np.uint8)
    volumes = [open_volume(m, voxel_size_nm=size, origin_nm=(80.0, 0.0, 0.0)) for m in masks]
    labels = place_labels(raw, dict(zip(NAMES, volumes, strict=True)))
    held = Region((Box((2, 0, 0), (6, 64, 80)),), labels.covered)
    split = Split((held,), (held,), (held.inside,))
    classes = Classes(names=NAMES)
    windows = choose_windows([raw], [GreyRange(0, 255)], [labels], classes, split, 3)
    torch.manual_seed(0)
    model = UNet(UNetConfig(classes=2, channels=(4, 6)))
    model(torch.rand(2, 1, 64, 64))
    return windows, model.eval(), masks, classes


def test_windows_are_spread_over_the_labelled_slices(world):
    windows, _, masks, _ = world
    assert [window.where for window in windows] == ["z 3", "z 5", "z 7"]
    for window, z in zip(windows, (1, 3, 5), strict=True):
        np.testing.assert_array_equal(window.truth[:, 0], masks[:, z])
        assert window.known.all()


def test_slices_in_pieces_are_counted_once():
    raw = open_volume(np.zeros((8, 40, 60), np.uint8), voxel_size_nm=(40.0, 4.0, 4.0))
    labels = place_labels(raw, {"a": raw})
    pieces = (Box((0, 0, 0), (8, 20, 20)), Box((0, 10, 40), (8, 30, 20)))
    held = Region(pieces, pieces)
    split = Split((held,), (held,), (pieces,))
    windows = choose_windows([raw], [GreyRange(0, 255)], [labels], Classes(names=("a",)), split, 3)
    assert [window.where for window in windows] == [f"z {z}" for z in (1, 1, 4, 4, 6, 6)]
    assert {window.box.origin_vx[1:] for window in windows} == {(0, 0), (10, 40)}
    assert slices_of(windows) == ["z 1", "z 4", "z 6"]


def test_the_loss_is_that_of_all_windows_together(world):
    windows, model, masks, _ = world
    config = LossConfig()
    found = score_windows(model, windows, config, CPU, "fp32")
    logits = torch.cat(
        [predict_logits(model, *w[:2], w.box, CPU, "fp32").transpose(0, 1) for w in windows]
    )
    truth = torch.from_numpy(masks[:, 1::2]).transpose(0, 1)
    assert found.loss == pytest.approx(bce_dice(logits, truth).item(), rel=1e-5)
    for c, threshold in enumerate(best_thresholds(found.histograms)):
        p = np.rint(logits[:, c].sigmoid().numpy() * 255) >= np.ceil(threshold * 255 - 1e-6)
        true = truth[:, c].numpy() > 0
        assert found.dice[c] == pytest.approx(2 * (p & true).sum() / (p.sum() + true.sum()))
    row = found.row(NAMES)
    assert row["validation_dice b"] == found.dice[1]


def test_a_class_that_no_window_has_is_refused(world):
    windows, _, _, classes = world
    nothing = [w._replace(truth=torch.zeros_like(w.truth)) for w in windows]
    with pytest.raises(ValueError, match=r"class 'a' has no voxel .*\(z 3, z 5, z 7\)"):
        check_classes(nothing, classes)
    unknown = [w._replace(known=torch.zeros_like(w.known)) for w in nothing]
    with pytest.raises(ValueError, match="class 'a' has no label"):
        check_classes(unknown, classes)
    with pytest.raises(ValueError, match="no labelled slice"):
        check_classes([], classes)
    check_classes(windows, classes)


def test_best_and_worst_are_found(world):
    """Among squares of which one was predicted perfectly and one not at all."""
    windows, _, _, _ = world

    class Oracle(UNet):
        """Knows the truth of its first slice, and says the contrary of that of the last."""

        def __init__(self):
            torch.nn.Module.__init__(self)
            self.config, self.calls = UNetConfig(classes=2, channels=(4, 6)), 0

        def forward(self, image):
            window, halo = windows[self.calls], self.config.halo
            rows = (64, 40, 0)[self.calls]  # that it gets right
            self.calls += 1
            logits = image.new_zeros(1, 2, *image.shape[-2:])
            said = 60 * (2 * window.truth[:, 0].float() - 1)
            said[:, rows:] *= -1
            logits[..., halo : halo + 64, halo : halo + 80] = said
            return logits

    result, worst, best = examine(Oracle(), windows, NAMES, (0.5, 0.5), LossConfig(), CPU, "fp32")
    assert (worst.where, worst.score) == ("z 7, y 0, x 0", 0)
    assert (best.where, best.score) == ("z 3, y 0, x 0", 1)
    assert [one.name for one in result] == list(NAMES)
    assert result[0].slices["z 3"]["dice"] == 1
    assert CASE_VX > 80  # the whole window is one square here
    np.testing.assert_array_equal(best.truth, best.found)


@pytest.mark.parametrize("width", [300, 511, 512, 600])
def test_truth_at_the_edge_is_in_a_square(world, width):
    """Although no whole number of squares fits into the slice."""
    _, model, _, _ = world
    raw = open_volume(np.zeros((1, 20, 10 + width), np.uint8), voxel_size_nm=(40.0, 4.0, 4.0))
    truth = torch.zeros(2, 1, 20, width, dtype=torch.bool)
    truth[..., -1] = True
    box = Box((0, 0, 10), (1, 20, width))
    window = Window(raw, GreyRange(0, 255), "z 0", box, truth, torch.ones_like(truth))
    _, worst, best = examine(model, [window], NAMES, (0.5, 0.5), LossConfig(), CPU, "fp32")
    assert worst.where == best.where == f"z 0, y 0, x {10 + width - CASE_VX}"
    assert worst.truth.shape == (2, 20, CASE_VX) and worst.truth[..., -1].all()


def test_errors_are_painted():
    raw = np.full((2, 2), 100, np.uint8)
    truth, found = np.zeros((1, 2, 2), bool), np.zeros((1, 2, 2), bool)
    truth[0, 0], found[0, :, 0] = True, True
    known = np.array([[[True, True], [True, False]]])
    case = Case(0.5, "z 1", raw, truth, found, known)
    *_, (title, errors) = panels(case)
    assert "red" in title
    assert errors[0, 0].tolist() == errors[1, 1].tolist() == [100] * 3
    assert errors[0, 1, 2] == 255 and errors[1, 0, 0] == 255  # missed is blue, invented is red
