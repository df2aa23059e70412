import numpy as np
from em_train.look import pictures
from PIL import Image


def test_colours_are_stable_and_different():
    colours = pictures.palette(50)
    assert len({tuple(c) for c in colours}) == 50
    np.testing.assert_array_equal(pictures.palette(20), colours[:20])
    others = {tuple(c) for c in pictures.palette(10, first=100)}
    assert len(others) == 10 and not others & {tuple(c) for c in colours}


def test_a_row_of_panels_is_a_png(tmp_path):
    grey = np.full((30, 40), 77, np.uint8)
    codes = np.arange(1200).reshape(30, 40) % 5
    colours = pictures.class_map(codes, 5)
    path = tmp_path / "new" / "row.png"
    pictures.save_row([("raw", grey), ("classes", colours)], path)
    sheet = np.asarray(Image.open(path))
    assert sheet.shape == (30 + pictures.TITLE_PX, 80 + pictures.GAP_PX, 3)
    np.testing.assert_array_equal(sheet[pictures.TITLE_PX :, :40], grey[..., None].repeat(3, 2))
    np.testing.assert_array_equal(sheet[pictures.TITLE_PX :, -40:], colours)
    assert pictures.overlay(grey, colours, 0.0).tolist() == grey[..., None].repeat(3, 2).tolist()


def test_true_classes_have_colours_of_their_own_and_unlabelled_is_black():
    shown = pictures.true_map(np.array([[0, 1, -1]]), 2)
    assert shown[0, 2].tolist() == [0, 0, 0]
    learned = {tuple(c) for c in pictures.palette(50)}
    assert not {tuple(c) for c in shown[0, :2]} & learned


def test_small_panels_are_enlarged_by_whole_pixels():
    panel = np.arange(60, dtype=np.uint8).reshape(20, 3)
    ((title, large),) = pictures.enlarged([("a", panel)])
    times = round(pictures.SMALL_PX / 20)
    assert title == "a" and large.shape == (20 * times, 3 * times)
    assert (large[::times, ::times] == panel).all() and (large[:times, :times] == 0).all()
    ((_, same),) = pictures.enlarged([("b", np.zeros((300, 9), np.uint8))])
    assert same.shape == (300, 9)
