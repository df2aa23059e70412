import torch
from em_train.mae.inpaint import inpaint


def slow(volume, visible):
    """Voxel by voxel: the nearest visible ones along the axes, by the inverse of their distance."""
    filled = volume.clone()
    for place in (~visible).nonzero().tolist():
        total = weight = 0.0
        for axis in range(3):
            for sign in (-1, 1):
                at = list(place)
                while True:
                    at[axis] += sign
                    if not 0 <= at[axis] < volume.shape[axis]:
                        break
                    if visible[tuple(at)]:
                        distance = abs(at[axis] - place[axis])
                        total += float(volume[tuple(at)]) / distance
                        weight += 1 / distance
                        break
        filled[tuple(place)] = total / weight if weight else float(volume[visible].mean())
    return filled


def test_against_a_search_and_hidden_voxels_do_not_matter():
    torch.manual_seed(0)
    volume = torch.rand(2, 5, 6, 7)
    visible = torch.rand(2, 5, 6, 7) < 0.2
    visible[1] = False
    visible[1, 0, 0, 0] = True  # most voxels see nothing along their axes
    found = inpaint(volume, visible)
    for one, shown, filled in zip(volume, visible, found, strict=True):
        torch.testing.assert_close(filled, slow(one, shown), rtol=1e-4, atol=1e-5)
    other = torch.where(visible, volume, torch.rand(2, 5, 6, 7))
    assert torch.equal(inpaint(other, visible), found)


def test_a_ramp_is_filled_exactly_along_it():
    ramp = torch.arange(9.0).expand(1, 1, 1, 9)
    visible = torch.zeros(1, 1, 1, 9, dtype=torch.bool)
    visible[..., [0, 8]] = True
    torch.testing.assert_close(inpaint(ramp, visible), ramp)
