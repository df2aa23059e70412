import numpy as np
import pytest
import torch
from em_data import Key
from em_data.augment import BlindSpotConfig, blind_spots


def keys(count, first=0):
    return [Key(0, first + n) for n in range(count)]


@pytest.fixture(scope="module")
def noise():
    """(6, 3, 48, 64), no value twice in a slice: so each tells where it comes from."""
    random = np.random.default_rng(0)
    slices = [random.permutation(48 * 64) for _ in range(18)]
    return torch.from_numpy(np.stack(slices).reshape(6, 3, 48, 64).astype(np.float32))


def replaced(image, masked):
    """Where the middle slice of one sample was replaced: rows and columns."""
    return np.nonzero((masked[1] != image[1]).numpy())


def origin(image, values):
    """Where values of the middle slice were before: rows and columns."""
    order = np.argsort(image[1].numpy().ravel())
    return np.unravel_index(order[values.astype(int)], image.shape[1:])


def test_every_cell_has_one_blind_voxel_and_other_slices_stay(noise):
    config = BlindSpotConfig(cell_vx=8, replacement="neighbour")
    before = noise.clone()
    masked, mask = blind_spots(noise, keys(6), config, seed=0)
    assert torch.equal(noise, before)
    assert mask.dtype == torch.bool and mask.shape == (6, 1, 48, 64)
    cells = mask.view(6, 6, 8, 8, 8).sum((2, 4))
    assert (cells == 1).all()
    assert torch.equal(masked[:, [0, 2]], noise[:, [0, 2]])
    assert torch.equal(masked[:, 1:2] != noise[:, 1:2], mask)  # there, and only there


def test_any_voxel_is_as_likely_to_be_blind_whatever_the_cells():
    images = torch.rand(1500, 1, 9, 10)
    _, mask = blind_spots(images, keys(1500), BlindSpotConfig(cell_vx=4), seed=1)
    share = mask.float().mean((0, 1))
    assert (share - 1 / 16).abs().max() < 5 * (1 / 16 / 1500) ** 0.5
    assert len(mask.flatten(1).unique(dim=0)) > 1000


def test_neighbours_are_near_never_the_voxel_itself_and_equally_likely(noise):
    config = BlindSpotConfig(cell_vx=2, replacement="neighbour", radius_vx=2)
    steps = []
    for first in range(0, 60, 6):
        masked, _ = blind_spots(noise, keys(6, first), config, seed=2)
        for image, changed in zip(noise, masked, strict=True):
            y, x = replaced(image, changed)
            from_y, from_x = origin(image, changed[1].numpy()[y, x])
            inner = (y > 1) & (y < 46) & (x > 1) & (x < 62)
            dy, dx = from_y - y, from_x - x
            assert np.maximum(np.abs(dy), np.abs(dx)).max() == 2
            assert not ((dy == 0) & (dx == 0)).any()
            steps.append(np.stack([dy, dx])[:, inner])
    found, counts = np.unique(np.concatenate(steps, 1), axis=1, return_counts=True)
    assert found.shape[1] == 24
    even = counts.sum() / 24
    assert np.abs(counts - even).max() < 5 * even**0.5


