"""The synthetic volume: a pure function of place, with the sizes and classes of real tissue."""

import hashlib
import importlib

import numpy as np
import pytest
from em_data.synthetic import CLASSES, SyntheticBlock, SyntheticConfig, render
from hypothesis import given, settings
from hypothesis import strategies as st

SMALL = SyntheticConfig(shape_vx=(20, 96, 112), seed=3, defects=0.3, nucleus_radius_nm=250)
PARTS = ("raw", "classes", "instances")


@pytest.fixture(scope="module")
def small() -> SyntheticBlock:
    return render(SMALL)


@pytest.fixture(scope="module")
def default() -> SyntheticBlock:
    return render(SyntheticConfig())


def label(name: str) -> int:
    return CLASSES.index(name)


def shares(block: SyntheticBlock) -> dict[str, float]:
    counts = np.bincount(block.classes.ravel(), minlength=len(CLASSES))
    return dict(zip(CLASSES, counts / counts.sum(), strict=True))


def correlation(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.corrcoef(one.ravel(), other.ravel())[0, 1])


def assert_cut(small: SyntheticBlock, origin: list[int], size: list[int]) -> None:
    box = tuple(slice(start, start + length) for start, length in zip(origin, size, strict=True))
    part = render(SMALL, origin, size)
    for name in PARTS:
        np.testing.assert_array_equal(getattr(part, name), getattr(small, name)[box], name)


@pytest.mark.parametrize(
    ("origin", "size"),
    [
        ((0, 0, 0), (1, 1, 1)),
        ((19, 95, 111), (1, 1, 1)),
        ((7, 0, 0), (1, 96, 112)),
        ((0, 41, 0), (20, 1, 112)),
        ((0, 0, 63), (20, 96, 1)),
        ((3, 17, 29), (13, 61, 67)),
    ],
)
def test_a_box_is_a_cut_of_the_whole(small, origin, size):
    assert_cut(small, origin, size)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(data=st.data())
def test_any_box_is_a_cut_of_the_whole(small, data):
    origin, size = [], []
    for length in SMALL.shape_vx:
        origin.append(data.draw(st.integers(0, length - 1)))
        size.append(data.draw(st.integers(1, length - origin[-1])))
    assert_cut(small, origin, size)


@pytest.mark.parametrize(
    "options",
    [
        {"voxel_size_nm": (45, 5, 5), "shape_vx": (9, 120, 110), "nucleus_radius_nm": 230},
        {"voxel_size_nm": (9, 9, 9), "irregularity": 2, "cell_size_nm": 300, "blur_nm": 20},
        {"voxel_size_nm": (30, 30, 30), "shape_vx": (24, 70, 80), "seed": 9},
    ],
)
def test_a_box_is_a_cut_of_other_tissues(options):
    config = SyntheticConfig(**({"shape_vx": (14, 80, 90)} | options))
    whole = render(config)
    part = render(config, (3, 31, 17), (5, 23, 49))
    for name in PARTS:
        cut = getattr(whole, name)[3:8, 31:54, 17:66]
        np.testing.assert_array_equal(getattr(part, name), cut, name)


def test_slabs_do_not_show(small, monkeypatch):
    module = importlib.import_module("em_data.synthetic.render")  # its name is the function's too
    monkeypatch.setattr(module, "SLAB_VOXELS", 3 * 96 * 112)
    assert_cut(small, [0, 0, 0], [20, 96, 112])


def test_far_from_the_origin_nothing_changes():
    """A place 1 mm away still has the same voxels in every box."""
    far = SyntheticConfig(shape_vx=(20, 130_000, 96))
    whole = render(far, (0, 129_904, 0), (6, 96, 96))
    part = render(far, (2, 129_917, 21), (3, 31, 40))
    np.testing.assert_array_equal(part.raw, whole.raw[2:5, 13:44, 21:61])
    membrane = whole.classes == label("membrane")
    assert 0.05 < membrane.mean() < 0.4
    assert correlation(membrane[2], membrane[3]) > 0.5


def test_seed_decides(small):
    def digest(block: SyntheticBlock) -> str:
        return hashlib.sha256(b"".join(getattr(block, name) for name in PARTS)).hexdigest()

    again = render(SMALL)
    other = render(SyntheticConfig(shape_vx=SMALL.shape_vx, seed=4))
    assert digest(again) == digest(small) != digest(other)
    assert abs(correlation(small.raw[5], other.raw[5])) < 0.3


def test_every_class_is_there(default):
    share = shares(default)
    assert min(share.values()) > 0.005
    assert 0.45 < share["cytoplasm"] < 0.65
    assert 0.10 < share["membrane"] < 0.20


