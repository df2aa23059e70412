import numpy as np
import pytest
from em_train.look.histogram import COLOUR, edges_of, save_histogram, title
from PIL import Image


@pytest.mark.parametrize("values", [[3.0], [2.0, 2.0], np.linspace(0.01, 900, 5000), [1e-9, 1e9]])
def test_every_value_lies_in_a_bar_of_a_round_width(values):
    edges = edges_of(values)
    assert np.histogram(values, edges)[0].sum() == len(values)
    assert len(edges) < 150
    mantissa = float(f"{edges[1] - edges[0]:.6e}".partition("e")[0])
    assert mantissa in (1, 2, 5)


def test_bars_are_drawn_as_high_as_they_count(tmp_path):
    values = [1.0] * 30 + [9.0] * 10
    save_histogram(values, "diameter (nm)", tmp_path / "h.png")
    with Image.open(tmp_path / "h.png") as picture:
        bars = (np.asarray(picture) == COLOUR).all(2)
    heights = np.unique(bars.sum(0))
    assert heights[heights > 0].tolist() == pytest.approx([heights.max() / 3, heights.max()], abs=2)
    save_histogram([], "diameter (nm)", tmp_path / "none.png")
    assert title([]) == "none" and (tmp_path / "none.png").stat().st_size > 500
