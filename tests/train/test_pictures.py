import numpy as np
from em_train import pictures
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
