"""Touching particles are parted at their necks, whatever their size; what is one piece stays one."""

import sys

import numpy as np
import pytest
from em_train.segment.instances import Subject
from em_train.segment.parting import Parting, parted, parting_of, without_borders

Y, X = np.indices((120, 160))


def disc(y, x, radius):
    return (y - Y) ** 2 + (x - X) ** 2 <= radius**2


@pytest.mark.parametrize("radius", [4, 10, 30])
def test_two_discs_that_touch_are_parted_where_the_neck_is(radius):
    mask = disc(60, 50, radius) | disc(60, 50 + 2 * radius, radius)
    found = parted(mask)
    assert found.max() == 2 and ((found > 0) == mask).all()
    assert abs(int((found == 1).sum()) - int((found == 2).sum())) < 0.1 * mask.sum()
    centres = [X[found == one].mean() for one in (1, 2)]
    assert centres == pytest.approx([50, 50 + 2 * radius], abs=1 + 0.05 * radius)


def test_the_share_says_how_narrow_a_neck_is():
    """Discs of radius 20 whose centres are 24 apart: the neck is .8 of their diameter."""
    mask = disc(60, 50, 20) | disc(60, 74, 20)
    assert parted(mask, 0.75).max() == 1 and parted(mask, 0.9).max() == 2


def test_what_has_no_neck_stays_whole():
    ellipse = ((Y - 60) / 15) ** 2 + ((X - 80) / 50) ** 2 <= 1
    rod = (abs(Y - 60) < 4) & (abs(X - 80) < 60)
    half = Y < 50  # cut by the border of the image
    for mask in (ellipse, rod, half, np.ones_like(half)):
        assert parted(mask).max() == 1
    assert parted(np.zeros_like(half)).max() == 0
    single = np.zeros_like(half)
    single[3, 4] = True
    assert parted(single).sum() == 1


def test_a_particle_that_the_border_cuts_goes_on_behind_it():
    """Its distance is not taken to the border of the image, which would make a ridge of it."""
    assert parted(disc(0, 80, 40)).max() == 1
    assert parted(disc(5, 60, 15) | disc(5, 90, 15)).max() == 2


def test_subjects_and_necks():
    touching = disc(60, 50, 20) | disc(60, 90, 20)
    walls = (X == 40) | (X == 100)
    found = np.stack([touching, walls])
    names = ("particles", "walls")
    assert parting_of("particles", 0.75, names)(found).max() == 2
    joined = parting_of("particles", 0, names)(found)
    assert joined.max() == 1 and joined.dtype == np.uint32
    between = parting_of("between:walls", 0.75, names)(found)
    assert between.max() == 3 and (between > 0).all()
    assert parting_of(None, 0.5, ("particles",)) == Parting(subject=Subject(0, False), neck=0.5)
    with pytest.raises(ValueError, match="say whose instances are wanted, with --instances parti"):
        parting_of(None, 0.75, names)
    with pytest.raises(
        ValueError, match="--instances= names the class ''; wanted one of particles"
    ):
        parting_of("", 0.5, ("particles",))
    for neck in (-0.1, 1.0):
        with pytest.raises(ValueError, match=r"--neck is .*; wanted a share from 0"):
            parting_of("particles", neck, names)


def test_borders_part_what_necks_do_not():
    halves = (abs(Y - 60) < 20) & (abs(X - 80) < 50)  # two bricks without a neck
    border = abs(X - 80) < 2
    speck = disc(10, 10, 1)
    found = without_borders(halves | speck, border | speck)
    assert ((found > 0) == (halves | speck)).all() and found.max() == 3
    assert {int(found[60, 40]), int(found[60, 120]), int(found[10, 10])} == {1, 2, 3}
    assert (found[halves & (X < 78)] == found[60, 40]).all()  # grown back to the middle, no further
    assert parted(halves).max() == 1
    names, channels = ("particles", "border"), np.stack([halves, border])
    parting = parting_of(None, None, names, ("border",))
    assert parting == Parting(subject=Subject(0, False), borders=(1,))
    assert parting(channels).max() == 2
    assert parting_of(None, 0.75, names, ("border",))(channels).max() == 1  # as it was asked for
    assert parting_of(None, None, ("border",), ("border",)).subject == Subject(0, True)


def test_specks_are_left_out_and_the_rest_is_numbered_anew():
    mask = disc(5, 5, 1) | disc(60, 50, 9) | disc(60, 100, 9)
    whole = parting_of(None, 0.75, ("particles",))(mask[None])
    large = parting_of(None, 0.75, ("particles",), least_px=20)(mask[None])
    assert (whole.max(), large.max()) == (3, 2)
    np.testing.assert_array_equal(large, np.where(whole > 1, whole - 1, 0))


def test_a_missing_library_is_named_before_anything_is_computed(monkeypatch):
    monkeypatch.setitem(sys.modules, "skimage.segmentation", None)
    with pytest.raises(ImportError, match=r"pip install 'em-train\[restore\]'.* --neck 0"):
        parting_of(None, 0.75, ("particles",))
    assert parting_of(None, 0, ("particles",))(disc(60, 50, 9)[None]).max() == 1
