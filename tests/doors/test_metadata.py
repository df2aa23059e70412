"""Whatever JSON stands in the metadata of a store: a volume with numbers that are, or a refusal by name."""

import copy
import json
import math
import shutil

import em_data
import numpy as np
import pytest
from doors.damage import places
from doors.sound import SHAPE, array_meta, grey, image_meta, write_image
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

QUIET = settings(
    deadline=None,
    derandomize=True,
    max_examples=120,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
LEAF = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 9),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(
        ["space", "nanometer", "scale", "translation", "z", "0", "..", "labels", "uint8"]
    ),
)
JSON = st.recursive(
    LEAF,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(
            st.one_of(
                st.text(max_size=5), st.sampled_from(["path", "scale", "name", "type", "unit"])
            ),
            inner,
            max_size=4,
        ),
    ),
    max_leaves=8,
)


def replaced(tree, way, value):
    """A tree with something else at one place of it."""
    if not way:
        return value
    tree = copy.deepcopy(tree)
    here = tree
    for step in way[:-1]:
        here = here[step]
    here[way[-1]] = value
    return tree


def at_any_place(tree):
    ways = [(), *places(tree)]
    return st.tuples(st.sampled_from(ways), JSON).map(lambda pair: replaced(tree, *pair))


@pytest.fixture
def image(tmp_path):
    return write_image(tmp_path / "image.zarr")


def opened_or_named(path):
    """A volume of what lies there, whose description is sound; None where it is refused by name."""
    try:
        volume = em_data.open_volume(path)
    except (ValueError, OSError) as error:
        assert "image.zarr" in str(error), str(error)
        assert "Traceback" not in str(error)
        return None
    assert len(volume.shape) == 3 and min(volume.shape) > 0
    for level in volume.levels:
        size = level.voxel_size_nm
        assert size is None or all(math.isfinite(s) and s > 0 for s in size), size
    assert all(map(math.isfinite, volume.origin_nm)), volume.origin_nm
    assert all(isinstance(name, str) for name in volume.label_names), volume.label_names
    return volume


@QUIET
@given(described=at_any_place(image_meta()))
def test_any_description_of_an_image(image, described):
    group = {"zarr_format": 3, "node_type": "group", "attributes": {"ome": described}}
    (image / "zarr.json").write_text(json.dumps(group))
    volume = opened_or_named(image)
    if volume is not None:
        assert volume.shape == SHAPE
        assert volume[5:6, 0:4, 0:4].shape == (1, 4, 4)


@QUIET
@given(described=at_any_place(array_meta(grey())))
def test_any_description_of_an_array(image, described):
    (image / "0" / "zarr.json").write_text(json.dumps(described))
    volume = opened_or_named(image)
    if volume is not None:
        try:
            voxels = volume[0:1, 0:1, 0:1]
        except (ValueError, OSError, MemoryError) as error:
            assert "image.zarr" in str(error)
        else:
            assert voxels.shape == (1, 1, 1)


@QUIET
@given(names=JSON)
def test_any_list_of_labels(image, names):
    folder = image / "labels"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    listed = {"zarr_format": 3, "node_type": "group", "attributes": {"ome": {"labels": names}}}
    (folder / "zarr.json").write_text(json.dumps(listed))
    volume = opened_or_named(image)
    for name in volume.label_names if volume else ():
        with pytest.raises((ValueError, OSError)):  # none of them is there
            volume.labels(name)


@QUIET
@given(
    size=st.tuples(*[st.floats(min_value=1e-3, max_value=1e6)] * 3),
    origin=st.tuples(*[st.floats(min_value=-1e9, max_value=1e9)] * 3),
)
def test_a_sound_size_and_origin_come_back(image, size, origin):
    described = image_meta(origin, size)
    group = {"zarr_format": 3, "node_type": "group", "attributes": {"ome": described}}
    (image / "zarr.json").write_text(json.dumps(group))
    volume = em_data.open_volume(image)
    np.testing.assert_allclose(volume.voxel_size_nm, size, rtol=1e-9)
    np.testing.assert_allclose(volume.origin_nm, origin, rtol=1e-9, atol=1e-9)
