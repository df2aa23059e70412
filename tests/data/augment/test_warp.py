import dataclasses

import numpy as np
import pytest
import torch
from em_data import BoxError, Key, augment
from em_data.augment.warp import WarpConfig, margin_vx, symmetries_of
from scipy import ndimage
from scipy.interpolate import BSpline
from scipy.spatial.transform import Rotation

PLANE = WarpConfig(
    share=1, rotation_deg=45, scale=0.2, elastic_vx=5, elastic_spacing_vx=30, shifted=0.3
)
SPACE = dataclasses.replace(PLANE, out_of_plane=True, shifted=0.0)
CASES = [
    pytest.param(PLANE, (5, 48, 40), (40.0, 4.0, 4.0), id="stack"),
    pytest.param(SPACE, (12, 30, 30), (16.0, 8.0, 8.0), id="anisotropic cube"),
    pytest.param(SPACE, (20, 20, 20), (8.0, 8.0, 8.0), id="cube"),
    pytest.param(dataclasses.replace(SPACE, shifted=0.3), (20, 20, 20), (8.0, 8.0, 8.0), id="all"),
]


def warps(config, size, voxel, count=4, seed=0, extra=0):
    margin = margin_vx(config, size, voxel)
    source = tuple(n + 2 * m + extra for n, m in zip(size, margin, strict=True))
    keys = [Key(0, n) for n in range(count)]
    return augment.draw_warps(
        keys, config, seed=seed, size_vx=size, source_vx=source, voxel_size_nm=voxel
    )


def voxels_of(size):
    """Every position of a crop: (N, 3)."""
    return torch.from_numpy(np.indices(size).reshape(3, -1).T.astype(np.float64))


@pytest.mark.parametrize(("config", "size", "voxel"), CASES)
def test_images_and_labels_agree_with_scipy_at_the_places_that_points_name(config, size, voxel):
    rng = np.random.default_rng(0)
    for warp in warps(config, size, voxel):
        image = rng.random(warp.source_vx).astype(np.float32)
        labels = rng.integers(2**40, 2**41, (2, *warp.source_vx))
        shown, (moved,) = warp.sample(torch.from_numpy(image), [torch.from_numpy(labels)])
        places = warp.to_source(voxels_of(size)).T.numpy()
        expected = ndimage.map_coordinates(image.astype(np.float64), places, order=1)
        assert np.abs(shown.numpy().ravel() - expected).max() < 1e-4
        for channel, own in zip(labels, moved.numpy(), strict=True):
            nearest = ndimage.map_coordinates(channel, places, order=0)
            ties = np.abs(places % 1 - 0.5).min(0) < 1e-4
            assert (own.ravel() == nearest)[~ties].all() and ties.mean() < 0.01


@pytest.mark.parametrize(("config", "size", "voxel"), CASES)
def test_the_map_is_a_rotation_a_scale_and_a_spline_in_nm(config, size, voxel):
    """Against scipy's B-splines, and a rotation whose angle is scipy's."""
    factors, angles = [], []
    for warp in warps(dataclasses.replace(config, symmetries="none"), size, voxel, count=12):
        unit = np.array(voxel) / voxel[2]
        points = voxels_of(size).numpy()[::7]
        moved = points.copy()
        bases = [
            BSpline.design_matrix(points[:, i], (np.arange(n + 4) - 3) * h, 3).toarray()
            for i, (n, h) in enumerate(zip(warp.control.shape[1:], warp.spacing_vx, strict=True))
        ]
        moved += np.einsum("nz,ny,nx,czyx->nc", *bases, warp.control.numpy())
        moved += warp.shifts.numpy()[points[:, 0].astype(int)]
        centre = (np.array(size) - 1) / 2
        physical = warp.matrix.numpy() * unit[:, None] / unit  # in nm
        if not config.out_of_plane:
            assert physical[0].tolist() == [1, 0, 0] == physical[:, 0].tolist()
            physical = physical[1:, 1:]
        factors.append(np.linalg.det(physical) ** (1 / len(physical)))
        turn = np.eye(3)
        turn[-len(physical) :, -len(physical) :] = physical / factors[-1]
        np.testing.assert_allclose(turn @ turn.T, np.eye(3), atol=1e-12)
        angles.append(np.degrees(Rotation.from_matrix(turn).magnitude()))
        offset = (np.array(warp.source_vx) - size) // 2
        expected = (moved - centre) @ warp.matrix.numpy().T + centre + offset
        found = warp.to_source(torch.from_numpy(points)).numpy()
        np.testing.assert_allclose(found, expected, atol=1e-9)
    assert 1 / 1.2 <= min(factors) < 0.95 and 1.05 < max(factors) <= 1.2
    assert min(angles) < 20 and 25 < max(angles) <= 45


