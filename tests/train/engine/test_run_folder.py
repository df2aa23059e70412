import json
import os
from dataclasses import dataclass

import pytest
from em_train.engine.config import Layer
from em_train.engine.errors import RunFolderError
from em_train.engine.run_folder import (
    RunFolder,
    check_own,
    new_run,
    read_by,
    resumed_run,
    stored_part,
)


@dataclass(frozen=True)
class Run:
    """Keys that may change."""

    seed: int = 0
    log_every: int = 10


@dataclass(frozen=True)
class Data:
    """Where the data lie, which may change, and what is drawn from them, which may not."""

    volumes: tuple[str, ...] = ("a",)
    batch_size: int = 2


@dataclass(frozen=True)
class Tree:
    """A configuration."""

    run: Run = Run()
    data: Data = Data()
    lr: float = 0.1


def test_a_folder_belongs_to_one_run(tmp_path):
    new_run(tmp_path / "a", Tree(), "cmd")
    with pytest.raises(RunFolderError, match="holds another run"):
        new_run(tmp_path / "a", Tree(), "cmd")
    (tmp_path / "b").mkdir()
    new_run(tmp_path / "b", Tree(), "cmd")  # an empty folder is fine
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "thesis.tex").write_text("years of work")
    with pytest.raises(RunFolderError, match="not an empty folder"):
        new_run(tmp_path / "c", Tree(), "cmd")


def test_only_harmless_keys_may_change_on_resume(tmp_path):
    new_run(tmp_path / "a", Tree(), "cmd")
    resumed_run(tmp_path / "a", Tree(run=Run(log_every=1)), "cmd")
    with pytest.raises(RunFolderError, match=r"lr: 0\.1 ≠ 0\.2"):
        resumed_run(tmp_path / "a", Tree(lr=0.2), "cmd")
    with pytest.raises(RunFolderError, match=r"run\.seed: 0 ≠ 1"):
        resumed_run(tmp_path / "a", Tree(run=Run(seed=1)), "cmd")
    resumed_run(tmp_path / "a", Tree(data=Data(volumes=("elsewhere",))), "cmd")
    with pytest.raises(RunFolderError, match="no run to resume"):
        resumed_run(tmp_path / "none", Tree(), "cmd")


def test_a_group_of_a_stored_configuration_is_read_by_itself(tmp_path):
    data = Data(volumes=("there",), batch_size=5)
    new_run(tmp_path / "a", Tree(data=data), "cmd")
    assert stored_part(tmp_path / "a", "cmd", "data", Data) == data
    with pytest.raises(ValueError, match="configures 'emtrain cmd', not 'emtrain other'"):
        stored_part(tmp_path / "a", "other", "data", Data)


def test_two_processes_cannot_work_in_one_folder(tmp_path):
    first = new_run(tmp_path / "a", Tree(), "cmd")
    with pytest.raises(RunFolderError, match="another process works in"):
        resumed_run(tmp_path / "a", Tree(), "cmd")
    del first
    resumed_run(tmp_path / "a", Tree(), "cmd")


def test_a_finished_run_without_checkpoints_is_not_begun_again(tmp_path):
    new_run(tmp_path / "a", Tree(), "cmd").record({"step": 1})
    with pytest.raises(RunFolderError, match="no checkpoint to go on from"):
        resumed_run(tmp_path / "a", Tree(), "cmd")
    assert (tmp_path / "a" / "metrics.jsonl").read_text() == '{"step": 1}\n'


def test_rows_cut_off_by_a_kill_and_rows_to_be_repeated_go(tmp_path):
    folder = new_run(tmp_path / "a", Tree(), "cmd")
    for step in (1, 2, 3):
        folder.record({"step": step})
        (folder.images / f"step-{step:06d}.png").write_bytes(b"")
    with folder.metrics.open("a") as file:
        file.write('{"step": 4, "lo')
    assert [row["step"] for row in folder.rows()] == [1, 2, 3]
    folder.rewind(2)
    assert folder.metrics.read_text() == '{"step": 1}\n{"step": 2}\n'
    assert [p.name for p in sorted(folder.images.iterdir())] == [
        "step-000001.png",
        "step-000002.png",
    ]


def test_a_line_that_is_damaged_goes_alone_and_is_named(tmp_path, capfd):
    folder = new_run(tmp_path / "a", Tree(), "cmd")
    folder.metrics.write_text('{"step": 1}\n{"st\x00p": 2}\n{"step": 3}\nnull\n{"step": 5}\n')
    for name in ("step-000005.png", "step-x.png"):
        (folder.images / name).write_bytes(b"")
    folder.rewind(4)
    assert folder.metrics.read_text() == '{"step": 1}\n{"step": 3}\n'
    told = capfd.readouterr().err.replace("\n", "")
    assert "metrics.jsonl" in told and "left out (line 2, 4)" in told
    assert [path.name for path in folder.images.iterdir()] == ["step-x.png"]