@pytest.mark.parametrize("row", [0, 3])
def test_medians_are_those_of_the_neighbourhood_without_what_is_hidden(noise, row):
    config = BlindSpotConfig(cell_vx=8, radius_vx=2, row_vx=row)
    masked, mask = blind_spots(noise, keys(6), config, seed=3)
    for image, changed, where in zip(noise, masked, mask, strict=True):
        for y, x in zip(*np.nonzero(where[0].numpy()), strict=True):
            near = image[1].numpy()[max(y - 2, 0) : y + 3, max(x - 2, 0) : x + 3].astype(float)
            left_out = near == float(image[1, y, x])
            if row:
                left_out = np.repeat(left_out.any(1, keepdims=True), near.shape[1], 1)
            rest = np.sort(near[~left_out])
            assert float(changed[1, y, x]) == rest[(len(rest) - 1) // 2]


@pytest.mark.parametrize("replacement", ["neighbour", "median"])
def test_where_rows_are_correlated_the_row_is_replaced_and_not_looked_at(noise, replacement):
    config = BlindSpotConfig(cell_vx=16, replacement=replacement, row_vx=4)
    masked, mask = blind_spots(noise, keys(6), config, seed=4)
    assert mask.sum() == 6 * 3 * 4  # the loss sees the blind voxels alone
    for image, changed, where in zip(noise, masked, mask, strict=True):
        expected = np.zeros((48, 64), bool)
        for y, x in zip(*np.nonzero(where[0].numpy()), strict=True):
            expected[y, max(x - 4, 0) : x + 5] = True
        y, x = replaced(image, changed)
        assert set(zip(y, x, strict=True)) == set(zip(*np.nonzero(expected), strict=True))
        from_y, _ = origin(image, changed[1].numpy()[y, x])
        assert (from_y != y).all()


def test_a_network_sees_nothing_of_the_noise_of_a_blind_voxel():
    """What is left of row-correlated noise around a blind voxel does not tell its own."""
    random = np.random.default_rng(1)
    white = random.normal(size=(40, 1, 66, 66))
    rows = torch.from_numpy(white[..., :-2] + white[..., 1:-1] + white[..., 2:]).float()
    leaks = {}
    for reach in (0, 2):
        masked, mask = blind_spots(rows, keys(40), BlindSpotConfig(row_vx=reach), seed=5)
        own, beside = rows[mask], masked.roll(1, -1)[mask]
        leaks[reach] = abs(np.corrcoef(own.numpy(), beside.numpy())[0, 1])
        hidden = masked[mask]
        assert abs(np.corrcoef(own.numpy(), hidden.numpy())[0, 1]) < (0.03 if reach else 1)
    assert leaks[0] > 0.5 and leaks[2] < 0.03


@pytest.mark.parametrize("replacement", ["neighbour", "median"])
def test_a_sample_depends_on_seed_and_key_alone(noise, replacement):
    config = BlindSpotConfig(replacement=replacement, row_vx=1)
    whole = blind_spots(noise, keys(6), config, seed=6)
    order = [4, 1]
    mixed = blind_spots(noise[order], [keys(6)[i] for i in order], config, seed=6)
    for all_of_them, some in zip(whole, mixed, strict=True):
        assert torch.equal(all_of_them[order], some)
    for other in (keys(6, 6), 6), (keys(6), 7):
        assert not torch.equal(blind_spots(noise, other[0], config, seed=other[1])[1], whole[1])
    turned = noise.mT.contiguous().mT  # the same images, stored in another order
    assert torch.equal(blind_spots(turned, keys(6), config, seed=6)[0], whole[0])
    half, _ = blind_spots(noise.half(), keys(6), config, seed=6)
    assert half.dtype == torch.float16


def test_wrong_input_and_figures_are_refused():
    config, images = BlindSpotConfig(), torch.rand(2, 1, 8, 8)
    with pytest.raises(ValueError, match=r"int64 of shape \(2, 1, 8, 8\); wanted floats"):
        blind_spots(images.long(), keys(2), config, seed=0)
    with pytest.raises(ValueError, match="one key for each of 2 images, got 1"):
        blind_spots(images, keys(1), config, seed=0)
    with pytest.raises(ValueError, match="1 × 8 voxels .*; wanted at least 2 × 2"):
        blind_spots(images[:, :, :1], keys(2), config, seed=0)
    with pytest.raises(ValueError, match="cell_vx must be a whole number from 2 to 256, got 1"):
        BlindSpotConfig(cell_vx=1)
    with pytest.raises(ValueError, match="row_vx must be a whole number from 0 to 64, got 1.5"):
        BlindSpotConfig(row_vx=1.5)
    with pytest.raises(ValueError, match="must be neighbour or median, got 'mean'"):
        BlindSpotConfig(replacement="mean")
