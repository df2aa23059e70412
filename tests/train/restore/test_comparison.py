import json
import math

import numpy as np
import pytest
from em_train.restore.baselines import Baseline, gaussian, tune
from em_train.restore.comparison import SCORES, Case, compare
from em_train.restore.scores import agreement, frc, gap, psnr, resolution, ring_count, rings
from scipy import ndimage

SHAPE = (96, 112)


def cases(count=5, *, seed=0, twice=True, stack=0, shape=SHAPE):
    rng = np.random.default_rng(seed)
    found = []
    for number in range(count):
        truth = ndimage.gaussian_filter(rng.standard_normal(shape), 2)
        truth = 0.5 + 0.2 * truth / truth.std()
        one, other = (truth + 0.1 * rng.standard_normal(shape) for _ in range(2))
        if stack:
            one, other = (
                np.stack([truth * 0] * stack + [x] + [truth * 0] * stack) for x in (one, other)
            )
        found.append(Case(f"z {number}", one, truth, other if twice else None))
    return found


def blur(sigma):
    return lambda image: ndimage.gaussian_filter(image, sigma)


def rows_of(found):
    return {row.method: row for row in found.rows}


def test_rows_hold_means_over_slices_and_differences_to_the_best_classical():
    given = cases()
    classical = {"gaussian 0.5": blur(0.5), "gaussian 1": blur(1.0)}
    found = compare(given, {"learned": blur(1.5)}, classical, pixel_nm=8.0)
    rows = rows_of(found)
    assert list(rows) == ["input", "gaussian 0.5", "gaussian 1", "learned"]
    assert [row.classical for row in found.rows] == [False, True, True, False]
    plain = {
        name: [psnr(restore(case.degraded), case.truth, data_range=1.0) for case in given]
        for name, restore in (*classical.items(), ("learned", blur(1.5)))
    }
    for name, values in plain.items():
        assert rows[name].values["psnr"] == pytest.approx(np.mean(values))
        assert [one["psnr"] for one in rows[name].slices.values()] == pytest.approx(values)
    assert found.best_classical == max(classical, key=lambda name: np.mean(plain[name]))
    paired = np.subtract(plain["learned"], plain[found.best_classical])
    learned = rows["learned"]
    assert learned.difference == pytest.approx(paired.mean())
    low, high = learned.difference_interval
    assert paired.min() <= low < learned.difference < high <= paired.max()
    # Slices differ by more than restorations of one slice do.
    wide = np.ptp(learned.intervals["psnr"])
    assert high - low < wide
    assert rows[found.best_classical].difference is None
    restored = [blur(1.5)(case.degraded) for case in given]
    count = ring_count(SHAPE)
    curve = frc(sum(rings(r, case.truth, count) for r, case in zip(restored, given, strict=True)))
    assert learned.values["resolution"] == pytest.approx(resolution(curve, pixel=8.0))


def test_what_is_invented_needs_second_copies():
    texture = 0.3 * ndimage.gaussian_filter(np.random.default_rng(9).standard_normal(SHAPE), 1)
    restorers = {"honest": blur(1.0), "inventing": lambda image: blur(1.0)(image) + 3 * texture}
    found = compare(cases(), restorers)
    rows = rows_of(found)
    assert abs(rows["honest"].values["gap"]) < 0.02 < 0.3 < rows["inventing"].values["gap"]
    assert abs(rows["inventing"].values["linear_gap"]) < 0.02
    assert rows["inventing"].values["invented"] > 0.5
    low, high = rows["inventing"].intervals["gap"]
    assert low <= rows["inventing"].values["gap"] <= high
    assert len(rows["inventing"].invented_by_octave) == 4
    assert found.best_classical is None and rows["honest"].difference is None
    given = cases()
    sums = sum(
        agreement(blur(1.0)(c.degraded), blur(1.0)(c.second), c.truth, ring_count(SHAPE))
        for c in given
    )
    assert rows["honest"].values["gap"] == pytest.approx(float(gap(sums)))
    once = rows_of(compare(cases(twice=False), restorers))["inventing"]
    assert all(math.isnan(once.values[key]) for key in ("gap", "linear_gap", "invented"))
    assert once.invented_by_octave == () and math.isfinite(once.values["psnr"])


def test_stacks_are_judged_at_their_middle_and_images_of_any_sizes_together():
    given = [*cases(2, stack=1), *cases(1, seed=1, stack=1, shape=(64, 150))]
    rows = rows_of(compare(given, {"learned": lambda stack: blur(1.0)(stack[1])}))
    assert rows["learned"].values["psnr"] > rows["input"].values["psnr"] + 3
    assert abs(rows["learned"].values["gap"]) < 0.02


def test_coarse_images_have_no_row_of_their_own():
    given = [
        case._replace(degraded=case.truth[::2, ::2], second=case.truth[::2, ::2])
        for case in cases(2)
    ]
    found = compare(given, {"learned": lambda image: image.repeat(2, 0).repeat(2, 1)})
    (row,) = found.rows
    assert row.method == "learned" and math.isnan(row.values["linear_gap"])
    assert math.isfinite(row.values["gap"])


def test_a_perfect_restoration_and_a_blank_one_are_shown(capsys):
    given = cases(3)
    truths = {case.degraded.tobytes(): case.truth for case in given}
    truths |= {case.second.tobytes(): case.truth for case in given}
    restorers = {"perfect": lambda i: truths[i.tobytes()], "blank": lambda i: i * 0 + 0.5}
    grid = {"sigma": (1.0,)}
    (classical,) = tune([Baseline(name="gaussian", function=gaussian, grid=grid)], [given[0].truth])
    found = compare(given, restorers, {classical.name: classical})
    rows = rows_of(found)
    assert rows["perfect"].values["psnr"] == math.inf
    assert rows["perfect"].values["gap"] == pytest.approx(0)
    assert math.isnan(rows["blank"].values["gap"])
    text = json.dumps(found.as_json(), allow_nan=False)
    assert json.loads(text)["rows"][0].keys() >= set(SCORES)
    found.show()
    said = capsys.readouterr().out
    for word in (
        "perfect",
        "blank",
        "gaussian",
        "PSNR",
        "FRC px",
        "gap",
        "best",
        "sigma 1",
        "3 slices",
    ):
        assert word in said
    assert "…" not in said  # nothing is cut at 80 columns


def test_bad_input_is_named():
    given = cases(2)
    with pytest.raises(ValueError, match="no slice to score"):
        compare([], {"learned": blur(1.0)})
    with pytest.raises(ValueError, match="name them apart"):
        compare(given, {"a": blur(1.0)}, {"a": blur(2.0)})
    with pytest.raises(ValueError, match="name them apart"):
        compare(given, {"input": blur(1.0)})
    with pytest.raises(ValueError, match=r"learned made \(95, 112\) of \(96, 112\)"):
        compare(given, {"learned": lambda image: image[1:]})
