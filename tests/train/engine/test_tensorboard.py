import sys

import pytest
from em_train.engine import tensorboard
from em_train.engine.run_folder import RunFolder


def test_rows_are_mirrored_and_those_to_be_repeated_hidden(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    for first, last in ((0, 4), (2, 5)):  # the second time from step 2 on
        folder = RunFolder(tmp_path)
        folder.mirrored = True
        folder.rewind(first)
        for step in range(first + 1, last):
            folder.record({"step": step, "loss": step + first / 10})
        folder.close()
        del folder
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    found = {event.step: round(event.value, 3) for event in events.Scalars("loss")}
    assert found == {1: 1.0, 2: 2.0, 3: 3.2, 4: 4.2}


def test_what_is_missing_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ImportError, match="pip install tensorboard"):
        tensorboard.require()
