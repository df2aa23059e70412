import pytest
import torch
from em_models import UNet3d, UNet3dConfig, load, save

SMALL = {"channels": (3, 4, 5), "kernels_z": (1, 3, 3), "strides_z": (1, 2)}


def make(**settings):
    torch.manual_seed(0)
    model = UNet3d(UNet3dConfig(**(SMALL | settings))).double()
    with torch.no_grad():
        model(torch.rand(2, 1, 8, 16, 16).double())
    return model.eval()


@pytest.mark.parametrize("settings", [{}, {"kernels_z": (3, 3, 3), "strides_z": (2, 2)}])
def test_the_reach_is_what_construction_says(settings):
    model = make(**settings)
    config = model.config
    size = [4 * (r // s + 2) * s for r, s in zip(config.reach, config.stride, strict=True)]
    size[2] = config.stride[2]  # y and x are alike
    found = [0, 0]
    for place in range(max(config.stride)):
        at = [n // 2 + place for n in size[:2]]
        volume = torch.rand(1, 1, *size, dtype=torch.float64, requires_grad=True)
        model(volume)[0, :, at[0], at[1], 1].sum().backward()
        for axis in (0, 1):
            met = volume.grad[0, 0].abs().sum([a for a in range(3) if a != axis]).nonzero()
            found[axis] = max(found[axis], at[axis] - int(met[0]), int(met[-1]) - at[axis])
    assert tuple(found) == config.reach[:2]
    assert all(
        h >= r and h % s == 0
        for h, r, s in zip(config.halo, config.reach, config.stride, strict=True)
    )


def test_flat_levels_keep_slices_apart():
    model = make(kernels_z=(1, 1, 1), strides_z=(1, 1))
    volume = torch.rand(1, 1, 4, 16, 16).double()
    changed = volume.clone()
    changed[:, :, 2] = 0
    with torch.no_grad():
        differ = (model(volume) != model(changed)).any((0, 1, 3, 4))
    assert differ.tolist() == [False, False, True, False]
    assert model.config.reach[0] == 0


def test_weights_come_back(tmp_path):
    model = make(classes=3)
    save(model, tmp_path)
    volume = torch.rand(1, 1, 4, 16, 16).double()
    with torch.no_grad():
        torch.testing.assert_close(load(tmp_path).double()(volume), model(volume))


def test_bad_input_is_named():
    for settings, message in (
        ({"channels": (8,)}, "at least two levels"),
        ({"kernels_z": (2, 3, 3)}, "3 odd sizes"),
        ({"strides_z": (3, 2)}, "2 numbers, 1 or 2"),
    ):
        with pytest.raises(ValueError, match=message):
            UNet3dConfig(**(SMALL | settings))
    with pytest.raises(ValueError, match="multiples of 2 × 4 × 4"):
        make()(torch.rand(1, 1, 3, 16, 16).double())
