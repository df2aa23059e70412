import json

import pytest
from em_train.segment.series import run_series, slice_counts


def test_numbers_of_slices():
    assert slice_counts(None) == []
    assert slice_counts("1, 2,8") == [1, 2, 8]
    for text in ("0", "1,1", "1,,2", "x", "-1"):
        with pytest.raises(ValueError, match="different numbers"):
            slice_counts(text)


def test_runs_that_are_done_are_not_done_again(tmp_path, capsys):
    path, done = tmp_path / "series", []
    score = {"class": "mito", "dice": 0.5, "dice_interval": [0.4, 0.6], "iou": 0.3}
    score |= {"average_precision": 0.7, "slices": {"z 3": {}}}

    def train(folder, layers, go_on):
        done.append((folder.name, layers[0].values, go_on))
        if len(done) == 2:
            raise KeyboardInterrupt
        folder.mkdir(parents=True)
        (folder / "scores.json").write_text(json.dumps({"classes": [score]}))

    with pytest.raises(KeyboardInterrupt):
        run_series(path, [1, 4], train, resume=False)
    assert not (path / "series.json").exists()
    with pytest.raises(FileExistsError, match="--resume"):
        run_series(path, [1, 4], train, resume=False)
    run_series(path, [1, 4], train, resume=True)
    assert [name for name, *_ in done] == ["slices-1", "slices-4", "slices-4"]
    assert done[-1][1:] == ({"data": {"slices": 4}}, False)
    rows = json.loads((path / "series.json").read_text())
    assert [(row["slices"], row["dice"]) for row in rows] == [(1, 0.5), (4, 0.5)]
    assert "0.400 to 0.600" in capsys.readouterr().out
