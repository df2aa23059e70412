import json
import math

import numpy as np
from em_train.engine.jsonable import blank_nan


def test_what_is_not_a_number_is_none_at_any_depth():
    found = {
        "score": math.nan,
        "interval": (0.25, math.inf),
        "slices": {"z 1": {"dice": np.float64("nan"), "iou": np.float64(0.5)}},
        "rows": [[-math.inf, 3], "nan", None, True],
    }
    expected = {
        "score": None,
        "interval": [0.25, None],
        "slices": {"z 1": {"dice": None, "iou": 0.5}},
        "rows": [[None, 3], "nan", None, True],
    }
    assert blank_nan(found) == expected
    assert json.loads(json.dumps(blank_nan(found), allow_nan=False)) == expected
    assert math.isnan(found["score"]), "what was given stays as it is"