@pytest.mark.parametrize(("size", "voxel"), [((5, 7, 7), (40, 4, 4)), ((6, 6, 6), (8, 8, 8))])
def test_symmetries_are_exact_all_different_and_as_points_move(size, voxel):
    config = WarpConfig(share=0)
    source = tuple(n + 3 for n in size)
    image = torch.arange(float(np.prod(source))).view(source)
    drawn = augment.draw_warps(
        [Key(0, n) for n in range(600)],
        config,
        seed=0,
        size_vx=size,
        source_vx=source,
        voxel_size_nm=voxel,
    )
    seen = set()
    for warp in drawn[:200]:
        shown, _ = warp.sample(image)
        places = warp.to_source(voxels_of(size)).long()
        assert (shown.flatten() == image[tuple(places.T)]).all()
        torch.testing.assert_close(warp.to_crop(places), voxels_of(size))
    for warp in drawn:
        seen.add(tuple(warp.sample(image)[0].flatten().tolist()))
    assert len(seen) == len(symmetries_of("box", size, voxel)) == (16 if voxel[0] > 8 else 48)


def test_which_symmetries_are_allowed():
    def count(kind, size, voxel):
        return len(symmetries_of(kind, size, voxel))

    assert count("none", (64, 64, 64), (8, 8, 8)) == 1
    assert count("plane", (64, 64, 64), (8, 8, 8)) == 8
    assert count("plane", (64, 64, 32), (8, 8, 8)) == 4
    assert count("box", (64, 64, 32), (8, 8, 8)) == 16
    assert count("box", (64, 32, 16), (8, 8, 8)) == 8
    assert count("box", (64, 64, 64), None) == 16  # z may be taller than y and x
    assert count("box", (64, 64, 64), (8, 8, 8.01)) == 48


@pytest.mark.parametrize(("config", "size", "voxel"), CASES)
def test_points_come_back_to_where_they_were(config, size, voxel):
    rng = np.random.default_rng(1)
    if config.out_of_plane:  # where shifts make steps between slices that have no inverse
        config = dataclasses.replace(config, shifted=0.0)
    for warp in warps(config, size, voxel):
        points = torch.from_numpy(rng.uniform(0, np.array(size) - 1, (200, 3)))
        if config.shifted:
            points[:, 0] = points[:, 0].round()
        torch.testing.assert_close(warp.to_crop(warp.to_source(points)), points, atol=1e-6, rtol=0)
    assert warp.to_crop(torch.zeros(0, 3)).shape == (0, 3)


@pytest.mark.parametrize(("config", "size", "voxel"), CASES)
def test_a_point_is_where_its_image_is(config, size, voxel):
    """A small ball in the source is shown around the place that `to_crop` gives."""
    if config.out_of_plane:
        config = dataclasses.replace(config, shifted=0.0)  # which would cut the ball to pieces
    for warp in warps(config, size, voxel):
        inner = torch.tensor([[0.45, 0.6, 0.4]]) * torch.tensor(size)
        inner[:, 0] = inner[:, 0].round()
        place = warp.to_source(inner)
        if not config.out_of_plane:
            place[:, 0] = place[:, 0].round()
        unit = torch.tensor(voxel) / voxel[2]
        off = (voxels_of(warp.source_vx) - place) * unit
        if not config.out_of_plane:
            off[:, 0] *= 100  # a disc in its slice
        ball = torch.exp(-(off**2).sum(1) / 8).float().view(warp.source_vx)
        shown, (mask,) = warp.sample(ball, [(ball > 0.3)[None]])
        for picture in (shown.flatten(), mask.flatten().float()):
            middle = (voxels_of(size) * picture[:, None]).sum(0) / picture.sum()
            assert ((middle - warp.to_crop(place)[0]) * unit).abs().max() < 0.5


