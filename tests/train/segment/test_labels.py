import numpy as np
import pytest
import torch
from em_data import new_store, open_volume
from em_data.geometry import Box
from em_train.segment.labels import (
    Classes,
    balance,
    labelled,
    meeting,
    open_labels,
    truth_of,
)


def test_channels_values_ignored_and_exclusive():
    stored = torch.tensor([[[0, 1, 1, 9]], [[0, 0, 5, 5]]])[None]  # (1, 2, 1, 4)
    valid = torch.tensor([[[True] * 4], [[True, True, True, False]]])[None]
    two = Classes(names=("a", "b"))
    truth, known = two.target(stored, valid)
    assert truth[0, :, 0].tolist() == [[False, True, True, True], [False, False, True, False]]
    assert torch.equal(known, valid)
    truth, known = Classes(names=("a", "b"), exclusive=True).target(stored, valid)
    assert truth[0, :, 0].tolist() == [[False, True, False, False], [False, False, True, False]]
    assert known[0, :, 0].tolist() == [[True, True, True, False]] * 2
    _, known = Classes(names=("a", "b"), ignore=9).target(stored, valid)
    assert known[0, 0, 0].tolist() == [True, True, True, False]
    one = Classes(names=("five", "one"), values=(5, 1))
    truth, known = one.target(torch.tensor([[[0, 1, 5, 9]]]), torch.ones(1, 1, 4).bool())
    assert truth[0].tolist() == [[False, False, True, False], [False, True, False, False]]
    assert known.shape == truth.shape
    assert balance(one, 0.5) == {"five@5": 0.25, "one@1": 0.25}
    assert balance(two, 1.0) == {"a": 0.5, "b": 0.5}


@pytest.fixture
def stores(tmp_path):
    """Two volumes with a label image, and one volume of classes on slices 2 and 3."""
    rng = np.random.default_rng(0)
    voxels = rng.integers(0, 3, (4, 8, 8)).astype(np.uint8)
    size = (40.0, 4.0, 4.0)
    for name in ("a", "b"):
        with new_store(tmp_path / name) as store:
            store.add_image(voxels.shape, np.uint8, size).write(
                Box((0, 0, 0), voxels.shape), voxels
            )
            image = store.add_image(voxels.shape, np.uint8, size, label="own")
            image.write(Box((0, 0, 0), voxels.shape), voxels)
    with new_store(tmp_path / "part") as store:
        image = store.add_image((2, 8, 8), np.uint8, size, origin_nm=(80.0, 0.0, 0.0))
        image.write(Box((0, 0, 0), (2, 8, 8)), voxels[2:])
    return tmp_path, voxels


def test_labels_are_found_and_placed(stores):
    path, voxels = stores
    raw = [open_volume(path / "a"), open_volume(path / "b")]
    labels, classes = open_labels(raw, ["own"])
    assert classes.names == ("own",)
    truth, known = truth_of(labels[1], classes, Box((1, 0, 0), (2, 8, 8)))
    np.testing.assert_array_equal(truth[0], voxels[1:3] != 0)
    assert known.all()
    part = str(path / "part")
    labels, classes = open_labels(raw[:1], [f"one={part}@1", f"two={part}@2"], exclusive=True)
    assert (classes.names, classes.values, len(labels[0].layers)) == (("one", "two"), (1, 2), 1)
    truth, known = truth_of(labels[0], classes, Box((1, 0, 0), (2, 8, 8)))
    assert not known[:, 0].any() and known[:, 1].all()
    np.testing.assert_array_equal(truth[1, 1], voxels[2] == 2)
    labels, _ = open_labels(raw, [f"x={part}", f"x={path / 'a'}"])
    assert [one.covered[0].size_vx[0] for one in labels] == [2, 4]


def test_borders_of_instances_stand_beside_what_they_part(stores):
    path, voxels = stores
    raw = [open_volume(path / "a")]
    labels, classes = open_labels(raw, ["own", "border=borders:own"])
    assert (classes.names, classes.borders) == (("own", "border"), ("border",))
    box = Box((1, 0, 0), (2, 8, 8))
    truth, _ = truth_of(labels[0], classes, box)
    np.testing.assert_array_equal(truth[0], voxels[1:3] != 0)
    np.testing.assert_array_equal(truth[1], meeting(torch.from_numpy(voxels[1:3])))
    alone, borders = open_labels(raw, ["borders:own"])
    np.testing.assert_array_equal(truth_of(alone[0], borders, box)[0][0], truth[1])
    assert balance(classes, 0.5) == {"own": 0.5} and balance(borders, 0.5) == {}


def test_what_is_given_wrongly_is_refused_by_name(stores):
    path, _ = stores
    raw, part = [open_volume(path / "a"), open_volume(path / "b")], str(path / "part")
    for options, message in (
        ([], r"data\.labels is empty"),
        ([f"x={part}"], "given 1 times for 2 volumes"),
        ([f"x={part}@1", f"x={part}@2"], "one value in all volumes"),
        (["own@1", "other=own"], "values of one volume"),
        (["classes:own", "b=borders:own"], "classes: takes one volume, with all classes; got 2"),
        (["one=own@1", "b=borders:own"], "are either values of one volume"),
    ):
        with pytest.raises(ValueError, match=message):
            open_labels(raw, options)


def test_a_run_of_a_map_knows_classes_that_another_map_lacks(stores):
    path, voxels = stores
    raw = [open_volume(path / "a")]
    _, classes = open_labels(raw, ["classes:own"], names=("class 1", "class 2", "class 3"))
    assert classes.values == (1, 2, 3)
    _, classes = open_labels(raw, ["classes:own"], names=("cells", "mitochondria"))
    assert classes.names == ("class 1", "class 2")  # refused by who compares them
    np.save(path / "ignored.npy", np.where(voxels == 2, 255, voxels).astype(np.uint8))
    bare = [open_volume(voxels)]
    _, classes = open_labels(bare, [f"classes:{path}/ignored.npy"], ignore=255)
    assert classes.names == ("class 1",)


def test_slices_of_overlapping_boxes_come_once():
    boxes = [Box((1, 0, 0), (2, 4, 4)), Box((2, 0, 0), (2, 4, 4))]
    found = labelled(boxes)
    assert [box.origin_vx[0] for box in found] == [1, 2, 3]
    assert all(box.size_vx == (1, 4, 4) for box in found)
