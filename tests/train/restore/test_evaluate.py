import json

import numpy as np
import pytest
from em_train.restore.baselines import denoising, sampling
from em_train.restore.comparison import Case
from em_train.restore.evaluate import judge
from PIL import Image
from scipy import ndimage


def cases(first, count, *, shape=(300, 280), seed=0):
    found = []
    for z in range(first, first + count):
        rng = np.random.default_rng((seed, z))
        truth = ndimage.gaussian_filter(rng.standard_normal(shape), 2)
        truth = 0.5 + 0.15 * truth / truth.std()
        one, other = (truth + 0.1 * rng.standard_normal(shape) for _ in range(2))
        found.append(Case(f"z {z}", one, truth, other))
    return found


def blur(image):
    return ndimage.gaussian_filter(image, 1.2)


def some(*names):
    return [one for one in denoising() if one.name in names]


def test_a_run_is_judged_beside_tuned_filters_and_on_blank_images(tmp_path, capsys):
    filters = some("median", "gaussian")
    found = judge(
        blur, cases(0, 1), cases(5, 2), filters, pixel_nm=4.0, protocol={"task": "denoise"}
    )
    rows = {row.method: row for row in found.comparison.rows}
    assert list(rows) == ["input", "median", "gaussian", "run"]
    assert found.comparison.best_classical == "gaussian"
    assert rows["gaussian"].settings["sigma"] in (1.0, 1.4)
    assert set(found.blank) == {"run", "gaussian"}
    noise = np.random.default_rng(0).standard_normal((300, 280))
    assert found.blank["run"].flat < 1e-5
    assert found.blank["run"].noise == pytest.approx(blur(noise).std(), rel=0.05)
    written = json.loads(json.dumps(found.as_json(), allow_nan=False))
    assert written["protocol"] == {"task": "denoise", "choose": ["z 0"], "settings_by": "psnr"}
    assert written["blank"][0]["of"] == "run" and len(written["rows"]) == 4
    found.show()
    said = capsys.readouterr().out
    assert "FRC nm" in said and "contrast of a flat image 0.000" in said
    found.save_picture(tmp_path / "worst.png")
    with Image.open(tmp_path / "worst.png") as picture:
        assert picture.width > 5 * 256


def test_the_picture_shows_the_worst_place():
    given = cases(5, 2)

    def spoils(image):
        found = blur(image)
        if np.array_equal(image, given[1].degraded):
            found[290:, 270:] = 3.0
        return found

    found = judge(spoils, [], given)
    titles = [title for title, _ in found.panels]
    assert titles == ["degraded, z 6", "run", "truth", "run minus truth, grey is none"]
    restored = found.panels[1][1]
    assert restored.shape == (256, 256) and (restored[-10:, -10:] == 255).all()
    np.testing.assert_array_equal(
        found.panels[2][1], np.rint(given[1].truth[44:, 24:].clip(0, 1) * 255)
    )


def test_settings_are_chosen_without_truth():
    found = judge(blur, cases(0, 1), cases(5, 1), some("gaussian"), known=False)
    assert found.protocol["settings_by"] == "j-invariance"
    assert found.comparison.best_classical == "gaussian"


def test_coarse_images_are_judged_on_the_fine_grid():
    given = [
        case._replace(degraded=case.truth[::2, ::2], second=None)
        for case in cases(0, 3, shape=(128, 96))
    ]
    found = judge(lambda image: image.repeat(2, 0).repeat(2, 1), given[:1], given[1:], sampling(2))
    assert [row.method for row in found.comparison.rows] == [
        "bilinear",
        "bicubic",
        "lanczos",
        "run",
    ]
    assert all(panel.shape == (128, 96) for _, panel in found.panels)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="z 6: both to choose settings on and to score"):
        judge(blur, cases(5, 2), cases(6, 2), some("gaussian"))
    flat = [Case("z 0", np.zeros((64, 64)), np.zeros((64, 64)))]
    with pytest.raises(ValueError, match="the truth of all scored slices is flat"):
        judge(blur, [], flat)
