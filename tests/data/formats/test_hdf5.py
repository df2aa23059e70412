import json

import h5py
import numpy as np
import pytest
from em_data import VolumeFormatError, VolumeNotFoundError, VolumeReadError, open_volume


@pytest.fixture
def file(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        yield file


def test_dataset_is_named_or_the_only_one(file, voxels):
    data = voxels((6, 20, 30), ">u2")
    stored = file.create_dataset(
        "volumes/raw", data=data, chunks=(2, 8, 8), compression="gzip", shuffle=True
    )
    file["flat"] = np.zeros((4, 4))
    file.flush()
    path = file.filename
    for address in (path, f"{path}::volumes/raw", f"{path}::/volumes/raw"):
        volume = open_volume(address)
        assert (volume.format, volume.source) == ("HDF5", f"{path}::volumes/raw")
        assert (volume.chunk_vx, volume.compression) == ((2, 8, 8), "shuffle, deflate")
        np.testing.assert_array_equal(volume[1:5, 3:17, 8:29], stored[1:5, 3:17, 8:29])
        assert volume.dtype == np.uint16 and volume.voxel_size_nm is None
    file["labels"] = np.zeros((2, 2, 2), np.uint64)
    file.flush()
    with pytest.raises(VolumeFormatError, match="2 3D datasets: labels, volumes/raw; name one, as"):
        open_volume(path)
    with pytest.raises(VolumeNotFoundError, match="has no 'raw'; it holds 2 3D datasets"):
        open_volume(f"{path}::raw")
    with pytest.raises(VolumeFormatError, match="volumes is a group"):
        open_volume(f"{path}::volumes")
    with pytest.raises(VolumeFormatError, match=r"\(4, 4\)|2 axes"):
        open_volume(f"{path}::flat")


def test_voxel_sizes_of_ilastik_and_cremi(file):
    for name in ("ilastik", "cremi", "cremi_labels", "per_axis"):
        file[name] = np.zeros((2, 3, 4), np.uint8)
    file["ilastik"].attrs["element_size_um"] = [0.04, 0.004, 0.004]
    file["cremi"].attrs["resolution"] = [40.0, 4.0, 4.0]
    file["cremi_labels"].attrs["resolution"] = [40.0, 4.0, 4.0]
    file["cremi_labels"].attrs["offset"] = [1480.0, 3644.0, 3644.0]
    file["per_axis"].attrs["resolution"] = 4.0  # one number says nothing of z
    file.flush()
    opened = {name: open_volume(f"{file.filename}::{name}") for name in file}
    assert opened["ilastik"].voxel_size_nm == opened["cremi"].voxel_size_nm == (40, 4, 4)
    assert opened["cremi"].origin_nm == (0, 0, 0)
    assert opened["cremi_labels"].origin_nm == (1480, 3644, 3644)
    assert opened["per_axis"].voxel_size_nm is None
    file["cremi"].attrs["resolution"] = [40.0, 4.0, 0.0]
    file.flush()
    with pytest.raises(VolumeFormatError, match="above 0"):
        open_volume(f"{file.filename}::cremi")


def test_axes_of_ilastik(file, voxels):
    data = voxels((1, 4, 16, 16, 2))
    stored = file.create_dataset("exported_data", data=data)
    file.flush()
    with pytest.raises(VolumeFormatError, match="5 axes and no attribute axistags"):
        open_volume(file.filename)
    stored.attrs["axistags"] = json.dumps({"axes": [{"key": axis} for axis in "tzyxc"]})
    file.flush()
    with pytest.raises(VolumeFormatError, match="2 channels; choose one with channel=0 … 1"):
        open_volume(file.filename)
    volume = open_volume(file.filename, channel=1)
    np.testing.assert_array_equal(volume[1:3, 2:9, 0:16], data[0, 1:3, 2:9, :, 1])
    stored.attrs["axistags"] = "not json"
    file.flush()
    with pytest.raises(VolumeFormatError, match="axistags cannot be read"):
        open_volume(file.filename)


def test_damaged_chunk_and_truncated_file(tmp_path, voxels):
    path, data = tmp_path / "a.h5", voxels((4, 32, 32))
    with h5py.File(path, "w") as file:
        raw = file.create_dataset("raw", data=data, chunks=(2, 32, 32), compression="gzip")
        at = raw.id.get_chunk_info(1).byte_offset
        empty = file.create_dataset("never", (4, 32, 32), "u1", chunks=(2, 32, 32), fillvalue=5)
        assert empty.id.get_num_chunks() == 0
    whole = path.read_bytes()
    path.write_bytes(whole[: at + 10] + bytes(40) + whole[at + 50 :])
    volume = open_volume(f"{path}::raw")
    np.testing.assert_array_equal(volume[0:2, 0:32, 0:32], data[:2])
    with pytest.raises(VolumeReadError, match=r"a\.h5::raw: voxels \(1, 1, 1\) at \(2, 0, 0\)"):
        volume[2:3, 0:1, 0:1]
    assert (open_volume(f"{path}::never")[0:4, 0:32, 0:32] == 5).all()  # absent: the fill value
    (tmp_path / "cut.h5").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(VolumeFormatError, match=r"cut\.h5 cannot be read as HDF5.*truncated"):
        open_volume(tmp_path / "cut.h5")
