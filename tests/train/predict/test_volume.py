"""Predictions of whole volumes by the command: turned tiles, processes, Dask, kills, refusals."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import em_models
import numpy as np
import pytest
import torch
from em_data import Box, StoreExistsError, VolumeFormatError, grey_range, new_store, open_volume
from em_models import Vit3d, Vit3dConfig
from em_train.catalogue import RECIPES
from em_train.cli import app
from em_train.engine.config import Layer, resolve
from em_train.engine.reading import open_volumes
from em_train.engine.run_folder import new_run
from em_train.features.open import open_run as open_encoder
from em_train.features.slab import Slab
from em_train.mae.data import DataConfig
from em_train.predict import block_job, processes
from em_train.predict import volume as prediction
from em_train.recipes import mae, segment
from typer.testing import CliRunner

pytestmark = pytest.mark.processes

SHAPE, SIZE = (40, 140, 140), (40.0, 8.0, 8.0)
BLOCK = "32,128,128"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of two steps, and the volume that it saw."""
    path = tmp_path_factory.mktemp("predict")
    rng = np.random.default_rng(0)
    with new_store(path / "v.zarr") as store:
        image = store.add_image(SHAPE, np.uint8, SIZE)
        image.write(Box((0, 0, 0), SHAPE), rng.integers(0, 255, SHAPE).astype(np.uint8))
        mask = store.add_image(SHAPE, np.uint8, SIZE, label="mito")
        mask.write(Box((0, 0, 0), SHAPE), (rng.random(SHAPE) > 0.7).astype(np.uint8))
    settings = {
        "data": {"volumes": [str(path / "v.zarr")], "labels": ["mito"], "patch_vx": 32},
        "model": {"unet": {"channels": [4, 6]}},
        "run": {"steps": 2, "device": "cpu", "precision": "fp32"},
    }
    config = resolve(segment.Config, [Layer("test", settings)])
    assert segment.run(config, new_run(path / "run", config, "segment"))
    return path


@pytest.fixture
def emtrain(run):
    """A function that starts `emtrain predict` on the run."""
    started = []

    def start(out, *more):
        command = [sys.executable, "-m", "em_train.cli", "predict", run / "run"]
        command += ["--data", run / "v.zarr", "--out", out, "--output", "probabilities", *more]
        job = subprocess.Popen([*map(str, command)], stderr=subprocess.PIPE, text=True)
        started.append(job)
        return job

    yield start
    for job in started:  # those of a test that failed
        job.kill()
        job.wait()
        job.stderr.close()


@pytest.fixture(scope="module")
def whole(run):
    """The prediction of one process without interruptions."""
    out = run / "whole.zarr"
    told = CliRunner().invoke(app, arguments(run, out), catch_exceptions=False)
    assert told.exit_code == 0, told.output
    assert f"emtrain view {run / 'v.zarr'} {out}" in told.output
    return out


def arguments(run, out, *more, output="probabilities"):
    command = ["predict", run / "run", "--data", run / "v.zarr", "--out", out, "--output", output]
    return [*map(str, (*command, *more))]


def digest(path):
    """Of every voxel file; the plan, and so `zarr.json`, names the block."""
    files = sorted(f for f in path.rglob("*") if f.is_file() and f != path / "zarr.json")
    assert len(files) >= 8
    text = b"".join(str(f.relative_to(path)).encode() + f.read_bytes() for f in files)
    return hashlib.sha256(text).hexdigest()


def unfinished(out):
    return out.with_name(f".{out.name}.unfinished")


def markers(out):
    return {m.name for m in (unfinished(out) / "markers" / "0").glob("[0-9]*")}