def test_a_run_lies_apart_from_what_it_reads(tmp_path):
    for name in ("raw.zarr", "plain"):
        (tmp_path / name).mkdir()
    (tmp_path / "raw.zarr" / "zarr.json").write_text("{}")
    data = Data(volumes=(str(tmp_path / "plain"),))
    with pytest.raises(FileExistsError, match="lies in .*plain, which is read here"):
        new_run(tmp_path / "plain" / "run", Tree(data=data), "cmd")
    with pytest.raises(FileExistsError, match="lies in the zarr store"):
        new_run(tmp_path / "raw.zarr" / "run", Tree(), "cmd")
    (tmp_path / "link").symlink_to("nowhere")
    with pytest.raises(FileExistsError, match="is a link to nowhere"):
        new_run(tmp_path / "link", Tree(), "cmd")
    assert read_by(new_run(tmp_path / "run", Tree(data=data), "cmd").path) == list(data.volumes)


def test_data_named_again_must_be_those_of_the_run(tmp_path):
    for name in ("raw", "other"):
        (tmp_path / name).mkdir()
    (tmp_path / "link").symlink_to("raw")
    raw, labels = str(tmp_path / "raw"), ["mito=mito"]
    begun = Layer("config.json", {"data": {"volumes": [raw], "labels": labels}})
    for data in ({}, {"volumes": [raw]}, {"volumes": [str(tmp_path / "link")], "labels": labels}):
        check_own(tmp_path, [begun, Layer("options", {"data": data})])
    moved = Layer("--set", {"data": {"volumes": [str(tmp_path / "other")]}})
    check_own(tmp_path, [begun, moved, Layer("--init", {"run": {"init": "x"}})])
    for origin, data, message in (
        ("--data", {"volumes": [str(tmp_path / "other")]}, "--data .*raw, not .*other; .* --set"),
        ("options", {"volumes": [raw, raw]}, "leave --data out"),
        ("options", {"labels": ["mito=other"]}, "--labels mito=mito, not mito=other; leave"),
    ):
        with pytest.raises(RunFolderError, match=message):
            check_own(tmp_path, [begun, Layer(origin, {"data": data})])


@pytest.mark.parametrize("name", ["log.txt", "metrics.jsonl"])
def test_no_line_is_added_to_a_file_outside(tmp_path, name):
    new_run(tmp_path / "a", Tree(), "cmd")
    (tmp_path / "other").write_text("mine")
    (tmp_path / "a" / name).unlink(missing_ok=True)
    (tmp_path / "a" / name).symlink_to(tmp_path / "other")
    with pytest.raises(ValueError, match=f"{name} leads out of the run; put a copy"):
        resumed_run(tmp_path / "a", Tree(), "cmd")
    assert (tmp_path / "other").read_text() == "mine"


@pytest.mark.parametrize("name", ["log.txt", "metrics.jsonl"])
def test_what_is_no_plain_file_is_not_waited_for(tmp_path, name):
    new_run(tmp_path / "a", Tree(), "cmd")
    os.mkfifo(tmp_path / "a" / name)
    with pytest.raises(ValueError, match=f"{name} is no plain file; remove it"):
        resumed_run(tmp_path / "a", Tree(), "cmd")


def test_a_stored_configuration_that_is_damaged_is_named(tmp_path):
    new_run(tmp_path / "a", Tree(), "cmd")
    path = tmp_path / "a" / "config.json"
    whole = json.loads(path.read_text())
    for changes, reason in (
        ({"data": None}, "config.json is damaged: data is None"),
        ({"lr": "x"}, r"lr \(.*config.json\): .*got 'x'"),
        ({"data": {"batch": 1}}, r"data.batch \(.*config.json\): unknown key"),
    ):
        path.write_text(json.dumps(whole | changes))
        with pytest.raises(ValueError, match=reason):
            resumed_run(tmp_path / "a", Tree(), "cmd")
    path.write_text('{"command": "cmd"}')
    with pytest.raises(ValueError, match="config.json is damaged: it has no group data"):
        stored_part(tmp_path / "a", "cmd", "data", Data)


def test_what_a_start_that_was_killed_leaves_is_no_obstacle(tmp_path):
    (tmp_path / "a").mkdir()
    for name in (".lock", ".config.json.tmp", ".config.json.17.tmp"):
        (tmp_path / "a" / name).touch()
    new_run(tmp_path / "a", Tree(), "cmd")
    # Killed right after: the configuration is the first thing that is there.
    for name in ("images", "checkpoints"):
        (tmp_path / "a" / name).rmdir()
    folder = resumed_run(tmp_path / "a", Tree(), "cmd")
    assert folder.images.is_dir() and folder.checkpoints.is_dir()


def test_of_several_processes_one_writes(tmp_path):
    leader = new_run(tmp_path / "a", Tree(), "cmd")
    follower = RunFolder(tmp_path / "a", leads=False)  # takes no lock
    assert not leader.begun
    leader.record({"step": 1})
    follower.record({"step": 1})
    follower.log("nothing")
    follower.rewind(0)
    assert leader.rows() == follower.rows() == [{"step": 1}]
    assert not (tmp_path / "a" / "log.txt").exists()
    leader.log("something")
    assert leader.begun and not follower.begun
