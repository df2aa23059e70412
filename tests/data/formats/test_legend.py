import json

import numpy as np
import zarr
from em_data import Box, new_store
from em_data.formats.legend import Legend, read_legend

SHAPE, SIZE = (2, 8, 8), (40.0, 8.0, 8.0)
EVERYTHING = Box((0, 0, 0), SHAPE)


def test_what_was_written_is_read_back(tmp_path):
    with new_store(tmp_path / "a.zarr") as store:
        image = store.add_image(
            SHAPE, np.uint8, SIZE, channels=("a", "b b"), colours=((255, 0, 16), (1, 2, 3))
        )
        image.write(EVERYTHING, np.zeros((2, *SHAPE), np.uint8))
        label = store.add_image(
            SHAPE,
            np.uint8,
            SIZE,
            label="classes",
            classes=("rest", "mito"),
            colours=((0, 0, 0), (9, 8, 7)),
        )
        label.write(EVERYTHING, np.zeros(SHAPE, np.uint8))
        store.add_image(SHAPE, np.uint32, SIZE, label="cells")
    assert read_legend(str(tmp_path / "a.zarr")) == Legend(
        channels=("a", "b b"), colours={0: (255, 0, 16), 1: (1, 2, 3)}
    )
    # Black is not shown, so it is no colour.
    assert read_legend(f"{tmp_path}/a.zarr/labels/classes/") == Legend(
        is_label=True, classes={0: "rest", 1: "mito"}, colours={1: (9, 8, 7)}
    )
    assert read_legend(str(tmp_path / "a.zarr/labels/cells")) == Legend(is_label=True)


def test_first_classes_that_are_no_rest_are_shown(tmp_path):
    with new_store(tmp_path / "a.zarr") as store:
        store.add_image(
            SHAPE, np.uint8, SIZE, classes=("one", "two"), colours=((1, 1, 9), (2, 2, 2))
        )
    assert read_legend(str(tmp_path / "a.zarr")).colours == {0: (1, 1, 9), 1: (2, 2, 2)}


def test_other_programs_images_and_volumes_that_say_nothing(tmp_path):
    group = zarr.open_group(tmp_path / "old.zarr", mode="w", zarr_format=2)
    group.create_array("0", data=np.zeros((3, *SHAPE), np.uint8))
    axes = [{"name": axis} for axis in "czyx"]
    group.attrs["multiscales"] = [{"axes": axes, "datasets": [{"path": "0"}]}]
    channels = [{"label": "red", "color": "FF0000"}, {"active": True, "color": "ffffff"}]
    group.attrs["omero"] = {"channels": channels}
    assert read_legend(str(tmp_path / "old.zarr")) == Legend(
        channels=("red", "channel 1", "channel 2"), colours={0: (255, 0, 0)}
    )
    zarr.create_array(tmp_path / "plain.zarr", data=np.zeros(SHAPE, np.uint8))
    np.save(tmp_path / "raw.npy", np.zeros(SHAPE, np.uint8))
    (tmp_path / "slices").mkdir()
    for name in ("plain.zarr", "raw.npy", "slices"):
        assert read_legend(str(tmp_path / name)) == Legend()
    assert read_legend("synthetic:shape=2x8x8") == Legend()
    (tmp_path / "seg").mkdir()
    (tmp_path / "seg" / "info").write_text(json.dumps({"type": "segmentation"}))
    assert read_legend(str(tmp_path / "seg")) == Legend(is_label=True)
