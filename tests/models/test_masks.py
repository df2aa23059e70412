import math

import pytest
import torch
from em_models.masks import count_hidden, draw_masks

GRID = (4, 6, 8)
KEYS = [(0, n) for n in range(6)]


@pytest.mark.parametrize("kind", ["random", "tube", "block"])
def test_masks_are_whole_and_depend_on_their_key_alone(kind):
    masks = draw_masks(GRID, KEYS, kind=kind, seed=3)
    both = torch.cat(masks, 1).sort(1).values
    assert torch.equal(both, torch.arange(math.prod(GRID)).expand(6, -1))
    assert masks.hidden.shape[1] == count_hidden(GRID, 0.75, kind)
    for part in masks:
        assert torch.equal(part, part.sort(1).values)
    # Two ranks draw the parts of one process.
    halves = [draw_masks(GRID, KEYS[i::2], kind=kind, seed=3) for i in range(2)]
    for i, half in enumerate(halves):
        assert torch.equal(half.hidden, masks.hidden[i::2])
    others = [draw_masks(GRID, KEYS, kind=kind, seed=4), draw_masks(GRID, [(1, 0)] * 6, seed=3)]
    for other in others:
        assert not torch.equal(other.hidden, masks.hidden)
    assert len({tuple(row) for row in masks.hidden.tolist()}) == 6


def shown(masks):
    found = torch.zeros(len(masks.visible), math.prod(GRID))
    return found.scatter_(1, masks.visible, 1.0).view(-1, *GRID)


def test_a_tube_hides_what_lies_above_each_other():
    seen = shown(draw_masks(GRID, KEYS, kind="tube"))
    assert (seen == seen[:, :1]).all()


def test_blocks_hide_neighbours_together():
    def together(kind):
        seen = shown(draw_masks(GRID, [(0, n) for n in range(40)], kind=kind))
        return float((seen[..., 1:] == seen[..., :-1]).float().mean())

    assert together("block") > together("random") + 0.1
    blocks = shown(draw_masks((4, 6, 8), [(0, n) for n in range(40)], kind="block"))
    starts = (blocks[:, 0, 0, 1:] != blocks[:, 0, 0, :-1]).float().mean(0)
    assert (starts > 0).all()  # the lattice begins everywhere


def test_every_token_is_hidden_as_often():
    hidden = draw_masks((2, 4, 4), [(0, n) for n in range(2000)]).hidden
    share = torch.bincount(hidden.flatten(), minlength=32) / 2000
    assert (share - 0.75).abs().max() < 0.04  # 4 standard deviations


@pytest.mark.parametrize(("device", "waits"), [("mps", True), ("cpu", True), ("cuda:0", False)])
def test_only_copies_to_cuda_go_on_meanwhile(monkeypatch, device, waits):
    masks, sent = draw_masks(GRID, KEYS), []

    def to(tensor, target, *, non_blocking=False):
        sent.append((target, non_blocking))
        return tensor

    monkeypatch.setattr(torch.Tensor, "to", to)
    masks.to(device)
    assert sent == [(device, not waits)] * 2


def test_nothing_to_hide_is_refused():
    with pytest.raises(ValueError, match="nothing to hide with masks of kind 'tube'"):
        draw_masks((4, 1, 1), [(0, 0)], kind="tube")
    with pytest.raises(ValueError, match="0 < share < 1"):
        draw_masks(GRID, KEYS, share=1.0)
    assert count_hidden((1, 1, 2), 0.99) == 1