def wait_for(condition, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


def children(pid):
    """The processes below one, at any depth."""
    texts = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/children")]
    return [one for child in map(int, " ".join(texts).split()) for one in (child, *children(child))]


def test_turned_tiles_are_the_mean_of_eight(run, tmp_path):
    np.save(tmp_path / "few.npy", open_volume(run / "v.zarr")[4:6, :, :])
    raw, module = open_volume(tmp_path / "few.npy"), RECIPES["segment"].predict
    assert prediction.predict(
        *(module, run / "run", raw.source, tmp_path / "t.zarr"), outputs=["probabilities"], tta=True
    )
    network = em_models.load(run / "run" / "weights" / "network")
    image = torch.from_numpy(grey_range(raw).unit(raw[1:2, :, :]))[None]
    want = torch.zeros(140, 140, dtype=torch.float64)
    with torch.no_grad():
        for flipped in (image, image.flip(-1)):
            for turns in range(4):
                found = network(flipped.rot90(turns, (-2, -1))).sigmoid()[0, 0].double()
                found = found.rot90(-turns, (-2, -1))
                want += (found if flipped is image else found.flip(-1)) / 8
    halo = network.config.halo
    inner = (slice(halo, -halo), slice(halo, -halo))
    written = open_volume(tmp_path / "t.zarr", channel=0)[1:2, :, :][0]
    assert np.abs(written[inner] - 255 * want.numpy()[inner]).max() <= 0.51


def test_bytes_depend_neither_on_blocks_nor_on_the_crew(run, tmp_path, whole):
    for name, more in {
        "b.zarr": ("--block", "64,256,256"),
        "p.zarr": ("--processes", "2", "--block", BLOCK),
    }.items():
        told = CliRunner().invoke(app, arguments(run, tmp_path / name, *more))
        assert told.exit_code == 0, told.output
        assert digest(tmp_path / name) == digest(whole)
    both = tmp_path / "both.zarr"
    told = CliRunner().invoke(app, arguments(run, both, output="classes,probabilities"))
    assert told.exit_code == 0, told.output
    level = json.loads((run / "run" / "classes.json").read_text())["thresholds"][0]
    share = open_volume(whole, channel=0)[:, :, :]
    classes = open_volume(both).labels("classes")
    np.testing.assert_array_equal(classes[:, :, :], share >= round(level * 255))
    np.testing.assert_array_equal(open_volume(both, channel=0)[:, :, :], share)


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs /proc to find the workers")
def test_dask_and_a_killed_worker_change_nothing(tmp_path, emtrain, whole):
    pytest.importorskip("distributed")
    out = tmp_path / "d.zarr"
    job = emtrain(out, "--dask", "local:1", "--block", BLOCK)
    wait_for(lambda: markers(out) or job.poll() is not None)
    assert job.poll() is None, job.stderr.read()
    processes = children(job.pid)
    os.kill(processes[-1], signal.SIGKILL)  # the worker: the last one that was started
    _, errors = job.communicate(timeout=240)
    assert job.returncode == 0, errors
    assert digest(out) == digest(whole)


def test_what_was_interrupted_is_gone_on_with_in_another_way(run, tmp_path, emtrain, whole):
    out = tmp_path / "r.zarr"
    job = emtrain(out, "--block", BLOCK)
    wait_for(lambda: markers(out) or job.poll() is not None)
    job.kill()
    job.wait()
    done = {m: (unfinished(out) / "markers" / "0" / m).stat().st_mtime_ns for m in markers(out)}
    assert 0 < len(done) < 8 and not out.exists()
    refused = CliRunner().invoke(app, arguments(run, out))
    assert isinstance(refused.exception, StoreExistsError)
    assert "--resume" in str(refused.exception) and "--overwrite" in str(refused.exception)
    with pytest.raises(StoreExistsError, match="config.tta: False ≠ True"):
        CliRunner().invoke(app, arguments(run, out, "--resume", "--tta"), catch_exceptions=False)
    job = emtrain(out, "--resume", "--processes", "1")
    seen = {}
    while job.poll() is None:
        for name in done:
            marker = unfinished(out) / "markers" / "0" / name
            if marker.exists():
                seen[name] = marker.stat().st_mtime_ns
        time.sleep(0.01)
    assert job.returncode == 0, job.stderr.read()
    assert seen == done and digest(out) == digest(whole)
    for more in ((), ("--overwrite", "--resume")):
        refused = CliRunner().invoke(app, arguments(run, out, *more))
        assert refused.exit_code == 1 and "--overwrite" in str(refused.exception)
    again = CliRunner().invoke(app, arguments(run, out, "--resume", "--processes", "1"))
    assert again.exit_code == 0  # whole already, whatever its blocks were


def test_what_a_prediction_reads_is_never_replaced(run, tmp_path):
    shutil.copytree(run / "run", tmp_path / "run")
    (tmp_path / "link.zarr").symlink_to(run / "v.zarr")
    before = sorted(run.rglob("*"))
    for out in (
        *(run / "v.zarr", run / "v.zarr" / "labels" / "mito", tmp_path / "link.zarr", run),
        *(tmp_path / "run", tmp_path / "run" / "weights", tmp_path / "run" / "new.zarr"),
    ):
        command = ["predict", tmp_path / "run", "--data", run / "v.zarr", "--out", out]
        told = CliRunner().invoke(app, [*map(str, command), "--overwrite"])
        assert isinstance(told.exception, StoreExistsError), out
        assert "which is read here" in str(told.exception)
    assert sorted(run.rglob("*")) == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["link.zarr", "run"]


def test_a_missing_block_is_an_error_and_leaves_no_store(run, tmp_path, emtrain):
    out = tmp_path / "m.zarr"
    job = emtrain(out, "--processes", "1", "--block", BLOCK)
    wait_for(lambda: markers(out) or job.poll() is not None)
    (unfinished(out) / "markers" / "0" / min(markers(out))).unlink()
    _, errors = job.communicate(timeout=240)
    assert job.returncode == 1 and "is missing" in errors and "--resume" in errors, errors
    assert not out.exists()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_no_byte_depends_on_the_way(repository, tmp_path):
    """tools/bench/train/predict.py in short."""
    pytest.importorskip("distributed")
    script = repository / "tools" / "bench" / "train" / "predict.py"
    done = subprocess.run(
        [sys.executable, script, "--quick", "--json", tmp_path / "found.json"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    rows = json.loads((tmp_path / "found.json").read_text())["rows"]
    assert len(rows) == 9 and all(row["held"] for row in rows)


def test_another_network_does_not_go_on(run, tmp_path, monkeypatch):
    monkeypatch.setattr(
        processes.Alone, "write", lambda *_: False
    )  # stopped before the first block
    out = tmp_path / "n.zarr"
    assert CliRunner().invoke(app, arguments(run, out)).exit_code == 75
    monkeypatch.setattr(prediction, "fingerprint_run", lambda _: "another")
    with pytest.raises(StoreExistsError, match="config.weights"):
        CliRunner().invoke(app, arguments(run, out, "--resume"), catch_exceptions=False)


@pytest.mark.parametrize(
    ("more", "text"),
    [
        (("--dask", "local:0"), "wanted local:N with N ≥ 1, or tcp://host:port"),
        (("--dask", "somewhere"), "wanted local:N"),
        (("--dask", "tcp://"), "--dask is 'tcp://', where no scheduler answers"),
        (("--output", ""), "--output is ''; of a segment run wanted"),
        (("--dask", "local:2", "--processes", "2"), "give one of them"),
        (("--memory-gib", "0.01"), "more than the budget"),
        (("--memory-gib", "0.034", "--block", "32,128,128"), "allow more with --memory-gib"),
    ],
)
def test_bad_input_leaves_nothing(run, tmp_path, more, text):
    out = tmp_path / "o.zarr"
    with pytest.raises((ValueError, MemoryError, OSError), match=text):
        CliRunner().invoke(app, arguments(run, out, *more), catch_exceptions=False)
    assert list(tmp_path.iterdir()) == []


def test_blocks_without_number_are_refused():
    prediction.check_count("raw.h5", (10**5,) * 3, (512,) * 3)
    with pytest.raises(ValueError, match=r"^raw\.h5 .* 477,753,125 blocks .* take larger blocks"):
        prediction.check_count("raw.h5", (10**5,) * 3, (32, 256, 256))


def test_a_scheduler_that_nobody_runs_is_found_before_anything_is_begun(run, tmp_path):
    dask = pytest.importorskip("dask")
    pytest.importorskip("distributed")
    with (
        dask.config.set({"distributed.comm.timeouts.connect": "1s"}),
        pytest.raises(OSError, match="127.0.0.1:9"),
    ):
        nobody = arguments(run, tmp_path / "o.zarr", "--dask", "tcp://127.0.0.1:9")
        CliRunner().invoke(app, nobody, catch_exceptions=False)
    assert list(tmp_path.iterdir()) == []


def test_workers_are_spread_over_the_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    crew = processes.Processes(block_job.BlockJob(store="", make=""), 3)
    given = []
    for _ in range(3):
        given.append(crew._gpu())
        crew._workers.append(type("Worker", (), {"gpu": given[-1]}))
    del crew._workers[1]
    assert given == [0, 1, 0] and crew._gpu() == 1


def test_vectors_of_patches_are_those_of_the_whole_map(tmp_path):
    """Of a mae run: in blocks the same as at once, and placed in the middle of the patches."""
    data = str(tmp_path / "raw.zarr")
    with new_store(data) as store:
        image = store.add_image((100, 150, 140), np.uint8, (10, 10, 10))
        noise = np.random.default_rng(0).integers(0, 255, (100, 150, 140)).astype(np.uint8)
        image.write(Box((0, 0, 0), noise.shape), noise)
    settings = {
        "data": {"volumes": [data], "cube": {"size_vx": [16, 64, 64]}},
        "run": {"device": "cpu"},
    }
    new_run(tmp_path / "run", resolve(mae.Config, [Layer("test", settings)]), "mae")
    encoder = Vit3d(
        Vit3dConfig(width=24, depth=1, heads=2, patch_vx=(4, 4, 4))
    )  # untrained will do
    em_models.save(encoder, tmp_path / "run" / "weights" / "encoder")
    module = RECIPES["mae"].predict
    for name, block_vx in {"a.zarr": None, "b.zarr": (16, 32, 64)}.items():
        assert prediction.predict(
            module,
            tmp_path / "run",
            data,
            tmp_path / name,
            outputs=["embedding"],
            block_vx=block_vx,
        )
    assert digest(tmp_path / "a.zarr") == digest(tmp_path / "b.zarr")
    stored, volume = open_encoder(tmp_path / "run"), open_volume(data)
    slab = Slab(volume, grey_range(volume), (4, 4, 4), (0, 0, 0), (25, 37, 35))
    want = stored.maps(slab, (-1,))[0].numpy()
    for channel in (0, 7):
        found = open_volume(tmp_path / "a.zarr", channel=channel)
        np.testing.assert_array_equal(found[:, :, :], want[channel])
    assert found.voxel_size_nm == (40, 40, 40) and found.origin_nm == (15, 15, 15)
    whole = open_volume(tmp_path / "a.zarr")
    assert len(whole.channels) == 24 and whole.shape == found.shape
    assert whole.channels[7] == found.channels[0]
    np.testing.assert_array_equal(whole.read_channels(Box((0, 0, 0), whole.shape)), want)
    named = open_volume(f"{tmp_path / 'a.zarr'}?channel={whole.channels[7]}")
    np.testing.assert_array_equal(named[:, :, :], want[7])
    told = CliRunner().invoke(app, ["info", str(tmp_path / "a.zarr")])
    assert f"24: {whole.channels[0]}, " in told.output and whole.channels[23] in told.output
    with pytest.raises(VolumeFormatError, match="24 channels .*; choose one with channel=0 … 23"):
        open_volumes(DataConfig(volumes=(str(tmp_path / "a.zarr"),)))
    with pytest.raises(ValueError, match="of a mae run wanted embedding"):
        prediction.predict(module, tmp_path / "run", data, tmp_path / "c.zarr")
