"""The table of instances, beside the region properties of scikit-image."""

import csv
import math

import numpy as np
import pytest
from em_train.segment.table import Instance, measure, write_table
from skimage.measure import regionprops

INSTANCES = np.zeros((40, 50), np.uint16)
INSTANCES[5:15, 10:30] = 3
INSTANCES[20:40, 0:7] = 900
INSTANCES[30, 40] = 4


def test_it_is_what_scikit_image_measures():
    rows = measure("a", INSTANCES, (1.0, 2.0, 3.0))
    wanted = {one.label: one for one in regionprops(INSTANCES)}
    assert [row.id for row in rows] == [3, 4, 900]
    for row in rows:
        own = wanted[row.id]
        assert row.area_px == own.area and row.area_nm2 == own.area * 6
        assert (row.centroid_y_px, row.centroid_x_px) == pytest.approx(own.centroid)
        assert row.diameter_px == pytest.approx(own.equivalent_diameter_area)
        assert row.diameter_nm == pytest.approx(row.diameter_px * math.sqrt(6))
    assert [row.touches_border for row in rows] == [False, False, True]
    assert measure("a", np.zeros((4, 4), int), None) == []


def test_what_is_not_known_is_empty(tmp_path):
    write_table(measure("a,b", INSTANCES, None), tmp_path / "t.csv")
    with (tmp_path / "t.csv").open(newline="") as file:
        first, *_, last = csv.DictReader(file)
    assert tuple(first) == Instance._fields
    assert first["image"] == "a,b" and first["area_px"] == "200"
    assert first["area_nm2"] == first["diameter_nm"] == ""
    assert (first["touches_border"], last["touches_border"]) == ("no", "yes")
