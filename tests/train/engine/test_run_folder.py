from dataclasses import dataclass

import pytest
from em_train.engine.errors import RunFolderError
from em_train.engine.run_folder import RunFolder, new_run, resumed_run, stored_part


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


def test_what_a_start_that_was_killed_leaves_is_no_obstacle(tmp_path):
    (tmp_path / "a").mkdir()
    for name in (".lock", ".config.json.tmp"):
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
