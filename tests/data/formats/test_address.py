"""`open_volume` on everything: what lies there is told apart, and every volume travels."""

import pickle

import h5py
import numpy as np
import pytest
import tifffile
import zarr
from em_data import VolumeFormatError, VolumeNotFoundError, open_volume
from em_data.errors import ExtraMissingError
from PIL import Image


@pytest.fixture
def everything(tmp_path, voxels, write_image, write_precomputed, write_n5):
    """Addresses of one volume in every local format, and its voxels."""
    data = voxels((6, 20, 30))
    np.save(tmp_path / "a.npy", data)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("raw", data=data, chunks=(2, 8, 8), compression="gzip")
    tifffile.imwrite(tmp_path / "plain.tif", data)
    tifffile.imwrite(tmp_path / "packed.tif", data, compression="zlib", rowsperstrip=7)
    for number, page in enumerate(data):
        (tmp_path / "png").mkdir(exist_ok=True)
        (tmp_path / "tif").mkdir(exist_ok=True)
        Image.fromarray(page).save(tmp_path / "png" / f"{number}.png")
        tifffile.imwrite(tmp_path / "tif" / f"{number}.tif", page, compression="lzw")
    zarr.create_array(tmp_path / "a.zarr", data=data, chunks=(2, 8, 8))
    write_precomputed(data, "precomputed")
    write_n5(data, "a.n5")
    names = (
        "a.npy",
        "a.h5",
        "plain.tif",
        "packed.tif",
        "png",
        "tif",
        "a.zarr",
        "precomputed",
        "a.n5",
    )
    addresses = [str(tmp_path / name) for name in names]
    addresses.append(str(write_image([data], chunks=(2, 8, 8), shards=(4, 16, 16))))
    addresses += [f"precomputed://file://{tmp_path}/precomputed", f"n5://{tmp_path}/a.n5"]
    return addresses, data


def test_every_format_reads_the_same_voxels_and_travels_by_pickle(everything):
    addresses, data = everything
    for address in addresses:
        volume = open_volume(address)
        assert (volume.shape, volume.dtype) == (data.shape, data.dtype), address
        np.testing.assert_array_equal(volume[1:5, 3:17, 8:29], data[1:5, 3:17, 8:29], address)
        np.testing.assert_array_equal(volume[5:6, 0:20, 29:30], data[5:6, 0:20, 29:30], address)
        pickled = pickle.dumps(volume)
        assert len(pickled) < data.nbytes, address  # the address, not the voxels
        np.testing.assert_array_equal(pickle.loads(pickled)[0:6, 2:20, 0:30], data[:, 2:], address)


def test_threads_share_a_volume(everything):
    from concurrent.futures import ThreadPoolExecutor

    addresses, data = everything
    with ThreadPoolExecutor(4) as pool:
        for address in addresses:
            volume = open_volume(address)
            slices = pool.map(lambda z, v=volume: v[z % 6 : z % 6 + 1, 0:20, 0:30], range(24))
            for z, read in enumerate(slices):
                np.testing.assert_array_equal(read[0], data[z % 6], address)


def test_after_a_fork_volumes_are_read_or_refused(everything, script, http_server, write_image):
    """In a process of its own: a fork in one that has read before."""
    addresses, data = everything
    np.save(http_server.folder / "truth.npy", data)
    remote = f"{http_server.url}/image.zarr"
    printed = script(
        """
        import os, sys
        import numpy as np
        from em_data import open_volume
        from em_data.errors import ForkError

        truth = np.load(sys.argv[1])
        volumes = [open_volume(address) for address in sys.argv[2:]]
        for volume in volumes:
            assert (volume[0:6, 0:20, 0:30] == truth).all()

        def child():
            for volume in volumes:
                try:
                    same = (volume[0:6, 0:20, 0:30] == truth).all()
                    print(volume.format, "read" if same else "other bytes", flush=True)
                except ForkError as error:
                    assert "spawn" in str(error) and "fork" in str(error)
                    print(volume.format, "refused", flush=True)
            try:
                open_volume(sys.argv[-1])
            except ForkError:
                print("opening refused", flush=True)

        pid = os.fork()
        if pid == 0:
            child()
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
        for volume in volumes:  # the parent goes on
            assert (volume[0:6, 0:20, 0:30] == truth).all()
        """,
        http_server.folder / "truth.npy",
        *addresses,
        remote,
    )
    assert printed.splitlines() == [
        *("npy read", "HDF5 read", "TIFF read", "TIFF read", "PNG slices read", "TIFF slices read"),
        *("zarr v3 read", "precomputed refused", "N5 refused", "OME-Zarr 0.5 read"),
        *("precomputed refused", "N5 refused", "OME-Zarr 0.5 refused", "opening refused"),
    ]