@pytest.mark.parametrize("seed", range(1, 9))
def test_default_volume_has_a_nucleus(seed):
    middle = render(SyntheticConfig(seed=seed), (31, 0, 0), (1, 384, 384))
    assert shares(middle)["nucleus"] > 0.03


def test_instances_are_cells(default):
    cells, sizes = np.unique(default.instances, return_counts=True)
    assert cells[0] > 0
    assert 50 < len(cells) < 500
    assert sizes.max() < 0.5 * default.raw.size
    across = np.diff(default.instances.astype(np.int64), axis=2) != 0
    membrane = default.classes == label("membrane")
    assert (membrane[:, :, 1:] & membrane[:, :, :-1])[across].mean() > 0.99
    # Each organelle lies inside one cell, a little away from its border.
    for name in ("mitochondrion", "nucleus", "microtubule"):
        inside = default.classes == label(name)
        assert not (inside[:, :, 1:] & across).any()


def test_intensity_looks_like_microscopy(default):
    """Membranes are darkest, mitochondria darker than cytoplasm, and they overlap."""
    grey = [default.raw[default.classes == index] for index in range(len(CLASSES))]
    mean = dict(zip(CLASSES, (values.mean() for values in grey), strict=True))
    assert mean["membrane"] < mean["mitochondrion"] < mean["vesicles"] < mean["cytoplasm"]
    assert mean["cytoplasm"] - mean["mitochondrion"] > 20
    assert 100 < default.raw.mean() < 180
    assert ((default.raw == 0) | (default.raw == 255)).mean() < 0.01


def test_grey_does_not_tell_the_classes(default):
    """Fifty bins of smoothed grey share little with the classes: mutual information, NMI < .15."""
    weights = np.exp(-0.5 * (np.arange(-6, 7) / 2.0) ** 2)
    weights /= weights.sum()
    smooth = default.raw[::4].astype(np.float64)
    for axis in (1, 2):
        smooth = np.apply_along_axis(np.convolve, axis, smooth, weights, mode="same")
    inner = (slice(None), slice(40, -40), slice(40, -40))
    smooth, classes = smooth[inner].ravel(), default.classes[::4][inner].ravel()
    codes = np.searchsorted(np.quantile(smooth, np.arange(1, 50) / 50), smooth)

    def entropy(counts: np.ndarray) -> float:
        p = counts[counts > 0] / counts.sum()
        return float(-(p * np.log(p)).sum())

    joint = np.bincount(codes * len(CLASSES) + classes, minlength=50 * len(CLASSES))
    table = joint.reshape(50, -1)
    parts = entropy(table.sum(0)) + entropy(table.sum(1))
    assert 0.03 < 2 * (parts - entropy(joint)) / parts < 0.15


def test_slices_continue(default):
    membrane = default.classes == label("membrane")
    near = np.mean([correlation(membrane[z], membrane[z + 1]) for z in range(0, 40, 10)])
    far = np.mean([correlation(membrane[z], membrane[z + 12]) for z in range(0, 40, 10)])
    assert near > 0.6
    assert far < 0.5 * near
    organelles = default.classes == label("mitochondrion")
    assert correlation(organelles[20], organelles[21]) > 0.8


