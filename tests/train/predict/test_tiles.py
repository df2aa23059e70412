import numpy as np
import pytest
import torch
from em_data import Box, GreyRange, open_volume
from em_models import HrNet, HrNetConfig, UNet, UNet3d, UNet3dConfig, UNetConfig
from em_train.predict.tiles import grid_of, predict_logits

GREY, CPU = GreyRange(0, 255), torch.device("cpu")


def network(kind):
    torch.manual_seed(0)
    if kind == "3D":
        config = UNet3dConfig(classes=2, channels=(3, 4), kernels_z=(1, 3), strides_z=(2,))
        model = UNet3d(config)
        model(torch.rand(2, 1, 4, 16, 16))
    elif kind == "HRNet":
        model = HrNet(HrNetConfig(classes=2, channels=(3, 4, 5), modules=1, slices=3))
        model(torch.rand(2, 3, 32, 32))
    else:
        model = UNet(UNetConfig(classes=2, channels=(4, 6, 8), slices=3 if kind == "2.5D" else 1))
        model(torch.rand(2, model.config.slices, 32, 32))
    return model.eval()


@pytest.mark.parametrize("kind", ["2D", "2.5D", "3D", "HRNet"])
def test_tiles_meet_without_a_seam(kind):
    """A box out of small tiles equals the network on the whole volume, away from its borders."""
    model = network(kind)
    voxels = np.random.default_rng(0).integers(0, 255, (20, 96, 104)).astype(np.uint8)
    volume, box = open_volume(voxels), Box((8, 36, 33), (4, 30, 35))
    z, y, x = box.slices
    with torch.no_grad():
        image = torch.from_numpy(GREY.unit(voxels))
        if kind == "3D":
            whole = model(image[None, None])[0][:, z, y, x]
        else:
            s = model.config.slices // 2
            stacks = torch.stack([image[i - s : i + s + 1] for i in range(8, 12)])
            whole = model(stacks)[..., y, x].transpose(0, 1)
    torch.testing.assert_close(
        predict_logits(model, volume, GREY, box, CPU, "fp32"), whole, rtol=1e-4, atol=1e-5
    )


def test_a_box_at_the_border_is_mirrored_beyond_it():
    model, voxels = network("2.5D"), np.full((3, 24, 24), 9, np.uint8)
    logits = predict_logits(model, open_volume(voxels), GREY, Box((0, 0, 0), (3, 24, 24)), CPU)
    # Of a constant volume every voxel says the same: nothing dark is made up around it.
    torch.testing.assert_close(logits, logits[:, :1, :1, :1].expand_as(logits), rtol=0, atol=1e-3)


@pytest.mark.parametrize("kind", ["2D", "2.5D", "3D", "HRNet"])
def test_tiles_are_multiples_of_the_stride_with_the_reach_around_them(kind):
    model = network(kind)
    grid = grid_of(model, 50, 3)
    stride = grid.stride_vx
    assert all(n % s == 0 for n, s in zip(grid.input_vx[1:], stride[1:], strict=True))
    assert grid.tile_vx == ((4, 50, 50) if kind == "3D" else (1, 52, 52))
    reach = model.config.reach
    assert grid.halo_vx[1] >= (reach[1] if kind == "3D" else max(reach))