def test_what_is_no_volume_is_said_so(tmp_path):
    with pytest.raises(VolumeNotFoundError, match="nowhere"):
        open_volume(tmp_path / "nowhere")
    (tmp_path / "notes.txt").write_text("not a volume")
    with pytest.raises(VolumeFormatError, match=r"notes\.txt.*first bytes are b'not a vo'"):
        open_volume(tmp_path / "notes.txt")
    with pytest.raises(VolumeFormatError, match="no HDF5 file"):
        open_volume(f"{tmp_path}/notes.txt::raw")
    (tmp_path / "empty.h5").write_bytes(b"")
    with pytest.raises(VolumeFormatError, match=r"empty\.h5"):
        open_volume(tmp_path / "empty.h5")
    (tmp_path / "folder").mkdir()
    with pytest.raises(VolumeFormatError, match="folder, but neither zarr metadata nor slices"):
        open_volume(tmp_path / "folder")
    Image.new("L", (4, 4)).save(tmp_path / "one.png")
    with pytest.raises(VolumeFormatError, match="give the folder"):
        open_volume(tmp_path / "one.png")
    group = zarr.open_group(tmp_path / "group.zarr", mode="w")
    group.create_array("inside", shape=(2, 2, 2), dtype="u1")
    with pytest.raises(VolumeFormatError, match="inside"):
        open_volume(tmp_path / "group.zarr")
    with pytest.raises(VolumeFormatError, match="scheme is unknown; wanted http"):
        open_volume("ftp://host/a.zarr")


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((4, 4)), r"\(4, 4\)"),
        (np.zeros((4, 4, 0)), "empty"),
        (np.zeros((4, 4, 4), complex), "complex128"),
        (np.full((4, 4, 4), "text"), "<U4"),
    ],
)
def test_arrays_that_are_no_volume(array, message):
    with pytest.raises(VolumeFormatError, match=message):
        open_volume(array)


def test_a_channel_is_not_chosen_where_there_is_none(everything):
    addresses, data = everything
    for address in (data, "synthetic:shape=4x64x64", *addresses):
        with pytest.raises(VolumeFormatError, match="has no channel axis|1 channels"):
            open_volume(address, channel=1)


def test_what_the_caller_knows_overrides_the_file(write_image, voxels):
    path = write_image([voxels((4, 8, 8))])
    volume = open_volume(path, voxel_size_nm=(30, 4, 4), origin_nm=(1, 2, 3))
    assert (volume.voxel_size_nm, volume.origin_nm) == ((30, 4, 4), (1, 2, 3))
    with pytest.raises(VolumeFormatError, match="above 0"):
        open_volume(path, voxel_size_nm=(30, 4, 0))
    with pytest.raises(VolumeFormatError, match="at_nm"):
        open_volume(path, at_nm=(8, -8, 8))


@pytest.mark.parametrize(
    ("name", "module", "extra"),
    [
        ("a.h5", "h5py", "hdf5"),
        ("packed.tif", "tifffile", "tiff"),
        ("png", "PIL", "tiff"),
        ("a.n5", "tensorstore", "tensorstore"),
        ("precomputed", "tensorstore", "tensorstore"),
        ("http://127.0.0.1/a.zarr", "obstore.store", "remote"),
    ],
)
def test_a_missing_extra_is_named_with_the_command(
    everything, tmp_path, monkeypatch, name, module, extra
):
    monkeypatch.setitem(__import__("sys").modules, module, None)
    with pytest.raises(ExtraMissingError, match=rf"pip install 'em-data\[{extra}\]'"):
        open_volume(name if "://" in name else tmp_path / name)


def test_synthetic_address_renders_what_is_read():
    volume = open_volume("synthetic:shape=6x64x80,voxel_nm=10x10x10,seed=3")
    assert (volume.shape, volume.voxel_size_nm) == ((6, 64, 80), (10, 10, 10))
    whole = volume[0:6, 0:64, 0:80]
    np.testing.assert_array_equal(volume[2:4, 10:50, 5:70], whole[2:4, 10:50, 5:70])
    copy = pickle.loads(pickle.dumps(volume))
    np.testing.assert_array_equal(copy[2:4, 10:50, 5:70], whole[2:4, 10:50, 5:70])
    assert volume.labels("classes")[0:6, 0:64, 0:80].max() >= 1
    with pytest.raises(VolumeFormatError, match="synapses"):
        volume.labels("synapses")
    with pytest.raises(VolumeFormatError, match="sed=3"):
        open_volume("synthetic:sed=3")
    with pytest.raises(VolumeFormatError, match="shape is given twice"):
        open_volume("synthetic:shape=1x1x1,shape=12x80x80")


@pytest.mark.parametrize(
    "settings", ["shape=-1x2x3", "shape=0x2x3", "voxel_nm=nanx8x8", "voxel_nm=-8x8x8", "seed=-1"]
)
def test_a_synthetic_address_that_cannot_be_is_named(settings):
    with pytest.raises(
        VolumeFormatError, match=f"^synthetic:{settings}: .*wanted for instance syn"
    ):
        open_volume(f"synthetic:{settings}")