@pytest.mark.parametrize("voxel_size_nm", [(8.0, 8.0, 8.0), (45.0, 6.0, 6.0), (24.0, 12.0, 12.0)])
def test_sizes_are_physical(default, voxel_size_nm):
    """The same tissue in other voxels: equal cells and equal shares of the classes."""
    extent = np.array((64, 384, 384)) * (17.6, 8, 8)
    shape = tuple(int(n) for n in np.ceil(extent / voxel_size_nm))
    config = SyntheticConfig(shape_vx=shape, voxel_size_nm=voxel_size_nm)
    height = max(1, round(140 / voxel_size_nm[0]))
    middle = round(450 / voxel_size_nm[0])
    there = render(config, (middle, 0, 0), (height, *shape[1:]))
    start, stop = round(450 / 17.6), round(590 / 17.6)
    here = SyntheticBlock(**{name: getattr(default, name)[start:stop] for name in PARTS})
    for name, share in shares(there).items():
        assert share == pytest.approx(shares(here)[name], rel=0.15, abs=0.005), name
    y, x = (np.arange(0, 3000, 100)[:, None], np.arange(0, 3000, 100))
    half = voxel_size_nm[0] * (middle + height // 2 + 0.5)
    same = (
        there.instances[
            height // 2, (y / voxel_size_nm[1]).astype(int), (x / voxel_size_nm[2]).astype(int)
        ]
        == default.instances[int(half / 17.6), y // 8, x // 8]
    )
    assert same.mean() > 0.85


def test_membranes_keep_their_thickness():
    """Through a membrane that stands upright, the class is as thick as the configuration says."""
    share = [
        shares(render(SyntheticConfig(membrane_nm=thickness), (20, 0, 0), (8, 384, 384)))[
            "membrane"
        ]
        for thickness in (20.0, 40.0)
    ]
    assert share[1] / share[0] == pytest.approx(2, rel=0.15)


def test_options_do_what_they_say():
    def look(**options) -> SyntheticBlock:
        return render(SyntheticConfig(**options), (0, 0, 0), (6, 192, 192))

    plain = look()
    assert shares(look(mitochondria=0.0))["mitochondrion"] < shares(plain)["mitochondrion"] / 2
    assert shares(look(vesicles=0.0))["vesicles"] == 0
    assert shares(look(microtubules=0.0))["microtubule"] == 0
    cells = [len(np.unique(look(cell_size_nm=size).instances)) for size in (250, 450, 900)]
    assert cells[0] > 1.5 * cells[1] > 1.5 * cells[2]
    steps = [
        np.abs(np.diff(look(**options).raw.astype(float), axis=2)).mean()
        for options in ({"blur_nm": 20.0, "noise": 0.0}, {"noise": 0.0}, {}, {"noise": 0.15})
    ]
    assert steps == sorted(steps)
    drift = [look(contrast_drift=share).raw.mean(axis=(1, 2)).std() for share in (0.0, 0.1)]
    assert drift[0] < 2 < 8 < drift[1]


def test_damaged_slices():
    options = {"shape_vx": (60, 96, 96), "seed": 1}
    clean = render(SyntheticConfig(**options))
    broken = render(SyntheticConfig(**options, defects=0.5))
    none = render(SyntheticConfig(**options, defects=0.0))
    np.testing.assert_array_equal(clean.raw, none.raw)

    missing = (broken.raw == 0).all(axis=(1, 2))
    shifted = (broken.classes != clean.classes).any(axis=(1, 2))
    brightness = broken.raw.mean(axis=(1, 2)) / clean.raw.mean(axis=(1, 2))
    dark = ~missing & (brightness < 0.7)
    for kind in (missing, shifted, dark):
        assert 3 <= kind.sum() <= 20
    assert not (missing & shifted).any()
    assert not (dark & shifted).any()
    same = ~missing & ~shifted & ~dark
    np.testing.assert_array_equal(broken.raw[same], clean.raw[same])

    # In a shifted slice the truth moves with the picture, by 60 to 150 nm (8 to 19 voxels).
    z = int(np.flatnonzero(shifted)[0])
    best = max(
        (
            correlation(
                broken.instances[z, 20:-20, 20:-20],
                clean.instances[z, 20 + y : 76 + y, 20 + x : 76 + x],
            ),
            abs(y),
            abs(x),
        )
        for y in range(-20, 21)
        for x in range(-20, 21)
    )
    assert best[0] == pytest.approx(1)
    assert 7 <= best[1] <= 19
    assert 7 <= best[2] <= 19


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shape_vx": (0, 10, 10)}, "shape_vx must be three whole numbers"),
        ({"shape_vx": (10, 10)}, "shape_vx must be three whole numbers"),
        ({"shape_vx": (4, 10.5, 10)}, "shape_vx must be three whole numbers"),
        ({"shape_vx": (10**6, 10**6, 10**6)}, "too many to number"),
        ({"voxel_size_nm": (10, -8, 8)}, "voxel_size_nm must be three numbers"),
        ({"voxel_size_nm": (10, float("nan"), 8)}, "voxel_size_nm must be three numbers"),
        ({"seed": -1}, "seed must be a whole number"),
        ({"seed": 2**32}, "seed must be a whole number"),
        ({"seed": 1.5}, "seed must be a whole number"),
        ({"cell_size_nm": 100}, "cell_size_nm must be at least 216"),
        ({"voxel_size_nm": (200, 8, 8)}, "cell_size_nm must be at least 800"),
        ({"cell_size_nm": 1300}, "nucleus_radius_nm must be at least half"),
        ({"mitochondria": 0.8, "vesicles": 0.3}, "at most 1"),
        ({"defects": 1.5}, "defects must lie in 0 to 1"),
        ({"noise": float("nan")}, "noise must lie in 0 to 1"),
    ],
)
def test_bad_configuration_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        SyntheticConfig(**options)


@pytest.mark.parametrize(
    ("origin", "size", "message"),
    [
        ((0, 0, 0), (1, 0, 1), "size_vx must be three whole numbers"),
        ((-1, 0, 0), None, "origin_vx must be three whole numbers"),
        ((0, 90, 0), (1, 10, 1), "exceeds the volume .* on y"),
        ((20, 0, 0), None, "exceeds the volume .* on z"),
    ],
)
def test_bad_box_is_refused(origin, size, message):
    with pytest.raises(ValueError, match=message):
        render(SMALL, origin, size)
