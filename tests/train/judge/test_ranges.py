import pytest
from em_train.judge.ranges import fit_and_score, overlap

RAW = "raw.zarr"


def test_slices_are_fitted_or_scored_but_not_both():
    for count in range(2, 30):
        labelled = range(3, 3 + count)
        fit, score = fit_and_score(labelled, None, None, RAW)
        assert fit[0] == 3 and score[1] == 3 + count and not overlap(fit, score)
    labelled = range(20)
    assert fit_and_score(labelled, None, None, RAW) == ((0, 12), (14, 20))
    assert fit_and_score(labelled, (0, 9), (5, 20), RAW) == ((0, 9), (5, 20))  # as wanted
    for given, trimmed in (
        ((0, 8), (8, 12)),
        ((4, 6), (0, 4)),
        ((10, 14), (0, 10)),
        ((16, 20), (0, 12)),
    ):
        assert fit_and_score(labelled, None, given, RAW) == (trimmed, given)
    for given, trimmed in (((0, 9), (14, 20)), ((10, 16), (16, 20)), ((16, 20), (14, 16))):
        assert fit_and_score(labelled, given, None, RAW) == (given, trimmed)
    with pytest.raises(ValueError, match="none is left to score beside 0:20"):
        fit_and_score(labelled, (0, 20), None, RAW)
    with pytest.raises(ValueError, match="slices 0:1 of raw.zarr; none is left to fit"):
        fit_and_score(range(1), None, None, RAW)
    with pytest.raises(ValueError, match="--score-z is 4:30"):
        fit_and_score(labelled, None, (4, 30), RAW)