@pytest.mark.parametrize(("config", "size", "voxel"), CASES)
def test_the_margin_is_enough_and_not_far_too_much(config, size, voxel):
    config = dataclasses.replace(config, elastic_vx=0.5)  # whose bound is hardly ever reached
    corners = torch.from_numpy(np.indices((2, 2, 2)).reshape(3, -1).T * (np.array(size) - 1.0))
    margin = np.array(margin_vx(config, size, voxel))
    most = np.zeros(3)
    for warp in warps(config, size, voxel, count=400):
        # Every slice's corners, for each slice is shifted by itself.
        points = corners.repeat(size[0], 1)
        points[:, 0] = torch.arange(size[0]).repeat_interleave(8)
        places = warp.to_source(points).numpy()
        room = np.array(warp.source_vx) - 1
        assert places.min() >= -1e-9 and (places <= room + 1e-9).all()
        beyond = np.maximum(-(places - margin), places - margin - (np.array(size) - 1)).max(0)
        most = np.maximum(most, beyond)
    assert (most >= 0.6 * margin - 1).all(), (most, margin)


def test_the_deformation_neither_folds_nor_drifts():
    config = WarpConfig(
        symmetries="none", share=1, rotation_deg=0, scale=0, elastic_vx=5, elastic_spacing_vx=30
    )
    size, moved = (1, 60, 60), []
    for warp in warps(config, size, (8.0, 8.0, 8.0), count=200):
        off = warp.to_source(voxels_of(size)) - torch.tensor(margin_vx(config, size)) * 1.0
        dy, dx = off.view(60, 60, 3).diff(dim=0)[:, :-1], off.view(60, 60, 3).diff(dim=1)[:-1]
        assert (dy[..., 1] * dx[..., 2] - dy[..., 2] * dx[..., 1] > 0).all()
        moved.append(off - voxels_of(size))
    displacement = torch.stack(moved)[..., 1:]
    assert displacement.abs().max() <= 5
    assert 0.6 < displacement.std() < 1.4  # a fifth of the largest
    assert displacement.mean((0, 1)).abs().max() < 0.15


def test_slices_slip_by_themselves_or_with_all_that_follow():
    config = WarpConfig(symmetries="none", share=0, shifted=0.2, shift_vx=6)
    shifts = torch.stack(
        [w.shifts for w in warps(config, (12, 16, 16), (40.0, 4.0, 4.0), count=400)]
    )
    assert not shifts[..., 0].any() and shifts.abs().max() <= 6
    steps = shifts.diff(dim=1).any(-1)
    alone = steps[:, :-1] & (shifts[:, :-2] == shifts[:, 2:]).all(-1)
    moved = steps.float().mean()
    assert 0.2 < moved < 0.35 and 0.03 < alone.float().mean() < 0.12


@pytest.mark.parametrize(
    "dtype",
    ["bool", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "float32"],
)
def test_labels_keep_their_type_and_their_numbers(dtype):
    (warp,) = warps(PLANE, (5, 48, 40), (40.0, 4.0, 4.0), count=1)
    top = 2 if dtype == "bool" else 100 if dtype == "uint8" else 30_000
    labels = np.random.default_rng(0).integers(1, top, (1, *warp.source_vx)).astype(dtype)
    if dtype in ("uint64", "int64"):
        labels += np.array(2**53, dtype)  # what no float can tell apart
    _, (moved,) = warp.sample(torch.zeros(warp.source_vx), [torch.from_numpy(labels)])
    assert moved.numpy().dtype == labels.dtype
    assert set(np.unique(moved.numpy())) <= set(np.unique(labels))


def test_what_cannot_be_done_is_refused_with_a_remedy():
    with pytest.raises(
        ValueError, match=r"elastic_vx must lie in 0 to 5, a sixth of .* fold, got 9"
    ):
        WarpConfig(elastic_vx=9, elastic_spacing_vx=30)
    with pytest.raises(ValueError, match=r"rotation_deg must lie in 0 to 180, got 200"):
        WarpConfig(rotation_deg=200)
    with pytest.raises(ValueError, match="give voxel_size_nm"):
        margin_vx(SPACE, (8, 8, 8), None)
    with pytest.raises(BoxError, match=r"too small on y .* cut \(5, 424, 424\)"):
        augment.draw_warps(
            [Key(0, 0)], WarpConfig(), seed=0, size_vx=(5, 256, 256), source_vx=(5, 256, 256)
        )
