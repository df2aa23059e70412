"""Stacks at one physical scale."""

from dataclasses import replace

import numpy as np
import pytest
from em_data import StackConfig, open_volume
from em_train.dense.data import DataConfig, make_loader, stack_of
from em_train.engine import reading
from em_train.engine.reading import open_volumes


def test_only_the_asked_slices_are_learned_from():
    stack = StackConfig(size_vx=65, offsets_z=(-1, 0, 1))
    data = DataConfig(volumes=("synthetic:shape=12x96x96,seed=1",), z=(2, 6), stack=stack)
    volumes = open_volumes(data)
    loader = make_loader(volumes, data, rim=0, seed=0)
    seen = [loader.sampler(key).box for step in range(20) for key in loader.keys(step)]
    assert {box.origin_vx[0] for box in seen} == {2, 3}  # stacks of three slices
    assert loader.sampler.config.crop_vx[0] == 3
    beyond = DataConfig(volumes=data.volumes, z=(2, 13), stack=stack)
    with pytest.raises(ValueError, match="data.z is 2:13, but .* has slices 0:12"):
        make_loader(volumes, beyond, rim=0, seed=0)


def test_context_is_shuffled_among_two_or_more(monkeypatch):
    stack = StackConfig(size_vx=65, offsets_z=(-1, 0, 1))
    data = DataConfig(volumes=("synthetic:shape=8x96x96",), stack=stack, shuffle_context=True)
    volumes = open_volumes(data)
    make_loader(volumes, replace(data, batch_size=2), rim=0, seed=0)
    for processes in (1, 4):
        monkeypatch.setattr(reading.distributed, "size", lambda number=processes: number)
        with pytest.raises(ValueError, match=f"each of {processes} .* at least {2 * processes}"):
            make_loader(volumes, replace(data, batch_size=processes), rim=0, seed=0)


@pytest.mark.parametrize(
    ("shape", "size_nm", "pixel_nm", "expected"),
    [
        (
            (20, 200, 200),
            (45.0, 4.6, 4.6),
            8.0,
            ((20, 100, 100), (-1, 0, 1)),
        ),  # ssTEM, averaged down
        ((20, 200, 200), (10.0, 10.0, 10.0), 8.0, ((20, 200, 200), (-4, 0, 4))),  # FIB-SEM
        ((5, 200, 200), (10.0, 10.0, 10.0), 8.0, ((5, 200, 200), (-2, 0, 2))),  # too thin for 45 nm
        ((20, 200, 200), (10.0, 2.0, 2.0), None, ((20, 200, 200), (-4, 0, 4))),
        ((20, 200, 200), None, 8.0, ((20, 200, 200), (-1, 0, 1))),
    ],
)
def test_volumes_are_learned_at_one_scale(monkeypatch, shape, size_nm, pixel_nm, expected):
    volume = open_volume(np.zeros(shape, np.uint8), voxel_size_nm=size_nm)
    monkeypatch.setattr(reading, "open_volume", lambda address, at_nm, gaps: volume)
    stack = StackConfig(size_vx=65, offsets_z=(-1, 0, 1))
    data = DataConfig(pixel_nm=pixel_nm, stack=stack)
    found = open_volumes(data)
    assert (found[0].shape, stack_of(found, data).offsets_z) == expected
