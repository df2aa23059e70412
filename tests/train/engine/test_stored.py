"""What lies in a run folder is not what it should be: it is named, with what can be done."""

import json
import os
from dataclasses import dataclass

import pytest
from em_train.engine.config import file_layer
from em_train.engine.errors import StoredFileError
from em_train.engine.stored import leads_out, read_config, read_json, read_rows, read_text

REMEDY = "put back a copy"


@dataclass(frozen=True)
class Classes:
    """What a file holds."""

    names: tuple[str, ...]
    thresholds: tuple[float, ...]


def test_what_is_whole_is_read(tmp_path):
    (tmp_path / "a.json").write_text('{"names": ["ä"], "thresholds": [0.5]}', encoding="utf-8")
    assert read_json(tmp_path / "a.json", Classes, REMEDY) == Classes(("ä",), (0.5,))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "no JSON"),
        ('{"names": ["a"]', "no JSON"),
        ("9" * 5000, "no JSON"),
        ("[" * 100_000, "no JSON"),
        ("[" * 500 + "]" * 500, "nested too deeply"),
        ("null", "got None"),
        ("[]", r"got \[\]"),
        ("7", "got 7"),
        ('{"names": ["a"]}', "thresholds: Field required"),
        ('{"names": [1], "thresholds": [0.5]}', r"names.0: .*string, got 1"),
        ('{"names": null, "thresholds": {}}', "names: .*got None; thresholds"),
    ],
)
def test_another_shape_is_named_with_its_file_and_a_remedy(tmp_path, text, reason):
    path = tmp_path / "classes.json"
    path.write_text(text)
    with pytest.raises(StoredFileError, match=rf"classes.json is damaged: .*{reason}") as caught:
        read_json(path, Classes, REMEDY)
    assert str(caught.value).endswith(f"; {REMEDY}") and "\n" not in str(caught.value)


def test_what_is_no_text_file_is_refused_at_once(tmp_path):
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "device").symlink_to("/dev/zero")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00")
    for name in ("folder", "pipe", "device", "loop", "bytes", "none"):
        with pytest.raises(StoredFileError, match=rf"{name} (is no|cannot be read).*; {REMEDY}"):
            read_text(tmp_path / name, REMEDY)
    for suffix in (".toml", ".json"):
        os.mkfifo(tmp_path / f"pipe{suffix}")
        with pytest.raises(StoredFileError, match="no plain file.*a .toml"):
            file_layer(tmp_path / f"pipe{suffix}", "mae")


def test_a_configuration_has_a_command_and_groups(tmp_path):
    with pytest.raises(StoredFileError, match="holds no run: there is no config.json"):
        read_config(tmp_path)
    path = tmp_path / "config.json"
    for tree, reason in (
        ({"data": {}}, "names no command"),
        ({"command": 3}, "names no command"),
        ({"command": "mae", "data": None}, "data is None, wanted a group of keys"),
        ({"command": "mae", "optim": [1]}, r"optim is \[1\], wanted a group"),
    ):
        path.write_text(json.dumps(tree))
        with pytest.raises(StoredFileError, match=f"config.json .*{reason}"):
            read_config(tmp_path)
    path.write_text('{"command": "mae", "data": {}}')
    assert read_config(tmp_path) == {"command": "mae", "data": {}}


def test_only_lines_that_are_no_rows_are_left_out(tmp_path):
    assert read_rows(tmp_path) == ([], [])
    lines = ['{"step": 1}', "null", "[1]", '{"loss": 1}', '{"step": "2"}', '{"step": 3, "los']
    path = tmp_path / "metrics.jsonl"
    path.write_bytes("\n".join([*lines, '{"step": 4, "loss": NaN}\n']).encode() + b'\xff\n{"st')
    rows, damaged = read_rows(tmp_path)
    assert [row["step"] for row in rows] == [1, 4]
    assert damaged == [2, 3, 4, 5, 6, 8]
    path.write_text('{"step": 1}\n{"step": 2}')
    assert read_rows(tmp_path) == ([{"step": 1}, {"step": 2}], [])
    path.unlink()
    path.mkdir()
    with pytest.raises(StoredFileError, match="metrics.jsonl is no plain file"):
        read_rows(tmp_path)


def test_what_leads_out_of_a_run(tmp_path):
    run, other = tmp_path / "run", tmp_path / "other"
    for folder in (run, other):
        (folder / "images").mkdir(parents=True)
        (folder / "images" / "a.png").write_bytes(b"")
    (run / "images" / "link.png").symlink_to(other / "images" / "a.png")
    (tmp_path / "name").symlink_to(run)
    for path in ("images/a.png", "images/../images/a.png", "none"):
        assert not leads_out(run, run / path) and not leads_out(tmp_path / "name", run / path)
    for path in ("images/link.png", "../other/images/a.png", str(other), "/etc/hostname"):
        assert leads_out(run, run / path)
