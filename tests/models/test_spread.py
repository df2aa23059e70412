import copy

import pytest
import torch
from em_models.spread import Spread, reach
from torch import nn


class Branches(nn.Module):
    """Odd and even kernels, with and without padding, both pools, and a sum of branches."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 4, stride=2, padding=1)
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)
        self.wide = nn.Conv2d(4, 4, 3, stride=2, padding=2, dilation=2)
        self.short = nn.Sequential(nn.AvgPool2d(2, ceil_mode=True), nn.Conv2d(4, 4, 1))
        self.last = nn.Conv2d(4, 3, 3, padding=1)

    def forward(self, x):
        x = self.pool(self.stem(x).relu())
        return self.last(self.wide(x) + self.short(x))


@pytest.fixture
def networks():
    """The network as meant, its copy, and the strides of the copy."""
    torch.manual_seed(0)
    meant = Branches().double().eval()
    copied = copy.deepcopy(meant)
    return meant, copied, Spread(copied, torch.zeros(1, 1, 64, 64).double())


@pytest.mark.parametrize("pitch", [1, 2, 4, 8])
def test_outputs_are_those_that_were_meant_and_more(networks, pitch):
    meant, copied, spread = networks
    image = torch.randn(2, 1, 64, 96).double()
    spread.take(pitch)
    found = copied(image)
    assert found.shape == (2, 3, 64 // pitch, 96 // pitch)
    torch.testing.assert_close(found[..., :: 8 // pitch, :: 8 // pitch], meant(image))


def test_every_layer_gives_the_ceiling_of_its_stride(networks):
    _, copied, spread = networks
    spread.take(8)
    assert copied(torch.zeros(1, 1, 41, 50).double()).shape == (1, 3, 6, 7)


def test_reach_is_what_the_kernels_add_up_to(networks):
    _, copied, spread = networks
    spread.take(1)
    # Before: stem 1, pool 1 × 2, wide 2 × 4, last 1 × 8. After: stem 2, pool 2, wide 8, last 8.
    for axis in (-2, -1):
        assert reach(lambda x: copied(x.double()), axis=axis) == (19, 20)


def test_reach_has_no_end_where_a_norm_looks_at_all_pixels():
    assert reach(nn.GroupNorm(1, 1), axis=-1) is None


def test_layers_at_two_pitches_are_refused():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Conv2d(1, 1, 3, stride=2, padding=1)

        def forward(self, x):
            return self.layer(self.layer(x))

    with pytest.raises(ValueError, match="no one pitch"):
        Spread(Shared(), torch.zeros(1, 1, 64, 64))
