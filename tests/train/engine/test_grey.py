import json

import numpy as np
import pytest
from em_data import GreyRange, grey_range, open_volume
from em_train.engine import grey


@pytest.fixture
def volume():
    """Grey values of about 100 to 200."""
    rng = np.random.default_rng(0)
    return open_volume(rng.integers(100, 201, (4, 64, 64)).astype(np.uint8))


def test_a_volume_is_read_as_the_run_was_where_they_are_alike(tmp_path, volume):
    own = grey_range(volume)
    near, far = GreyRange(own.low - 9, own.high + 8), GreyRange(own.low - 15, own.high)
    grey.keep(tmp_path, [far, near])
    assert grey.kept(tmp_path) == [far, near]
    found = grey.choose(tmp_path, volume)
    assert found.range == near and "as in the run; the volume's own are 100 to 200" in str(found)
    grey.keep(tmp_path, [far])
    found = grey.choose(tmp_path, volume)
    assert found.range == own and "the run's, 85 to 200, are too far" in str(found)
    assert grey.choose(tmp_path, volume, "run").range == far
    assert grey.choose(tmp_path, volume, "volume").range == own


def test_numbers_are_taken_to_the_last_digit(tmp_path, volume):
    low, high = 1 / 3, 2e5 / 7
    assert grey.choose(tmp_path, volume, f"{low!r},{high!r}").ends == (low, high)
    for text in ("all", "1", "1,2,3", "2,1", "1,1", "nan,1", "0,inf", ""):
        with pytest.raises(ValueError, match="--grey is .*LOW,HIGH"):
            grey.choose(tmp_path, volume, text)


def test_runs_that_keep_no_range_are_read_as_before(tmp_path, volume):
    found = grey.choose(tmp_path, volume)
    assert found.range == grey_range(volume) and "the run keeps none" in str(found)
    with pytest.raises(ValueError, match="keeps no grey range .*--grey volume"):
        grey.choose(tmp_path, volume, "run")


@pytest.mark.parametrize(
    "text",
    ["", "[", "7", "null", "[1, 2]", "[[1]]", "[[2, 1]]", '[["a", 1]]', "[[0, NaN]]", "[{}]"],
)
def test_a_damaged_file_is_named(tmp_path, volume, text):
    (tmp_path / grey.FILE).write_text(text)
    with pytest.raises(ValueError, match=r"grey\.json is damaged: .*--grey volume"):
        grey.choose(tmp_path, volume)
    assert grey.choose(tmp_path, volume, "volume").range == grey_range(volume)


def test_what_is_kept_is_plain(tmp_path):
    grey.keep(tmp_path, [GreyRange(7.25, 228)])
    assert json.loads((tmp_path / "grey.json").read_text()) == [[7.25, 228]]
