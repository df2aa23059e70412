import numpy as np
import pytest
from em_data import NotFiniteError, VolumeFormatError
from em_train.engine.reading import open_volumes
from em_train.mae.data import DataConfig
from PIL import Image


def test_gaps_between_slices_are_closed_if_the_run_asks_for_it(tmp_path):
    for number in (0, 1, 5):
        Image.new("L", (5, 4), number).save(tmp_path / f"s{number}.png")
    data = {"volumes": (str(tmp_path),)}
    with pytest.raises(VolumeFormatError, match=r"--set data\.gaps=close"):
        open_volumes(DataConfig(**data))
    (volume,) = open_volumes(DataConfig(**data, gaps="close"))
    assert volume[:, 0:1, 0:1].ravel().tolist() == [0, 1, 5]


@pytest.mark.parametrize("memory_gib", [1, 1e-9])  # held, or read when it is needed
def test_the_share_of_voxels_that_are_no_numbers_is_said(tmp_path, capsys, memory_gib):
    voxels = np.ones((4, 8, 8), np.float32)
    voxels[0] = np.nan
    np.save(tmp_path / "a.npy", voxels)
    data = {"volumes": (str(tmp_path / "a.npy"),), "memory_gib": memory_gib}
    with pytest.raises(NotFiniteError, match="NaN or infinite"):
        (volume,) = open_volumes(DataConfig(**data))
        volume[:, :, :]
    open_volumes(DataConfig(**data, nan="mask"))
    assert "a.npy: 25.00% of the voxels are NaN or infinite" in capsys.readouterr().err
